"""Stability modes: a port judged against another run of itself (docs/determinism.md).

`repeat`, `fresh` and `state` ask for the same bits. `threads` and `batch` may change the order of
sums, and so are judged in units of the reference's noise, by the limit as ever.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from conformance import determinism, tolerance
from conformance.case import Case
from conformance.compare import Record
from conformance.contract import require_unchanged
from conformance.divergence import FAULT, describe
from conformance.errors import UnsupportedError
from conformance.execution import STABILITY, Execution
from conformance.golden_files import drawn_inputs
from conformance.judge import TIME_PROJ
from conformance.offer import supplied_embedding
from conformance.result import Result
from conformance.stability_modes import Run, Subject
from conformance.stability_processes import in_own_process
from conformance.stability_rows import Rows, Ruler, units_of
from conformance.training import TRAININGS

if TYPE_CHECKING:
    from conformance.runner import Runner

_REPEAT, _FRESH, _STATE, _THREADS, _BATCH = STABILITY

EXACT_MODES = (_REPEAT, _FRESH, _STATE)
"""Those in which bits must agree."""


def judge(runner: Runner, case: Case, execution: Execution) -> Result:
    """Judge a case against other runs of the same port.

    Args:
        runner: Holds the port.
        case: The case.
        execution: Its mode is one of `execution.STABILITY`.

    Returns:
        The result: records of the first comparison that fails, or of the worst of all.

    Raises:
        UnsupportedError: The mode says nothing of this case or port; says why.
        PortError: The port does not answer as it should, or changes its inputs.
    """
    subject, digests = subject_of(runner, case, execution)
    ruler = Ruler(
        {} if case.exact else units_of(subject.golden, execution.dtype),
        execution.dtype,
        frozenset(subject.golden.output_shapes),
        exact=execution.mode in EXACT_MODES or case.exact,
    )
    result = Result(case, execution, "pass")
    worst: dict[str, tuple[Record, str]] = {}
    with closing(subject.runs()) as runs:
        first = next(runs).rows
        for run in runs:
            records = ruler.compare(run.before or first, run.rows)
            if any(record.verdict == "fail" for record in records):
                cause, records = _narrowed(ruler, first, run, records)
                _fail(result, cause, records)
                if execution.mode == _REPEAT and not in_own_process(runner):
                    result.detail = _settings()
                break
            for record in records:
                before, _ = worst.setdefault(record.name, (record, run.changed))
                if record.ratio > before.ratio:
                    worst[record.name] = record, run.changed
    require_unchanged(case, subject.inputs, digests)
    if result.verdict != "fail":
        result.records = [record for record, _ in worst.values()]
        warned = [(r, changed) for r, changed in worst.values() if r.verdict == "warn"]
        if warned:
            result.verdict, result.message = "warn", _nearly(*max(warned, key=lambda w: w[0].ratio))
    return result


def subject_of(runner: Runner, case: Case, execution: Execution) -> tuple[Subject, dict[str, str]]:
    """Return what is run, and the digests of its inputs.

    Raises:
        UnsupportedError: The mode says nothing of this case, or the golden nothing of this dtype.
    """
    if reason := why_not(case, execution.mode):
        raise UnsupportedError(reason)
    golden = runner.golden(case)
    if not case.exact and (reason := golden.why_not_offered(execution.dtype) or ""):
        raise UnsupportedError(reason)
    inputs, digests = drawn_inputs(case, golden)
    island = execution.dtype == "float64" and TIME_PROJ in golden.probes
    supplied = supplied_embedding(runner.hello, case, golden, execution, inputs)
    if island and supplied is None and execution.mode not in EXACT_MODES:
        message = (
            f"{runner.hello.name} may compute its timestep embedding in float32 and has no "
            "`replace`: in float64 its rounding would be judged alone"
        )
        raise UnsupportedError(message)
    return Subject(runner, case, execution, golden, inputs), digests


def why_not(case: Case, mode: str) -> str:
    """Say why a mode says nothing of a case, whatever the port; empty where it does."""
    if case.refused:
        return f"the reference computes nothing here: {case.refused}"
    if case.exact and mode == _THREADS:
        return "a tokenizer adds nothing up that threads could share"
    if case.component in TRAININGS and mode == _BATCH:
        return "a loss is one number of the whole batch"
    return ""


def _narrowed(
    ruler: Ruler, first: Rows, run: Run, records: list[Record]
) -> tuple[str, list[Record]]:
    """Return what was changed, as narrow as can be told, and the records of that run."""
    for make in run.narrower:
        own = make()
        found = ruler.compare(own.before or first, own.rows)
        if any(record.verdict == "fail" for record in found):
            return own.changed, found
    return run.changed, records


def _nearly(record: Record, changed: str) -> str:
    """Say what a result that is within the limit, but only just, was changed by."""
    measured = f"ratio {record.ratio:.3g}, limit {tolerance.LIMIT:g}"
    return f"nearly too far: {changed}, most at {record.name}, {measured}"


def _settings() -> str:
    """Say which settings of this process may let results differ from call to call."""
    found = [f"  {deviation}" for deviation in determinism.check()]
    return "\n".join(["settings of this process that a run which repeats needs:", *found])


def _fail(result: Result, cause: str, records: list[Record]) -> None:
    """Make a result a failure: named by the first row, in execution order, that differs."""
    index = next(i for i, record in enumerate(records) if record.verdict == "fail")
    record = records[index]
    found: dict[str, Any] = {
        "case": result.item_id,
        "probe": record.name,
        "after": records[index - 1].name if index else None,
        "ratio": record.ratio,
        "limit": tolerance.LIMIT,
        "kind": FAULT,
        "hint": f"{cause}: {record.note}",
    }
    result.verdict, result.records, result.first_divergence = "fail", records, found
    result.message = describe(found)
