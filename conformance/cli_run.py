"""`sd1-conformance run`: judging a port."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from conformance import cli_diff, cli_weights
from conformance.case import Case
from conformance.checkpoints import FileVariant
from conformance.choice import default_modes, executions, lacks_oracle, not_applying, scope_of
from conformance.cli_common import (
    Listed,
    add_limits,
    add_selection,
    command,
    given,
    jobs,
    limits_of,
    oracle_module,
)
from conformance.errors import SuiteError, UsageError
from conformance.execution import MEMORY, SDPA, Execution, items
from conformance.memory_choice import Wanted, cases_and_budgets
from conformance.offered_cases import offered
from conformance.parallel import Job, Report, run_parallel
from conformance.port import close
from conformance.ray_executor import greet_on_ray, run_on_ray, session
from conformance.regression.control import control_of
from conformance.report.text import counted
from conformance.requirements import ORACLE, adding
from conformance.results import DEFAULT_OUT, Results
from conformance.runner import Runner
from conformance.shards import Selection, Shard
from conformance.summary import exit_code
from conformance.witness_rows import WITNESSES
from conformance.xfails import Xfails

CONTROL_HELP = "the reference, in the same job; default diffusers but on the CPU; none: without"
DTYPE = "float32"
DEVICE = "cpu"
EXECUTORS = ("local", "ray")
EXECUTOR_HELP = "where: this machine, or the Ray cluster that RAY_ADDRESS names (extra `ray`)"


def add_command(commands: Any) -> None:
    """Declare the command."""
    run = command(commands, "run", _run, "judge a port")
    run.add_argument("port", nargs="?", default="sd1_impl", metavar="PORT", help="default sd1_impl")
    add_selection(run)
    every = f"(mode {MEMORY}: all); globs too"
    run.add_argument("--dtype", action=Listed, help=f"arithmetics, default {DTYPE} {every}")
    where = f"devices of the port, default {DEVICE}; globs"
    run.add_argument("--device", action=Listed, help=where)
    run.add_argument("--backend", action=Listed, help=f"backends, default {SDPA} {every}")
    modes = "default trace, splice, where possible; globs"
    run.add_argument("--mode", action=Listed, help=modes)
    weights, inputs, packs = (
        given(option, what, Path)
        for option, what in (
            ("--weights", "a file or folder"),
            ("--witness-inputs", "a folder"),
            ("--traces", "a folder"),
        )
    )
    run.add_argument("--weights", type=weights, metavar="PATH", help="your own, in any layout")
    cli_weights.add_choice(run)
    run.add_argument("--witness", choices=WITNESSES, help="judge published slices of it too")
    run.add_argument("--witness-inputs", type=inputs, metavar="DIR", help="their noise files")
    run.add_argument("--traces", type=packs, metavar="DIR", help="trace packs for splice mode")
    part = given("--shard", "a part, such as 1/4", str)
    run.add_argument("--shard", type=part, metavar="I/N", help="one part of N, by cost")
    run.add_argument(
        "-n", type=jobs, default=0, metavar="JOBS", help="processes that share the run"
    )
    run.add_argument("--executor", choices=EXECUTORS, default=EXECUTORS[0], help=EXECUTOR_HELP)
    add_limits(run)
    control = given("--control", "a port", str)
    run.add_argument("--control", type=control, metavar="PORT", help=CONTROL_HELP)
    cli_diff.add_baseline(run)
    known = given("--xfails", "a file", Path)
    run.add_argument("--xfails", type=known, metavar="FILE", help="expected failures")
    folder = given("--out", "a folder", Path)
    run.add_argument("--out", type=folder, default=DEFAULT_OUT, help="folder of the report")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")


def _require_weights(path: Path) -> None:
    """Refuse a PATH of weights at which nothing is.

    Raises:
        UsageError: Nothing is there.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        message = (
            f"--weights {path} is missing: give a *.safetensors or *.ckpt of the CompVis layout, "
            "or a folder of the diffusers layout"
        )
        raise UsageError(message) from None
    except OSError:
        return  # whoever reads it says what is wrong


def _run(arguments: argparse.Namespace) -> int:
    if arguments.device is None:
        arguments.device = DEVICE
    if arguments.weights is not None:
        _require_weights(arguments.weights)
    cases, variant, budgets = cases_and_budgets(arguments)
    arguments.xfails = Xfails.read(arguments.xfails) if arguments.xfails else None
    arguments.shard = Shard.parse(arguments.shard) if arguments.shard else None
    job = Job(arguments.port, limits_of(arguments), arguments.traces)
    on_ray = arguments.executor == "ray"
    with session(arguments.n) if on_ray else nullcontext():
        runner = job.runner()
        try:
            machine = None
            if on_ray:
                runner.hello, machine = greet_on_ray(job, on_gpu=arguments.device == "cuda")
            return _judge(arguments, cases, budgets, job, runner, variant, machine)
        finally:
            close(runner.port)


def _judge(
    arguments: argparse.Namespace,
    cases: list[Case],
    budgets: Wanted | None,
    job: Job,
    runner: Runner,
    variant: FileVariant | None,
    machine: dict[str, str] | None,
) -> int:
    held = budgets.items(runner.hello) if budgets else []
    cases = [] if held and not cases else offered(cases, runner.hello, arguments)
    mode = arguments.mode or default_modes(runner.hello, arguments.traces)
    dtype, backend = arguments.dtype or DTYPE, arguments.backend or SDPA
    runs = executions(dtype, arguments.device, backend, mode, runner.hello, arguments.traces)
    judged = [*items(cases, runs), *held]
    witness, slices = cli_weights.slices_of(arguments, runner, variant)
    selection = Selection([*judged, *slices], arguments.shard)
    own = [(case, run) for case, run in judged if run.item_id(case) in selection.own]
    computed = [(case, run) for case, run in own if run.mode != MEMORY]
    control = control_of(arguments.control, arguments.port, computed, job)
    without = lacks_oracle(judged, arguments.mode, runner.hello)
    told = [not_applying(cases, runs), variant.text if variant else "", without]
    results = Results(
        arguments.out,
        runner.hello,
        arguments.port,
        "; ".join(text for text in (scope_of(judged), *told) if text),
        resume=selection.own if arguments.resume else None,
        machine=machine,
        xfails=arguments.xfails,
        options=_options(arguments),
        weights=variant.facts() if variant else None,
        control=control.spec if control else None,
        baseline=cli_diff.baseline_of(arguments, runner.hello.name),
        shard=selection.shard,
        items=selection.facts,
    )
    if variant is not None:
        _record_goldens(computed, {run.dtype for run in runs})
    if told[0]:
        print(f"  {told[0]}")
    if without:
        print(f"  {without}; install it with {adding(ORACLE)}")
    done = _taken_over(results, selection, resume=arguments.resume)
    watched = {line["case"] for line in results.control}
    total = len(selection.own) + (len(control.items) if control else 0)
    wanted = selection.own - done
    left = [(case, run) for case, run in judged if run.item_id(case) in wanted]
    quiet = not sys.stderr.isatty()
    bar_of = partial(tqdm, initial=len(done) + len(watched), disable=quiet, unit="item")
    with _stoppable(results, selection), bar_of(total=total) as bar:
        report = partial(_report, results, bar, selection, {})
        if arguments.n > 1 or arguments.executor == "ray":
            _share(arguments, job, left, report)
        else:
            for case, execution in left:
                report(runner.run(case, execution).as_json())
        runner.release()
        for case, execution in slices:
            if witness is not None and execution.item_id(case) in wanted:
                report(witness.run(case, execution).as_json())
        if control is not None:
            control.run(watched, partial(_share, arguments), report)
    tell = partial(cli_diff.print_verdict, results.lines)
    summary = results.close(runner, {case.id: case for case in cases}, tell)
    print(f"  report {arguments.out / 'index.html'}")
    return int(exit_code(summary))


def _record_goldens(items: list[tuple[Case, Execution]], dtypes: set[str]) -> None:
    """Record the goldens of the user's own weights that are not kept yet."""
    live = oracle_module("conformance.recording.live_goldens")
    own = {case.id: case for case, _ in items}
    live.record_missing(list(own.values()), dtypes, partial(print, flush=True))


def _taken_over(results: Results, selection: Selection, *, resume: bool) -> set[str]:
    """Return the items that an earlier run has done, and say how many, or that there is none."""
    done = {line["case"] for line in results.lines}
    if resume and not results.resumed:
        print(f"nothing to resume in {results.out}: starting anew")
    if done:
        taken = _so_many_are(len(done), len(selection.own))
        print(f"{taken} taken over from the run in {results.out}")
    return done


def _so_many_are(done: int, total: int) -> str:
    """Begin a sentence about some of the items of a run."""
    items = counted(total, "item")
    return f"{done} of {items} {'is' if 1 in (done, total) else 'are'}"


@contextmanager
def _stoppable(results: Results, selection: Selection) -> Iterator[None]:
    """Say what is left of a run that Ctrl-C or SIGTERM breaks off, and how to go on.

    Raises:
        SuiteError: It was broken off.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        done = _so_many_are(len(results.lines), len(selection.own))
        message = (
            f"interrupted: {done} in {results.out}: go on with --resume; "
            f"`sd1-conformance report {shlex.quote(str(results.out))}` makes their page"
        )
        raise SuiteError(message) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _share(
    arguments: argparse.Namespace, job: Job, left: list[tuple[Case, Execution]], report: Report
) -> None:
    """Run items in processes of their own, here or on a cluster."""
    if arguments.executor == "ray":
        run_on_ray(job, left, arguments.n, report)
    else:
        run_parallel(job, left, max(1, arguments.n), report)


def _report(
    results: Results,
    bar: Any,
    selection: Selection,
    broke: dict[str, str],
    line: dict[str, Any],
) -> None:
    """Add a case line to the results, and say on the terminal or in a log what came of it.

    Args:
        results: Take the line.
        bar: Moves on.
        selection: Knows the place of the line.
        broke: By message of an error, the first item that ended in it; later ones name that item.
        line: Of a case, or of the control.
    """
    control = line["type"] == "control"
    line = (results.add_control if control else results.add)(selection.placed(line))
    bar.update()
    text = f"{line['verdict']:5s} {_ratio_text(line)} {line['case']}"
    message = line["message"].replace(line["case"].partition("[")[0], "")
    is_error = line["verdict"] == "error" and message
    first = broke.setdefault(message, line["case"]) if is_error else line["case"]
    if first != line["case"]:
        text += f": as in {first}"
    if bar.disable:
        place = "control" if control else f"{len(results.lines)}/{len(selection.own)}"
        print(f"[{place}] {text}", flush=True)
    elif line["verdict"] != "pass":
        bar.write(text)
    if line["verdict"] != "pass" and first == line["case"]:
        for text in filter(None, [line["message"], *line["detail"].splitlines()]):
            bar.write(f"      {text}", file=sys.stdout if bar.disable else None)


def _options(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return what has to be said again to run one of the cases again."""
    given = [("--traces", arguments.traces), ("--weights", arguments.weights)]
    given += [("--files", arguments.files), ("--witness", arguments.witness)]
    given.append(("--witness-inputs", arguments.witness_inputs))
    words = [word for name, value in given if value for word in (name, str(value))]
    return (*words, "--ema") if arguments.ema else tuple(words)


def _ratio_text(line: dict[str, Any]) -> str:
    return "      -" if line["ratio"] is None else f"{line['ratio']:7.2f}"
