"""`sd1-conformance audit`: where an arithmetic loses precision, and what would win it back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from conformance.audit.auditor import Auditor, Questions
from conformance.audit.names import COMPONENTS, REGIMES
from conformance.audit.page import write_page
from conformance.audit.policy import LAYERED, Policy, keeping, read_policy
from conformance.audit.report import Report
from conformance.audit.text import report_lines
from conformance.case import Case, select_cases
from conformance.cli_common import Listed, add_limits, command, given, limits_of, split
from conformance.errors import ExitCode, UsageError, unknown_name
from conformance.execution import Execution
from conformance.port import Hello, close, resolve
from conformance.progress import Progress
from conformance.regimes import UNIT
from conformance.run_folder import AUDIT, require_creatable, require_own, unwritable, write_whole
from conformance.runner import Runner
from conformance.scenarios import BASE
from conformance.spec import parameter_shapes
from conformance.tolerance import EVERY_ARITHMETIC

DEFAULT_OUT = Path("conformance-audit")
PAGE = "index.html"
_DTYPE = "bfloat16"
_VARIANTS = [f"tiny{'' if regime == UNIT else f'-{regime}'}" for regime in REGIMES]


def add_command(commands: Any) -> None:
    """Declare the command."""
    audit = command(commands, "audit", _audit, "say where an arithmetic loses precision")
    audit.add_argument(
        "port", nargs="?", default="sd1_impl", metavar="PORT", help="default sd1_impl"
    )
    audit.add_argument("--dtype", help=f"the arithmetic, default {_DTYPE}")
    audit.add_argument("--device", default="cpu", help="device of the port, default cpu")
    audit.add_argument(
        "--component", action=Listed, help="globs, comma-separated; default all networks"
    )
    audit.add_argument(
        "--variant", action=Listed, help=f"globs, comma-separated; default {','.join(_VARIANTS)}"
    )
    audit.add_argument("--scenario", action=Listed, help=f"globs, comma-separated; default {BASE}")
    audit.add_argument(
        "--keep", action=Listed, metavar="GLOB,..", help="layers to compute in float32"
    )
    audit.add_argument(
        "--target", type=float, metavar="R", help="find the fewest layers in float32 for this ratio"
    )
    audit.add_argument(
        "--attention", metavar="FILE:FN", help="fn(query, key, value, is_causal=False) in its place"
    )
    policy = given("--policy", "a file", Path)
    audit.add_argument("--policy", type=policy, metavar="FILE", help="arithmetics of layers, TOML")
    audit.add_argument("--samples", type=int, metavar="N", help="the spread over N inputs")
    packs = given("--traces", "a folder", Path)
    audit.add_argument("--traces", type=packs, metavar="DIR", help="trace packs, for no oracle")
    add_limits(audit)
    folder = given("--out", "a folder", Path)
    audit.add_argument("--out", type=folder, default=DEFAULT_OUT, help=f"default {DEFAULT_OUT}")


def _audit(arguments: argparse.Namespace) -> int:
    questions, dtype = _questions(arguments)
    require_own(arguments.out, AUDIT, [PAGE])
    port = resolve(arguments.port, limits_of(arguments))
    try:
        runner = Runner(port)
        _require_offer(runner.hello, dtype, arguments.device)
        cases = _cases(arguments, runner.hello)
        _require_layers(cases, questions)
        require_creatable(arguments.out, "the audit")
        with Progress(bar_format="{desc}", leave=False) as bar:

            def say(text: str) -> None:
                bar.now(text[:100])
                bar.update()

            execution = Execution(dtype, arguments.device)
            report = Auditor(runner, execution, questions, say).run(cases)
    finally:
        close(port)
    if not report.profiles:
        reasons = "; ".join(f"{case}: {why}" for case, why in report.skipped.items())
        message = f"nothing could be audited: {reasons}"
        raise UsageError(message)
    _write(report, arguments.out)
    print("\n".join(report_lines(report)))
    print(f"\n{arguments.out / PAGE} and {AUDIT} written in {report.seconds:.0f} s")
    return int(ExitCode.NONCONFORMANT if report.missed else ExitCode.CONFORMANT)


def _questions(arguments: argparse.Namespace) -> tuple[Questions, str]:
    """Read what is asked, and the arithmetic.

    Raises:
        UsageError: An option makes no sense.
    """
    policy = read_policy(arguments.policy) if arguments.policy else None
    dtype = arguments.dtype or (policy and policy.base) or _DTYPE
    if dtype not in EVERY_ARITHMETIC:
        raise unknown_name("arithmetic", dtype, list(EVERY_ARITHMETIC))
    keep = None
    if arguments.keep is not None:
        keep = keeping(split(arguments.keep) or [])
        if not keep.rules:
            message = "--keep is empty: name layers, such as '*norm*'"
            raise UsageError(message)
    layered = [
        name for name in ("keep", "target", "policy") if getattr(arguments, name) is not None
    ]
    if layered and dtype not in LAYERED:
        message = f"--{layered[0]} needs an arithmetic of single layers: {', '.join(LAYERED)}"
        raise UsageError(message)
    if arguments.target is not None and not arguments.target > 0:
        message = f"--target {arguments.target:g}: give a positive ratio, such as 0.5"
        raise UsageError(message)
    if arguments.samples is not None and arguments.samples < 1:
        message = f"--samples {arguments.samples}: give a number from 1"
        raise UsageError(message)
    questions = Questions(
        keep,
        arguments.target,
        policy,
        arguments.samples or 0,
        arguments.attention or "",
        arguments.traces,
    )
    return questions, dtype


def _require_offer(hello: Hello, dtype: str, device: str) -> None:
    for kind, wanted, offered in (
        ("arithmetic", dtype, hello.arithmetics),
        ("device", device, hello.devices),
    ):
        if wanted not in offered:
            message = (
                f"{hello.name} does not offer {kind} {wanted}: choose from {', '.join(offered)}"
            )
            raise UsageError(message)


def _cases(arguments: argparse.Namespace, hello: Hello) -> list[Case]:
    """Return the cases that are named, of networks that the port offers."""
    components = split(arguments.component)
    named = components if components is not None else list(COMPONENTS)
    variants = split(arguments.variant) or _VARIANTS
    cases = [
        c
        for c in select_cases(named, variants, split(arguments.scenario) or [BASE])
        if c.is_network
    ]
    if not cases:
        message = f"audit looks into networks: choose --component from {', '.join(COMPONENTS)}"
        raise UsageError(message)
    offered = [c for c in cases if hello.offers(c.component, c.variant.name) and not c.refused]
    if not offered:
        asked = ", ".join(dict.fromkeys(c.component for c in cases))
        message = f"{hello.name} offers none of {asked}: it offers {', '.join(hello.components)}"
        raise UsageError(message)
    return offered


def _require_layers(cases: list[Case], questions: Questions) -> None:
    """Check that every glob names a layer of what is audited."""
    layers = [
        name.rpartition(".")[0]
        for component, size in dict.fromkeys((c.component, c.variant.size) for c in cases)
        for name in parameter_shapes(component, size)
    ]
    asked: list[Policy | None] = [questions.keep, questions.policy]
    for policy in asked:
        if policy:
            policy.require_matches(layers)


def _write(report: Report, out: Path) -> None:
    """Write audit.json and index.html.

    Raises:
        UsageError: The folder cannot be written.
    """
    facts = report.as_json()
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / AUDIT, [json.dumps(facts, indent=1, allow_nan=False)])
        write_page(report, out / PAGE)
    except OSError as error:
        raise unwritable(out, error, "the audit") from error
