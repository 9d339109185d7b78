"""The first wrong tensor: where in it the error is, and what a correlation would have said."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import ClassVar

from conformance.report.records import Case
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.tensors import Tensor, pcc_text, read_tensor
from conformance.report.text import number_text, severity

MOST = 40
"""So many wrong tensors are shown, the first divergence's first and then the worst."""

_PASSES_ELSEWHERE = 0.99


@dataclass(frozen=True)
class Shown:
    """One tensor with its words."""

    tensor: Tensor
    worst: str
    got: str
    expected: str
    pcc: str
    meaning: str


class WrongTensor(Section):
    """The wrong tensors of failing cases, one at a time."""

    name: ClassVar[str] = "tensor"
    title: ClassVar[str] = "First wrong tensor"
    template: ClassVar[str] = "tensor.html"

    def view(self, run: Run) -> View | None:
        """Read them from the run's folder."""
        first = run.summary.divergence
        named = first.case if first else ""
        cases = [case for case in run.cases if case.tensor]
        cases.sort(key=lambda case: _urgency(case, named), reverse=True)
        read = [read_tensor(run.out, case.tensor) for case in cases[:MOST]]
        tensors = [tensor for tensor in read if tensor is not None]
        if not tensors:
            return None
        return {
            "tensors": [_shown(tensor) for tensor in tensors],
            "left_out": max(0, len(cases) - MOST),
            "data": [
                {"bars": [asdict(bars) for bars in t.bars], "map": t.map and asdict(t.map)}
                | {"worst": t.worst, "axes": t.axes}
                for t in tensors
            ],
        }


def _urgency(case: Case, named: str) -> tuple[bool, tuple[int, float]]:
    return case.case == named, severity(case.ratio)


def _shown(tensor: Tensor) -> Shown:
    names = (*tensor.axes, *[""] * len(tensor.worst))
    worst = ", ".join(
        f"{name} {place}".strip() for name, place in zip(names, tensor.worst, strict=False)
    )
    pcc = "" if tensor.pcc is None else pcc_text(tensor.pcc)
    got, expected = (_value(x) for x in (tensor.got, tensor.expected))
    return Shown(tensor, worst, got, expected, pcc, _meaning(tensor))


def _value(x: float | None) -> str:
    """Write a value with the digits in which a wrong one differs."""
    return number_text(x) if x is None or not math.isfinite(x) else f"{x:.7g}"


def _meaning(tensor: Tensor) -> str:
    """Say what the correlation of a wrong tensor with the truth means."""
    if tensor.pcc is None:
        return ""
    ratio = number_text(tensor.ratio)
    if tensor.pcc >= _PASSES_ELSEWHERE:
        return (
            f"Many ports test themselves by this number and ask for {_PASSES_ELSEWHERE} or a "
            f"little more: this tensor would pass there, though its ratio is {ratio}. Correlation "
            "sees the pattern of the whole, and neither a factor, nor an offset, nor a few wrong "
            "values; so it is shown here and never judged."
        )
    return (
        "Even by correlation, which sees neither a factor nor an offset, this tensor is not the "
        "oracle's. It is shown here and never judged: many wrong layers come very close to 1."
    )
