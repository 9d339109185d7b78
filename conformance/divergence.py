"""The first divergence of a failing case, and of which kind it is: a fault, or errors adding up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance import tolerance
from conformance.compare import Record
from conformance.golden import SPLICE, Golden
from conformance.hints import hint_for
from conformance.precision import PRECISION, Finding, explained
from conformance.training import GRADIENT

if TYPE_CHECKING:
    from conformance.result import Result

FAULT, ACCUMULATION, UNEXPLAINED = "fault", "accumulation", "unexplained"


@dataclass(frozen=True)
class Local:
    """What splice mode said of a case: the error that each probe makes itself.

    Attributes:
        errors: Relative error by probe.
        fault: The first probe over the limit; None where every one is within.
        rounding: What was found behind the faults, if they are roundings.
    """

    errors: dict[str, float]
    fault: str | None
    rounding: Finding | None = None

    @classmethod
    def of(cls, records: list[Record], rounding: Finding | None = None) -> Local:
        """Take what trace mode wants to know from the records of splice mode."""
        faults = [record.name for record in records if record.verdict == "fail"]
        return cls({r.name: r.err for r in records}, faults[0] if faults else None, rounding)


def first_divergence(
    result: Result, golden: Golden | None = None, local: Local | None = None
) -> dict[str, Any]:
    """Describe the earliest failing record of a failing case.

    Args:
        result: A result with at least one failing record.
        golden: The case's golden; with `local`, for the kind of a trace.
        local: What splice mode said of the same case in the same execution, if it was run.

    Returns:
        The object of summary.json. The kind is `fault` in splice mode, where no error is inherited.
        In trace mode it is `fault` if splice mode found one, `accumulation` if no probe errs by
        more than its own noise and what it inherits account for, else `unexplained`. Without
        splice mode it is `fault` where the ratio jumps by more than the limit over everything
        before it, the shape is wrong or a value is not finite. `gain` and `inherited` are there
        where they are known.
    """
    index = next(i for i, r in enumerate(result.records) if r.verdict == "fail")
    record, before = result.records[index], result.records[:index]
    good = [r.name for r in before if r.verdict != "fail"]
    hint = _hint(result, record)
    found = {
        "case": result.item_id,
        "probe": record.name,
        "after": good[-1] if good else None,
        "ratio": record.ratio,
        "limit": tolerance.LIMIT,
        "kind": FAULT,
        "hint": hint,
    }
    if result.execution.mode == SPLICE:
        return found
    if local is None or golden is None:
        return found | _by_jump(record, before, hint)
    return found | _by_layers(result, golden, local, index, hint)


def _by_jump(record: Record, before: list[Record], hint: str) -> dict[str, Any]:
    """Say of which kind a trace is without splice mode, where it is no fault."""
    highest = max([r.ratio for r in before] + [1.0])
    if not record.ratio <= tolerance.LIMIT * highest:
        return {}
    return {"kind": UNEXPLAINED, "hint": _told("the error grows gradually up to here", hint)}


def _by_layers(
    result: Result, golden: Golden, local: Local, index: int, hint: str
) -> dict[str, Any]:
    """Say of which kind a trace is by what splice mode found, how much grew and was inherited."""
    record, before = result.records[index], result.records[:index]
    inputs = max([r.err for r in before if r.kind == "probe"], default=0.0)
    gain = _quotient(record.err, inputs)
    found: dict[str, Any] = {"gain": gain, "inherited": inherited(record, local)}
    if not math.isfinite(record.err):
        return found  # a wrong shape, or values that are not finite: nothing adds up to that
    if local.fault is None:
        honest = adds_up(result.records, golden, result.execution.dtype)
        found["kind"] = ACCUMULATION if honest else UNEXPLAINED
        how = "; errors add up" if honest else ", but errors grow by more than they should"
        found["hint"] = _told(f"each layer alone is within the limit{how} (gain {gain:.2g})", hint)
    elif local.fault != record.name:
        found["hint"] = _told(f"splice mode finds the fault at {local.fault}", hint)
    return found


def _told(text: str, hint: str) -> str:
    return f"{text}; {hint}".rstrip("; ")


def as_precision(
    divergence: dict[str, Any], rounding: Finding, dtype: str, settings: list[str]
) -> dict[str, Any]:
    """Return a first divergence whose cause is a precision lower than was asked for.

    Args:
        divergence: From `first_divergence`.
        rounding: What was found.
        dtype: What was asked for.
        settings: Those of the environment that lower it.
    """
    return divergence | {"kind": PRECISION, "hint": explained(rounding, dtype, settings)}


def _hint(result: Result, record: Record) -> str:
    """Say what the record itself says, and what usually is the cause."""
    misshapen = record.note.startswith("shape ")
    usual = "" if misshapen else hint_for(record.name, result.case.component)
    if result.case.scenario.asks:
        usual = f"this case asks for {result.case.scenario.asks}, as not in SD v1"
    if result.case.exact:
        usual = f"this text hunts: {result.case.scenario.hunts}"
    return "; ".join(text for text in (record.note, zeros(result.records), usual) if text)


def zeros(records: list[Record]) -> str:
    """Say which failing records hold nothing but zeros where the truth does not, if any do.

    Args:
        records: Of a case, in execution order.
    """
    empty = [r.name for r in records if r.verdict == "fail" and r.max_abs == 0 and r.err > 0]
    if not empty:
        return ""
    gradients = [name for name in empty if name.startswith(GRADIENT)]
    names, cause = (gradients, "detached") if gradients else (empty, "never written")
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]} is all zeros{more}: is something {cause}?"


def _quotient(error: float, inputs: float) -> float:
    return error / inputs if inputs > 0 else math.inf


def inherited(record: Record, local: Local) -> float | None:
    """Return the share of a traced error that the probe did not make itself, or None if unknown."""
    own = local.errors.get(record.name)
    if own is None or not (record.err > 0 and math.isfinite(record.err)):
        return None
    return math.sqrt(max(0.0, 1 - (own / record.err) ** 2))


def gains(golden: Golden, arithmetic: str) -> np.ndarray:
    """Return how much each probe multiplies the error that reaches it.

    Args:
        golden: With noise of both modes.
        arithmetic: What was computed in.

    Returns:
        float64 (probes,): measured on the reference: noise in trace mode less the probe's own,
        over the largest noise before it.
    """
    trace, own = golden.noise[arithmetic], golden.splice_noise[arithmetic]
    passed_on = np.sqrt(np.maximum(0, trace**2 - own**2))
    before = np.concatenate([[0.0], np.maximum.accumulate(trace)[:-1]])
    return np.divide(passed_on, before, out=np.zeros_like(before), where=before > 0)


def adds_up(records: list[Record], golden: Golden, arithmetic: str) -> bool:
    """Say whether the errors of a trace are those of honest layers, added up.

    No error may exceed the limit times the probe's own noise and its gain times the largest error
    before it; an output reads what all probes left.
    """
    own = dict(zip(golden.probes, golden.splice_noise[arithmetic].tolist(), strict=True))
    gain = dict(zip(golden.probes, gains(golden, arithmetic).tolist(), strict=True))
    for name, units in golden.splice_output_noise[arithmetic].items():
        if name not in own:
            traced = golden.output_noise[arithmetic][name]
            own[name] = float(units.max())
            passed_on = float(np.sqrt(np.maximum(0, traced**2 - units**2)).max())
            most = float(golden.noise[arithmetic].max(initial=0))
            gain[name] = passed_on / most if most > 0 else 0.0
    highest = 0.0
    for record in records:
        if record.name not in own:
            if record.verdict == "fail":
                return False
            continue
        least = max(own[record.name], tolerance.floor(arithmetic))
        if not record.err <= tolerance.LIMIT * (least + gain[record.name] * highest):
            return False
        if record.kind == "probe":
            highest = max(highest, record.err)
    return True


def describe(divergence: dict[str, Any]) -> str:
    """Return a first divergence in one line."""
    after = f" (the last good one is {divergence['after']})" if divergence["after"] else ""
    hint = f": {divergence['hint']}" if divergence["hint"] else ""
    measured = f", ratio {divergence['ratio']:.3g}, limit {divergence['limit']:g}"
    if divergence["hint"].startswith("shape "):  # there is no ratio
        measured = ""
    return f"first wrong at {divergence['probe']}{after}{measured}{hint}"
