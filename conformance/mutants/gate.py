"""The gate: every mutant must be killed and named, every null mutant must survive."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import torch

from conformance.case import Case, all_cases
from conformance.errors import SuiteError
from conformance.evidence.collect import Answer
from conformance.execution import Execution
from conformance.explain import TESTED, failing_items, witnesses
from conformance.fingerprint import Known, Marks, marks_of, rank
from conformance.golden import SPLICE, TRACE, Golden
from conformance.golden_files import load_golden
from conformance.memory.cases import memory_cases
from conformance.memory.footprint import Footprint
from conformance.mutants import held, unstable
from conformance.mutants.answer import (
    Asked,
    Reference,
    answered,
    expected_probe,
    with_steps,
)
from conformance.mutants.catalogue import NOT_RUN, find_mutants
from conformance.mutants.mutant import Mutant
from conformance.mutants.named import port_spec
from conformance.mutants.port import MutantPort
from conformance.port import Port
from conformance.result import Result
from conformance.runner import Runner
from conformance.summary import earliest
from conformance.tolerance import LIMIT, badness
from conformance.traces import Traces, Values, find_traces

OTHER_SEED = 2
"""Of the weights and inputs on which hints are scored: their fingerprints were taken on others."""

SIZE, OTHER_SIZE = "tiny", "odd"
"""Fingerprints are taken on the one and scored on the other."""

_REGIMES = ("lowvar", "dense", "sharp")
_PANEL = {
    "unet": ("t999", "tsamples", "oddsize"),
    "text_encoder": ("empty", "tokens75", "several-eos"),
    "vae_encoder": ("nonsquare", "oddsize", "batch3"),
    "vae_decoder": ("nonsquare", "oddsize", "batch3"),
}
"""Scenarios of a network's fingerprint, besides `base` in several regimes."""


@dataclass
class Trial:
    """What came of one mutant.

    Attributes:
        id: The mutant.
        row: Its entry of mutants.json.
        marks: Its fingerprint.
        error: What broke in the suite itself, if anything did.
    """

    id: str
    row: dict[str, Any] = field(default_factory=dict)
    marks: Marks = field(default_factory=dict)
    error: str = ""


def cases_of(mutant: Mutant) -> list[Case]:
    """Return the cases that hunt a mutant."""
    known = {case.id: case for case in (memory_cases() if mutant.heavy else all_cases())}
    unknown = [name for name in mutant.case_ids if name not in known]
    if unknown:
        message = f"mutant {mutant.id} is hunted by {unknown[0]}, which is no case"
        raise SuiteError(message)
    return [known[name] for name in mutant.case_ids]


def executions_of(mutant: Mutant, case: Case) -> list[Execution]:
    """Return how a case is run on a mutant: in its modes, or spliced too, where that can be."""
    spliced = case.has_splice_mode and not mutant.refuses
    modes = mutant.modes or ((SPLICE, TRACE) if spliced else (TRACE,))
    how = Execution(mutant.dtype, backend=mutant.backend)
    return [replace(how, mode=mode).for_case(case) for mode in modes]


def panel(mutant: Mutant, size: str) -> list[tuple[Case, Execution]]:
    """Return what a mutant's fingerprint is taken on.

    Args:
        mutant: The mutant.
        size: Of the networks.
    """
    own = [case for case in all_cases() if case.component == mutant.component]
    if not (own[0].is_network or own[0].is_pipeline or own[0].is_training):
        return [(c, Execution(dtype=mutant.dtype).for_case(c)) for c in own if not c.refused]
    own = [case for case in own if case.variant.size == size]
    if own[0].is_training:
        return [(c, executions_of(mutant, c)[0]) for c in own]
    if own[0].is_pipeline:
        chosen = {"base", "nonsquare", "ddpm"}
        return [(c, executions_of(mutant, c)[0]) for c in own if c.scenario.name in chosen]
    items = []
    for case in own:
        base = case.scenario.name == "base" and case.variant.regime in {"unit", *_REGIMES}
        if base:  # splice mode, where there is one, says all that a trace would
            items.append((case, executions_of(mutant, case)[0]))
        elif case.scenario.name in _PANEL[mutant.component] and case.variant.regime == "unit":
            items.append((case, Execution(dtype=mutant.dtype)))
    return items


def run_items(runner: Runner, items: Iterable[tuple[Case, Execution]]) -> list[dict[str, Any]]:
    """Run items and return their case lines."""
    return [runner.run(case, execution).as_json() for case, execution in items]


class _Quiet(Runner):
    """A runner that does not ask the oracle whether goldens have aged; it remembers what fails."""

    def __init__(self, port: Port, traces: Traces | None = None, port_spec: str = "") -> None:
        super().__init__(port, traces, port_spec)
        self.asks_for_age = False
        self.answers: dict[Asked, Values] = {}

    def conclude(self, result: Result, golden: Golden, answer: Answer) -> None:
        """Weigh the records of a result; see `Runner.conclude`."""
        super().conclude(result, golden, answer)
        if result.verdict == "fail":
            given = Values({**answer.probes}, answer.outputs)
            item = answered(self, result.case, result.execution)
            self.answers[item] = with_steps(golden, given)


def quiet_runner(mutant: Mutant) -> _Quiet:
    """Return a runner of a mutant, which is wrong on purpose: the oracle is not asked each time."""
    return _Quiet(MutantPort(mutant), _traces(), port_spec(mutant.id))


class _Kept:
    """The oracle's values, kept in memory: every mutant of a component asks for the same."""

    def __init__(self) -> None:
        self.traces = find_traces()
        self.values: dict[tuple[str, int], Values] = {}
        self.component = ""

    def __call__(self, case: Case, golden: Golden) -> Values:
        if case.component != self.component:
            self.component = case.component
            self.values.clear()
        key = (case.id, case.seed)
        if key not in self.values:
            self.values[key] = self.traces(case, golden)
        return self.values[key]


@cache
def _traces() -> _Kept:
    """Return the process's one source of oracle values."""
    return _Kept()


def try_mutant(mutant_id: str, marked: bool = True) -> Trial:  # noqa: FBT001, FBT002 - for a pool
    """Hunt one mutant with its cases, and take its fingerprint.

    Args:
        mutant_id: Its id.
        marked: Whether its fingerprint is taken, for which more cases are run.

    Returns:
        The trial, hints left open.
    """
    (mutant,) = find_mutants([mutant_id])
    runner = quiet_runner(mutant)
    cases = cases_of(mutant)
    lines = run_items(runner, [(c, e) for c in cases for e in executions_of(mutant, c)])
    killed_by = [line["case"] for line in lines if _kills(mutant, line)]
    first = earliest(lines)
    nothing = 1.0 if mutant.heavy else _worst_ratio(lines)  # of the budget, which is kept
    ratio = badness(float(first["ratio"])) if first else nothing
    row = {
        "id": mutant.id,
        "component": mutant.component,
        "dtype": mutant.dtype,
        "killed_by": killed_by,
        "expected_probe": None,
        "first_divergence": first,
        "hint_rank": None,
        "confirmed": False if marked else None,
        "ratio": ratio,
    }
    row |= {"heavy": True} if mutant.heavy else {}
    if mutant.null:  # a skip or an error proves nothing
        broken = [line for line in lines if line["verdict"] in {"error", "skip"}]
        return Trial(mutant.id, row, error=broken[0]["message"] if broken else "")
    if mutant.heavy:
        case, execution = cases[0], executions_of(mutant, cases[0])[0]
        row["expected_probe"] = held.expected_block(mutant, case, execution)
        row["confirmed"] = mutant in held.fitting(Footprint.of(lines[0]["memory"]), case, execution)
        return Trial(mutant.id, row)
    if mutant.unstable:  # no fingerprint: the mode itself says what was changed
        row["expected_probe"] = unstable.expected_probe(mutant, cases[0], mutant.modes[0])
        return Trial(mutant.id, row)
    row["expected_probe"] = _expected(mutant, cases, first, runner)
    if not marked:
        return Trial(mutant.id, row)
    size = OTHER_SIZE if cases[0].variant.size == OTHER_SIZE else SIZE
    items = [(c, e) for c, e in panel(mutant, size) if e.item_id(c) not in _ids(lines)]
    lines += run_items(runner, items)
    return Trial(mutant.id, row, marks_of(_of_size(lines, size), mutant.component))


def _ids(lines: list[dict[str, Any]]) -> set[str]:
    return {line["case"] for line in lines}


def _of_size(lines: list[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """Return the lines of networks of a size; what has no size stays."""
    return [line for line in lines if line["variant"].partition("-")[0] in {size, ""}]


def _kills(mutant: Mutant, line: dict[str, Any]) -> bool:
    return line["verdict"] == "fail" or (mutant.refuses and line["verdict"] == "error")


def _worst_ratio(lines: list[dict[str, Any]]) -> float:
    ratios = [badness(float(line["ratio"])) for line in lines if line["ratio"] is not None]
    return max(ratios, default=math.inf)


def _expected(
    mutant: Mutant, cases: list[Case], first: dict[str, Any] | None, runner: Runner
) -> str | None:
    """Compute the expected probe in the case that named the first divergence, or the first case."""
    named = first["case"].partition("[")[0] if first else cases[0].id
    case = next((c for c in cases if c.id == named), cases[0])
    spliced = case.has_splice_mode and not mutant.refuses
    replaced = runner.values(case, load_golden(case)).probes if spliced else None
    return expected_probe(mutant, case, replaced)


def hint_mutant(mutant_id: str, known: list[Known]) -> dict[str, Any]:
    """Score the hints for one mutant on another size and seed.

    Args:
        mutant_id: Its id.
        known: All fingerprints.

    Returns:
        `hint_rank` and `confirmed` of its entry.
    """
    (mutant,) = find_mutants([mutant_id])
    runner = quiet_runner(mutant)
    hunted = [(c, executions_of(mutant, c)[0]) for c in _elsewhere(cases_of(mutant))]
    others = [
        (replace(case, seed=OTHER_SEED), execution) for case, execution in panel(mutant, OTHER_SIZE)
    ]
    items = list(dict.fromkeys([*hunted, *others]))
    lines = run_items(runner, items)
    ranked = rank(marks_of(lines, mutant.component), mutant.component, known)
    place = next((i for i, k in enumerate(ranked, start=1) if k.id == mutant_id), None)
    failing = [
        replace(item, case=replace(item.case, seed=OTHER_SEED))
        for item in failing_items(lines, mutant.component)
    ]
    if place is None or place > TESTED or not failing:
        return {"hint_rank": place, "confirmed": False}
    chosen = [(item.case, item.execution) for item in witnesses(failing)]
    ratio = Reference(mutant, runner.answers).agreement(runner, chosen)
    return {"hint_rank": place, "confirmed": ratio <= LIMIT}


def _elsewhere(cases: list[Case]) -> list[Case]:
    """Return the same scenarios and regimes on the other size and seed, where they exist."""
    known = {case.id: case for case in all_cases()}
    found = []
    for case in cases:
        variant = case.variant.name.replace(SIZE, OTHER_SIZE, 1)
        other = known.get(f"{case.component}/{variant}/{case.scenario.name}")
        if other is not None:
            found.append(replace(other, seed=OTHER_SEED))
    return found


def _in_worker(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a worker: one thread, and no exception that loses the others' work."""
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - named in the report
        return f"{type(error).__name__}: {error}"


def run_gate(
    names: list[str],
    jobs: int,
    report: Callable[[str, dict[str, Any]], None],
    *,
    hints: bool = True,
) -> tuple[dict[str, Any], list[Known]]:
    """Hunt mutants in parallel.

    Args:
        names: Ids or globs; empty for all.
        jobs: Processes.
        report: Told the id and entry of each mutant as it comes, twice: hunted, then hinted at.
        hints: Whether hints are scored, which takes four fifths of the time.

    Returns:
        The contents of mutants.json, and the fingerprints; without hints there are none.
    """
    chosen = find_mutants(names)
    gpu = [m for m in chosen if m.gpu and not torch.cuda.is_available()]
    mutants = {m.id: m for m in chosen if m not in gpu}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # read by the workers when they import torch
    trials: dict[str, Trial] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for mutant_id, trial in _each(pool, [(i, try_mutant, (i, hints)) for i in mutants]):
            trials[mutant_id] = trial if isinstance(trial, Trial) else Trial(mutant_id, error=trial)
            report(mutant_id, trials[mutant_id].row)
        whole = [m for m in mutants.values() if hints and not (m.null or m.unstable)]
        wrong = [m for m in whole if not trials[m.id].error]
        known = [Known(m.id, m.component, m.wrong, trials[m.id].marks) for m in wrong]
        own = {m.component: [k for k in known if k.component == m.component] for m in wrong}
        tasks = [(m.id, hint_mutant, (m.id, own[m.component])) for m in wrong]
        for mutant_id, found in _each(pool, tasks):
            if isinstance(found, str):
                trials[mutant_id].error = found
            else:
                trials[mutant_id].row |= found
            report(mutant_id, trials[mutant_id].row)
    summary = summarise([mutants[i] for i in mutants], trials, gpu)
    return summary | ({} if hints else {"confirmed": None, "hint_top3": None}), known


def _each(
    pool: ProcessPoolExecutor, tasks: list[tuple[str, Callable[..., Any], tuple[Any, ...]]]
) -> Iterator[tuple[str, Any]]:
    futures = {pool.submit(_in_worker, f, *arguments): name for name, f, arguments in tasks}
    for future in as_completed(futures):
        yield futures[future], future.result()


def summarise(mutants: list[Mutant], trials: dict[str, Trial], gpu: list[Mutant]) -> dict[str, Any]:
    """Return the contents of mutants.json."""
    wrong = [m for m in mutants if not m.null]
    rows = {m.id: trials[m.id].row for m in wrong if trials[m.id].row}
    nulls = [m for m in mutants if m.null]
    return {
        "total": len(wrong),
        "killed": sum(bool(row["killed_by"]) for row in rows.values()),
        "localised": sum(localised(m, rows[m.id]) for m in wrong if m.id in rows),
        "confirmed": sum(bool(row["confirmed"]) for row in rows.values()),
        "hint_top3": sum((row["hint_rank"] or 99) <= 3 for row in rows.values()),
        "survivors": [m.id for m in wrong if not rows.get(m.id, {}).get("killed_by")],
        "nulls": {
            "total": len(nulls),
            "killed": [m.id for m in nulls if trials[m.id].row.get("killed_by")],
        },
        "not_run": [
            *({"id": row.id, "reason": row.reason} for row in NOT_RUN),
            *({"id": m.id, "reason": "needs a CUDA device"} for m in gpu),
        ],
        "errors": {i: t.error for i, t in trials.items() if t.error},
        "limit": LIMIT,
        "mutants": [trials[m.id].row for m in mutants if trials[m.id].row],
    }


def localised(mutant: Mutant, row: dict[str, Any]) -> bool:
    """Say whether a mutant was named where it is: at the expected probe, or by its exception."""
    first = row["first_divergence"]
    if mutant.refuses:
        return bool(row["killed_by"])
    return first is not None and first["probe"] == row["expected_probe"]


def passed(summary: dict[str, Any]) -> bool:
    """Say whether no mutant survived, no null mutant was killed and nothing broke."""
    return not (summary["survivors"] or summary["nulls"]["killed"] or summary["errors"])
