"""The command line: `sd1-conformance`, the same as `python -m conformance`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from conformance import __version__, cli_bench, cli_golden, cli_mutants, cli_smoke, cli_weights
from conformance.case import Case, find_case
from conformance.checkpoints import FileVariant
from conformance.cli_common import (
    add_limits,
    add_selection,
    command,
    limits_of,
    oracle_module,
    selected,
    split,
)
from conformance.errors import ExitCode, SuiteError, UsageError, unknown_name
from conformance.execution import Execution, items
from conformance.golden import SPLICE, TRACE, Golden
from conformance.golden_files import load_golden
from conformance.parallel import Job, run_parallel
from conformance.port import EXEC, Hello, close, greet, known_ports, resolve
from conformance.report.terminal import verdict_lines
from conformance.report.text import shorten
from conformance.results import DEFAULT_OUT, Results, exit_code
from conformance.runner import Runner
from conformance.tolerance import ARITHMETICS, LIMIT
from conformance.traces import have_oracle
from conformance.vocabulary import Vocabulary
from conformance.witness_rows import WITNESSES
from conformance.xfails import Xfails
from sd1_weights.errors import CheckpointError

BACKENDS = ("sdpa",)
MODES = (SPLICE, TRACE)
"""In the order in which they are run: a trace is explained by what splicing found."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        0 conformant, 1 not conformant, 2 bad usage, 3 the port or the suite broke.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        port = getattr(arguments, "port", "")
        hint = f'; quote the command: "{port} {rest[0]} ..."' if port.startswith(EXEC) else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    try:
        return int(arguments.command(arguments))
    except SuiteError as error:
        print(f"sd1-conformance: {error}", file=sys.stderr)
        return int(error.exit_code)
    except CheckpointError as error:
        print(f"sd1-conformance: {error}", file=sys.stderr)
        return int(ExitCode.USAGE)
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

    run = command(commands, "run", _run, "judge a port")
    run.add_argument("port", nargs="?", default="sd1_impl", metavar="PORT", help="default sd1_impl")
    add_selection(run)
    run.add_argument("--dtype", default="float32", help="arithmetics, default float32")
    run.add_argument("--device", default="cpu", help="device of the port, default cpu")
    run.add_argument("--backend", default="sdpa", help="attention backends, default sdpa")
    run.add_argument("--mode", help="trace, splice; default both, where splice is possible")
    run.add_argument("--weights", type=Path, metavar="PATH", help="your own, in any layout")
    cli_weights.add_choice(run)
    run.add_argument("--witness", choices=WITNESSES, help="judge published slices of it too")
    run.add_argument("--witness-inputs", type=Path, metavar="DIR", help="their noise files")
    run.add_argument("--traces", type=Path, metavar="DIR", help="trace packs for splice mode")
    run.add_argument("-n", type=int, default=1, metavar="JOBS", help="processes that share the run")
    add_limits(run)
    run.add_argument("--xfails", type=Path, metavar="FILE", help="expected failures")
    run.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the report")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")

    listing = command(commands, "list", _list, "print case ids")
    add_selection(listing)
    listing.add_argument("--all", action="store_true", help="every variant, sd1 too")

    show = command(commands, "show", _show, "print what a golden holds")
    show.add_argument("case", metavar="CASE", help="component/variant/scenario")
    show.add_argument("--probes", action="store_true", help="every probe, in order of execution")

    command(commands, "ports", _ports, "print the ports that can be named")

    cli_smoke.add_command(commands)
    cli_weights.add_commands(commands)
    cli_golden.add_commands(commands)
    cli_mutants.add_commands(commands)
    cli_bench.add_commands(commands)
    return parser


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
        for m in sorted(split(mode) or [], key=MODES.index)
        for d in split(dtype) or []
    ]


def default_modes(hello: Hello, packs: Path | None = None) -> str:
    """Return both modes, or trace alone where nothing could be spliced.

    Args:
        hello: What the port offers.
        packs: Folder of trace packs, or None.
    """
    possible = hello.probes and hello.replace and (packs is not None or have_oracle())
    return ",".join(MODES) if possible else TRACE


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
    cases, variant = cli_weights.cases_of(arguments)
    arguments.xfails = Xfails.read(arguments.xfails) if arguments.xfails else None
    job = Job(arguments.port, limits_of(arguments), arguments.traces)
    runner = job.runner()
    try:
        return _judge(arguments, cases, job, runner, variant)
    finally:
        close(runner.port)


def _judge(
    arguments: argparse.Namespace,
    cases: list[Case],
    job: Job,
    runner: Runner,
    variant: FileVariant | None,
) -> int:
    cases = offered(cases, runner.hello, named=split(arguments.component) or [])
    mode = arguments.mode or default_modes(runner.hello, arguments.traces)
    runs = executions(arguments.dtype, arguments.device, arguments.backend, mode, runner.hello)
    judged = list(items(cases, runs))
    ids = [execution.item_id(case) for case, execution in judged]
    witness, slices = cli_weights.slices_of(arguments, runner, variant)
    ids += [execution.item_id(case) for case, execution in slices]
    results = Results(
        arguments.out,
        runner.hello,
        arguments.port,
        scope_of(judged) + (f"; {variant.text}" if variant else ""),
        resume=ids if arguments.resume else None,
        xfails=arguments.xfails,
        options=_options(arguments),
        weights=variant.facts() if variant else None,
    )
    if variant is not None:
        live = oracle_module("conformance.live_goldens")
        live.record_missing(cases, {run.dtype for run in runs}, partial(print, flush=True))
    done = {line["case"] for line in results.lines}
    total = len(ids)
    if done:
        print(f"{len(done)} of {total} cases are taken over from the run in {arguments.out}")
    left = [(case, run) for case, run in judged if run.item_id(case) not in done]
    quiet = not sys.stderr.isatty()
    with tqdm(total=total, initial=len(done), disable=quiet, unit="case") as bar:
        report = partial(_report, results, bar, total)
        if arguments.n > 1:
            run_parallel(job, left, arguments.n, report)
        else:
            for case, execution in left:
                report(runner.run(case, execution).as_json())
        runner.release()
        for case, execution in slices:
            if witness is not None and execution.item_id(case) not in done:
                report(witness.run(case, execution).as_json())
    summary = results.close(runner, {case.id: case for case in cases})
    print("\n".join(verdict_lines(summary)))
    print(f"  report {arguments.out / 'index.html'}")
    return int(exit_code(summary))


def _report(results: Results, bar: Any, total: int, line: dict[str, Any]) -> None:
    """Add a case line to the results, and say on the terminal or in a log what came of it."""
    line = results.add(line)
    bar.update()
    text = f"{line['verdict']:5s} {_ratio_text(line)} {line['case']}"
    if bar.disable:
        print(f"[{len(results.lines)}/{total}] {text}", flush=True)
    elif line["verdict"] != "pass":
        bar.write(text)
    if line["verdict"] in {"fail", "error", "skip", "xfail"}:
        for text in [line["message"], *line["detail"].splitlines()]:
            bar.write(f"      {text}", file=sys.stdout if bar.disable else None)


def _options(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return what has to be said again to run one of the cases again."""
    given = [("--traces", arguments.traces), ("--weights", arguments.weights)]
    given += [("--files", arguments.files), ("--witness", arguments.witness)]
    given.append(("--witness-inputs", arguments.witness_inputs))
    words = [word for name, value in given if value for word in (name, str(value))]
    return (*words, "--ema") if arguments.ema else tuple(words)


def offered(cases: list[Case], hello: Hello, named: list[str]) -> list[Case]:
    """Leave out the cases that a port does not offer.

    Args:
        cases: Selected.
        hello: What the port offers.
        named: Components asked for; one that is named without a wildcard is a skip.

    Raises:
        UsageError: It offers none of them.
    """
    own = {c.id for c in cases if hello.offers(c.component, c.variant.name)}
    if own:
        return [c for c in cases if c.id in own or c.component in named]
    message = (
        f"{hello.name} offers {', '.join(hello.components) or 'no component'}, variants "
        f"{', '.join(hello.variants)}: "
        "nothing of that is selected; choose with --component and --variant"
    )
    raise UsageError(message)


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
    if arguments.probes:
        print("\n".join(golden.asked))
        return 0
    print(f"{case.id}\nhunts   {golden.hunts}\nlimit   {LIMIT:g}")
    for name, facts in golden.inputs.items():
        value = f" {shorten(str(facts['value']), 100)}" if "value" in facts else ""
        print(
            f"input   {name} {facts['dtype']} {tuple(facts['shape'])} from {facts['recipe']}{value}"
        )
    for name, shape in golden.output_shapes.items():
        print(f"output  {name} {shape}, {_output_text(golden, name)}")
    if golden.probes:
        what = "probes and steps of outputs, " if golden.sketched else ""
        print(f"probes  {len(golden.probes)}, {what}{golden.probes[0]} to {golden.probes[-1]}")
    for arithmetic, noise in golden.noise.items():
        outputs = ", ".join(f"{n} {v[0]:.2g}" for n, v in golden.output_noise[arithmetic].items())
        told = f", output {outputs}" if outputs else ""
        print(f"noise   {arithmetic}: median of the probes {np.median(noise):.2g}{told}")
    print("from    " + ", ".join(f"{k} {v}" for k, v in golden.provenance.items()))
    return 0


def _output_text(golden: Golden, name: str) -> str:
    """Describe an output of a golden in words."""
    if name in golden.sketched:
        steps = sum(golden.sketched_output(row) == name for row in golden.probes)
        return f"kept as sketches, {steps} of them" if steps else "not kept"
    if name in golden.pictures:
        return "judged by the port's own image"
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


if __name__ == "__main__":
    sys.exit(main())
