"""What the suite itself costs: starting, collecting, watching, judging, and memory of workers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from conformance.bench.interleave import Clock, Timed, interleaved
from conformance.bench.record import Reference, Row
from conformance.case import Case, find_case, select_cases
from conformance.errors import SuiteError
from conformance.execution import Execution
from conformance.golden import SPLICE, TRACE, Golden
from conformance.golden_files import load_golden
from conformance.judge import judge_outputs, judge_probes
from conformance.port import Arrays, Component, resolve
from conformance.runner import Runner
from conformance.traces import have_oracle

PORT = "sd1_impl"
MATRIX = Path(__file__).parents[2] / "tests" / "test_conformance.py"
"""There in a checkout alone."""

HELP_SECONDS, LIST_SECONDS = 0.3, 1.0
TRACE_RATIO, SPLICE_RATIO = 1.15, 1.3
"""Of a call that nobody watches, at the published size."""
OWN_SHARE = 0.25
"""Of the bytes of the published size's weights, what a worker may have for itself."""

BARE = "bare"
_NO_TESTS = 5
"""pytest's exit code where every item was left out."""
_WORKERS = 2


@dataclass(frozen=True)
class Plan:
    """What is measured of a variant.

    Attributes:
        watched: Case ids, and how often each is called in every way.
        starts: How often each command is started.
        collections: How often the matrix is collected.
        held: Id of the case whose network workers hold.
        goals: Whether the goals are meant for this size.
    """

    watched: Mapping[str, int]
    starts: int
    collections: int
    held: str
    goals: bool


PLANS = {
    "tiny": Plan({"unet/tiny/base": 5}, 3, 1, "unet/tiny/base", goals=False),
    "sd1": Plan({"unet/sd1/base": 7, "unet/sd1/latent64": 2}, 7, 3, "unet/sd1/base", goals=True),
}
"""By variant; `tiny` takes about a minute."""


Step = tuple[str, Callable[[], list[Row]]]


def steps(plan: Plan) -> list[Step]:
    """Return what there is to measure: what each is called, and what measures it."""
    collecting: list[Step] = [("collecting the matrix", partial(collection, plan.collections))]
    return [
        ("starting commands", partial(start_up, plan.starts)),
        *(collecting if can_collect() else []),
        *(
            (f"watching {name}", partial(watching, name, repeat, goals=plan.goals))
            for name, repeat in plan.watched.items()
        ),
        ("judging items", items),
        ("holding weights", partial(memory, plan.held, goals=plan.goals)),
    ]


def start_up(repeat: int) -> list[Row]:
    """Time commands that only print, in fresh processes with compiled modules at hand."""
    goals = {"--help": HELP_SECONDS, "list": LIST_SECONDS}
    command = [sys.executable, "-m", "conformance"]
    with TemporaryDirectory(prefix="sd1-bench-") as scratch:
        return [
            _started(f"start-up/{words}", [*command, words], Path(scratch), repeat + 1)[0](goal)
            for words, goal in goals.items()
        ]


def can_collect() -> bool:
    """Say whether the matrix is there, and what collects it."""
    return MATRIX.exists() and importlib.util.find_spec("pytest") is not None


def collection(repeat: int) -> list[Row]:
    """Time how pytest collects the default matrix, alone and in two workers that find no item."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(MATRIX)]
    with TemporaryDirectory(prefix="sd1-bench-") as scratch:
        alone, text = _started("collect", [*command, "--collect-only"], Path(scratch), repeat + 1)
        empty = [*command, "-n", str(_WORKERS), "-k", "no_item_has_this_name"]
        shared, _ = _started(f"collect-{_WORKERS}-workers", empty, Path(scratch), repeat, _NO_TESTS)
    found = text.splitlines()[-1].split("/")[0].split()[0]
    return [alone(items=int(found)), shared()]


def _started(
    name: str, command: Sequence[str], scratch: Path, repeat: int, code: int = 0
) -> tuple[Callable[..., Row], str]:
    """Run a command until it ends; of several runs the first is not counted.

    Args:
        name: Of the row.
        command: The command.
        scratch: Where compiled modules are kept: who runs first, compiles.
        repeat: How often it is run.
        code: How it must end.

    Returns:
        What makes its row, given a goal or facts; what the command printed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(scratch)
    taken = []
    for _ in range(repeat):
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(  # noqa: S603 - ours
            command, env=environment, capture_output=True, text=True, check=False
        )
        after, seconds = os.times(), time.perf_counter() - start
        if done.returncode != code:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            message = f"{' '.join(command)} ended with {done.returncode}, not {code}: {last}"
            raise SuiteError(message)
        cpu = sum(after[i] - before[i] for i in (2, 3))  # of children: user, system
        taken.append(Timed(seconds, cpu))
    return partial(_row, name, taken[1:] or taken), done.stdout


def _row(
    name: str,
    taken: Sequence[Timed],
    goal: float | None = None,
    beside: Sequence[Timed] | None = None,
    **facts: Any,
) -> Row:
    """Make a row of seconds; a goal is for the seconds, or for the ratio to what is beside them."""
    facts["cpu seconds"] = float(np.median([t.cpu for t in taken]))
    if goal is not None:
        facts["goal"] = goal
    reference = None
    if beside is not None:
        reference = Reference(BARE, tuple(t.seconds for t in beside))
        ratios = [own.cpu / other.cpu for own, other in zip(taken, beside, strict=True)]
        facts["cpu ratio"] = float(np.median(ratios))
    return Row.measured(name, "s", [t.seconds for t in taken], reference=reference, facts=facts)


def watching(case_id: str, repeat: int, *, goals: bool) -> list[Row]:
    """Time calls of a network that nobody watches, that are watched, and that are overwritten.

    Watching is what the call itself takes longer: hooks and copies of all probes that a run asks
    for. Judging is what the engine does with them afterwards.

    Args:
        case_id: The case.
        repeat: Rounds, each with one call of every kind.
        goals: Whether the goals are meant for it.

    Returns:
        Rows of seconds; `bare` is the reference of the others.
    """
    case = find_case(case_id)
    golden, inputs = load_golden(case), case.inputs()
    component = resolve(PORT).load(case.component, case.variant, case.weights(), "float32", "cpu")
    outputs, probes = component.run(inputs, golden.asked)
    calls = ways(component, inputs, golden, outputs, probes)
    taken = interleaved({case_id: calls}, repeat, Clock(), lambda: None)[case_id]
    facts = {
        "probes": len(probes),
        "probe bytes": sum(array.nbytes for array in probes.values()),
    }
    wanted = {TRACE: TRACE_RATIO, SPLICE: SPLICE_RATIO} if goals else {}
    return [
        _row(f"watch/{case_id}:{BARE}", taken[BARE]),
        *(
            _row(f"watch/{case_id}:{name}", taken[name], wanted.get(name), taken[BARE], **facts)
            for name in calls
            if name != BARE
        ),
    ]


def ways(
    component: Component, inputs: Arrays, golden: Golden, outputs: Arrays, probes: Arrays
) -> dict[str, Callable[[], object]]:
    """Return the kinds of calls that `watching` times.

    Args:
        component: The loaded network.
        inputs: Of the case.
        golden: Of the case: says which probes are asked for.
        outputs: What the component computes, to judge.
        probes: The same of its probes; in splice mode they are put in.
    """

    def judge() -> None:
        judge_probes(golden, probes, "float32")
        judge_outputs(golden, outputs, "float32")

    return {
        BARE: lambda: component.run(inputs),
        TRACE: lambda: component.run(inputs, golden.asked),
        SPLICE: lambda: component.run(inputs, golden.asked, probes),
        "judging": judge,
    }


def items() -> list[Row]:
    """Time items of a small matrix: the first case of every component of `tiny`, float32.

    Splice mode needs the oracle; each item is run twice, and the second counts: values of the
    oracle are in the cache, a network is loaded.
    """
    runner = Runner(resolve(PORT))
    taken: dict[str, list[Timed]] = {}
    for case in small_matrix():
        modes = [SPLICE, TRACE] if case.has_splice_mode and have_oracle() else [TRACE]
        for mode in modes:
            run = Execution(mode=mode).for_case(case)
            runner.run(case, run)
            cpu = time.process_time()
            result = runner.run(case, run)
            if result.verdict not in {"pass", "warn"}:
                message = f"{run.item_id(case)}: {result.verdict}: {result.message}"
                raise SuiteError(message)
            own = Timed(result.seconds, time.process_time() - cpu)
            taken.setdefault(f"item/{kind(case)}:{mode}", []).append(own)
    return [_row(name, own) for name, own in taken.items()]


def small_matrix() -> list[Case]:
    """Return the first case of every component."""
    found: dict[str, Case] = {}
    for case in select_cases(variants=["tiny"]):
        found.setdefault(case.component, case)
    return list(found.values())


def kind(case: Case) -> str:
    """Return what a case's component is: `network`, `scheduler`, ..."""
    whole = case.is_network and "/" not in case.component
    return "network" if whole else case.component.partition("/")[0]


def memory(case_id: str, *, goals: bool) -> list[Row]:
    """Measure what several workers need that hold the same network, and how long each loads it.

    Args:
        case_id: Of the network.
        goals: Whether the goal is meant for it.

    Returns:
        Bytes that are a worker's own, where the system tells; seconds of loading.
    """
    case = find_case(case_id)
    size = 4 * case.weights().parameter_count()
    command = [sys.executable, "-m", "conformance.bench.worker", PORT, case_id]
    workers: list[subprocess.Popen[str]] = []
    told: list[dict[str, Any]] = []
    try:
        for _ in range(_WORKERS):  # one after the other: the first may have to write the weights
            pipe = subprocess.PIPE
            workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))  # noqa: S603 - ours
            line = workers[-1].stdout.readline() if workers[-1].stdout else ""
            if not line:
                message = f"a worker could not hold the network of {case_id}"
                raise SuiteError(message)
            told.append(json.loads(line))
    finally:
        for worker in workers:
            worker.communicate()
    name = f"{case.component}/{case.variant.name}[float32]"
    later = told[1:]
    loads = [Timed(t["seconds"], t["cpu seconds"]) for t in later]
    rows = [_row(f"load/{name}", loads, first=told[0]["seconds"])]
    own = [t["own bytes"] for t in told if t["own bytes"] is not None]
    if own:
        facts: dict[str, Any] = {"weights": size, "workers": _WORKERS}
        facts |= {"goal": OWN_SHARE * size} if goals else {}
        rows.append(Row.measured(f"memory/{name}:own", "bytes", own, facts=facts))
    return rows


def met(row: Row) -> bool | None:
    """Say whether a row meets its goal; None where there is none."""
    goal = row.facts.get("goal")
    if goal is None:
        return None
    found = float(np.median(row.ratios)) if row.reference else row.value
    return bool(found <= goal)
