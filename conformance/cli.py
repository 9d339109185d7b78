"""The command line: `sd1-conformance`, the same as `python -m conformance`."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from conformance import __version__
from conformance.case import Case, all_cases, find_case, select_cases
from conformance.errors import ExitCode, SuiteError, UsageError, unknown_name
from conformance.execution import Execution, items
from conformance.golden import Golden, load_golden
from conformance.lint import lint
from conformance.port import Hello, greet, known_ports, resolve
from conformance.report.terminal import verdict_lines
from conformance.report.text import shorten
from conformance.results import DEFAULT_OUT, Results, exit_code
from conformance.runner import Result, Runner, run_all
from conformance.spec import FOLDER_COMPONENTS, checkpoint_shapes
from conformance.tolerance import ARITHMETICS, LIMIT
from conformance.variants import NO_VARIANT, parse_variant, variant_names
from conformance.vocabulary import Vocabulary

BACKENDS = ("sdpa",)
MODES = ("trace",)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        0 conformant, 1 not conformant, 2 bad usage, 3 the port or the suite broke.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except SuiteError as error:
        print(f"sd1-conformance: {error}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.BROKEN)
    except KeyboardInterrupt:
        print("sd1-conformance: interrupted", file=sys.stderr)
        return int(ExitCode.BROKEN)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sd1-conformance",
        description="Says whether a port of Stable Diffusion v1 computes what SD v1 computes.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "judge a port")
    run.add_argument("port", nargs="?", default="sd1_impl", metavar="PORT", help="default sd1_impl")
    _add_selection(run)
    run.add_argument("--dtype", default="float32", help="arithmetics, default float32")
    run.add_argument("--device", default="cpu", help="device of the port, default cpu")
    run.add_argument("--backend", default="sdpa", help="attention backends, default sdpa")
    run.add_argument("--mode", default="trace", help="default trace")
    run.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the report")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")

    listing = _command(commands, "list", _list, "print case ids")
    _add_selection(listing)
    listing.add_argument("--all", action="store_true", help="every variant, sd1 too")

    show = _command(commands, "show", _show, "print what a golden holds")
    show.add_argument("case", metavar="CASE", help="component/variant/scenario")

    _command(commands, "ports", _ports, "print the ports that can be named")

    weights = _command(commands, "weights", None, "weights from the recipe")
    weights_commands = weights.add_subparsers(required=True, metavar="COMMAND")
    export = _command(
        weights_commands, "export", _weights_export, "write them as a diffusers folder"
    )
    export.add_argument("--variant", required=True)
    export.add_argument("--out", type=Path, required=True)

    golden = _command(commands, "golden", None, "record and check goldens")
    golden_commands = golden.add_subparsers(required=True, metavar="COMMAND")
    record = _command(golden_commands, "record", _golden_record, "record goldens from the oracle")
    _add_selection(record)
    record.add_argument("--spec", action="store_true", help="golden/spec/ instead of goldens")
    _add_selection(
        _command(golden_commands, "verify", _golden_verify, "derive goldens again and compare")
    )
    checks = _command(golden_commands, "lint", _golden_lint, "look for goldens that prove nothing")
    checks.add_argument("--full-size", action="store_true", help="look for dead weights in sd1 too")
    honest = _command(
        golden_commands, "honest", _golden_honest, "measure honest evaluations against the limit"
    )
    _add_selection(honest)
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int] | None, text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    if function is not None:
        parser.set_defaults(command=function)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-k", metavar="EXPR", help="words in the case id with and, or, not")
    parser.add_argument("--component", help="globs, comma-separated")
    parser.add_argument("--variant", help="globs, comma-separated; default tiny*,odd*")
    parser.add_argument("--scenario", help="globs, comma-separated")


def split(text: str | None) -> list[str] | None:
    """Split a comma-separated option; None stays None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def selected(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that the selection options name."""
    return select_cases(
        split(arguments.component), split(arguments.variant), split(arguments.scenario), arguments.k
    )


def executions(dtype: str, device: str, backend: str, mode: str, hello: Hello) -> list[Execution]:
    """Return every combination of the options, checked.

    Raises:
        UsageError: An unknown arithmetic, device, backend or mode.
    """
    for kind, text, known in (
        ("dtype", dtype, ARITHMETICS),
        ("device", device, hello.devices),
        ("backend", backend, BACKENDS),
        ("mode", mode, MODES),
    ):
        for name in split(text) or [""]:
            if name not in known:
                raise unknown_name(kind, name, list(known))
    return [
        Execution(d, where, b, m)
        for where in split(device) or []
        for b in split(backend) or []
        for m in split(mode) or []
        for d in split(dtype) or []
    ]


def scope_of(judged: list[tuple[Case, Execution]]) -> str:
    """Describe in words what is run, and that the full size is not where it is not.

    Args:
        judged: Cases and how they are run.

    Returns:
        Components; variants; arithmetics; devices; modes.
    """
    facts = [(c.component, c.variant.name, r.dtype, r.device, r.mode) for c, r in judged]
    columns = [
        dict.fromkeys(x for x in column if x not in {"", "-"})
        for column in zip(*facts, strict=True)
    ]
    scope = "; ".join(", ".join(column) for column in columns if column)
    return scope if any(c.full_size for c, _ in judged) else f"{scope}; sd1 was not run"


def _run(arguments: argparse.Namespace) -> int:
    cases = selected(arguments)
    port = resolve(arguments.port)
    runner = Runner(port)
    if arguments.component is None:  # what is not offered, and not asked for by name, is no skip
        cases = [c for c in cases if c.component in runner.hello.components] or cases
    runs = executions(
        arguments.dtype, arguments.device, arguments.backend, arguments.mode, runner.hello
    )
    judged = list(items(cases, runs))
    ids = [execution.item_id(case) for case, execution in judged]
    results = Results(
        arguments.out,
        runner.hello,
        arguments.port,
        scope_of(judged),
        resume=ids if arguments.resume else None,
    )
    done = {line["case"] for line in results.lines}
    if done:
        print(f"{len(done)} of {len(judged)} cases are taken over from the run in {arguments.out}")
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(judged), initial=len(done), disable=quiet, unit="case") as bar:

        def report(result: Result) -> None:
            line = result.as_json()
            results.add(line)
            bar.update()
            text = f"{line['verdict']:5s} {_ratio_text(line)} {line['case']}"
            if quiet:
                print(f"[{len(results.lines)}/{len(judged)}] {text}", flush=True)
            elif line["verdict"] != "pass":
                bar.write(text)
            if line["verdict"] in {"fail", "error", "skip"}:
                for text in [line["message"], *line["detail"].splitlines()]:
                    bar.write(f"      {text}", file=sys.stdout if quiet else None)

        run_all(runner, cases, runs, report, done)
    summary = results.close()
    print("\n".join(verdict_lines(summary)))
    print(f"  report {arguments.out / 'index.html'}")
    return int(exit_code(summary))


def _ratio_text(line: dict[str, Any]) -> str:
    return "      -" if line["ratio"] is None else f"{line['ratio']:7.2f}"


def _list(arguments: argparse.Namespace) -> int:
    if arguments.all and arguments.variant is None:
        arguments.variant = "*"
    for case in selected(arguments):
        print(f"{case.id:40s} {case.scenario.hunts}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    case = find_case(arguments.case)
    if case.refused:
        print(f"{case.id}\nhunts   {case.scenario.hunts}\nrefused {case.refused}")
        return 0
    golden = load_golden(case)
    print(f"{case.id}\nhunts   {golden.hunts}\nlimit   {LIMIT:g}")
    for name, facts in golden.inputs.items():
        value = f" {shorten(str(facts['value']), 100)}" if "value" in facts else ""
        print(
            f"input   {name} {facts['dtype']} {tuple(facts['shape'])} from {facts['recipe']}{value}"
        )
    for name, shape in golden.output_shapes.items():
        print(f"output  {name} {shape}, {_output_text(golden, name)}")
    if golden.probes:
        print(f"probes  {len(golden.probes)}, {golden.probes[0]} to {golden.probes[-1]}")
    for arithmetic, noise in golden.noise.items():
        outputs = ", ".join(f"{n} {v[0]:.2g}" for n, v in golden.output_noise[arithmetic].items())
        print(
            f"noise   {arithmetic}: median of the probes {np.median(noise):.2g}, output {outputs}"
        )
    print("from    " + ", ".join(f"{k} {v}" for k, v in golden.provenance.items()))
    return 0


def _output_text(golden: Golden, name: str) -> str:
    """Describe an output of a golden in words."""
    if name in golden.sketched:
        steps = sum(golden.sketched_output(row) == name for row in golden.probes)
        return f"kept as sketches, {steps} of them" if steps else "not kept"
    whole = golden.outputs.get(name)
    if whole is not None and name == "timesteps":
        return ", ".join(map(str, whole.tolist()))
    if whole is not None and whole.dtype == np.uint8:
        return f"mean {whole.mean():.4g}"
    if golden.exact:
        words = Vocabulary.load()
        rows = [[words.name(i) for i in row] for row in golden.outputs[name].tolist()]
        return "; ".join(shorten(" ".join(row), 200) for row in rows)
    rms = golden.output_norm(name) / math.sqrt(math.prod(golden.output_shapes[name]))
    kept = ", kept as a sketch and its first and last rows and columns"
    return f"RMS {rms:.4g}{kept if name in golden.large else ''}"


def _ports(_: argparse.Namespace) -> int:
    for name, target in known_ports().items():
        try:
            hello = greet(resolve(name))
        except SuiteError as error:
            print(f"{name:12s} not available: {error}")
        else:
            print(
                f"{name:12s} {hello.version:10s} {', '.join(hello.components)}; "
                f"{', '.join(hello.arithmetics)}; {', '.join(hello.devices)} ({target})"
            )
    return 0


def _weights_export(arguments: argparse.Namespace) -> int:
    if arguments.variant == NO_VARIANT:
        raise unknown_name("variant", NO_VARIANT, variant_names())
    variant = parse_variant(arguments.variant)
    plain = parse_variant(variant.name.removesuffix("-inpaint"))  # for all but the UNet
    for name, component in FOLDER_COMPONENTS.items():
        own = variant if variant.name in variant_names(component) else plain
        folder = own.weights(component).export(arguments.out / name)
        count = sum(math.prod(s) for s in checkpoint_shapes(name, own.size).values())
        print(f"{folder}: {count:,} parameters, float32, {own.name}")
    return 0


def _oracle_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"this command needs the oracle: {error} (pip install 'sd1-conformance[oracle]')"
        raise UsageError(message) from error


def _by_variant(cases: list[Case]) -> list[list[Case]]:
    return [list(g) for _, g in groupby(cases, key=lambda c: (c.component, c.variant.name))]


def _say(text: str) -> None:
    print(text, flush=True)


def _golden_record(arguments: argparse.Namespace) -> int:
    record = _oracle_module("conformance.record")
    if arguments.spec:
        record.write_spec(_oracle_module("conformance.discover").derive_spec())
        return 0
    for group in _by_variant(selected(arguments)):
        record.write(record.record_variant(group, _say))
    return 0


def _golden_verify(arguments: argparse.Namespace) -> int:
    record = _oracle_module("conformance.record")
    verify = _oracle_module("conformance.verify")
    wrong = 0
    for group in _by_variant(selected(arguments)):
        stored = {case.id: load_golden(case) for case in group if not case.refused}
        for case_id, golden in record.record_variant(group, _say).items():
            problem = verify.disagreement(stored[case_id], golden)
            wrong += problem is not None
            print(f"{case_id}: {problem or 'agrees with the oracle'}", flush=True)
    return int(ExitCode.BROKEN if wrong else ExitCode.CONFORMANT)


def _golden_lint(arguments: argparse.Namespace) -> int:
    problems = lint(_say)
    try:
        liveness = importlib.import_module("conformance.liveness")
    except ImportError as error:
        print(f"dead weights were not looked for: {error}")
    else:
        for group in _by_variant(all_cases()):
            variant = group[0].variant
            networks = variant.regime == "unit" and group[0].is_network
            if networks and (arguments.full_size or not group[0].full_size):
                problems += liveness.dead_parameters(group, _say)
    for problem in problems:
        print(f"lint: {problem}")
    print(f"{len(problems)} problems")
    return int(ExitCode.BROKEN if problems else ExitCode.CONFORMANT)


def _golden_honest(arguments: argparse.Namespace) -> int:
    fairness = _oracle_module("conformance.fairness")
    return 1 if fairness.measure_all(selected(arguments), _say) else 0


if __name__ == "__main__":
    sys.exit(main())
