"""What is known to fail, what was skipped, and what nobody judged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from conformance.execution import MEMORY
from conformance.report.records import Case, Summary
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.stamps import PRECISION, REAL_WEIGHTS, TRAINING

STAMPS = {
    PRECISION: "in one arithmetic: every network; each backend and each stability mode once",
    TRAINING: "the loss and every gradient",
    MEMORY: "no more held than the budget: every network, by each attention that it offers",
    REAL_WEIGHTS: "published values with the trained weights",
}
"""What stands beside the ladder of levels, and what each asks for."""

_GROUPS, _EXAMPLES = 40, 5
_DIGITS = re.compile(r"\d+")


@dataclass
class Group:
    """Cases that share a reason.

    Attributes:
        verdict: Theirs.
        reason: Of the first of them.
        cases: The first few.
        count: Of them all.
    """

    verdict: str
    reason: str
    cases: list[Case] = field(default_factory=list)
    count: int = 0


class Known(Section):
    """Expected failures, skips and open questions, with reasons."""

    name: ClassVar[str] = "known"
    title: ClassVar[str] = "Known, skipped, not judged"
    template: ClassVar[str] = "known.html"

    def view(self, run: Run) -> View:
        """Group them by reason."""
        share = run.summary.selection
        return {
            "known": _grouped(case for case in run.cases if case.verdict in ("xfail", "xpass")),
            "skipped": _grouped(case for case in run.cases if case.verdict == "skip"),
            "expected": run.summary.expected,
            "stamps": _stamps(run.summary),
            "left": share.of - share.cases if share and share.partial else 0,
        }


def _grouped(cases: Iterable[Case]) -> list[Group]:
    """Group cases whose reasons differ in numbers at most, the largest group first."""
    groups: dict[tuple[str, str], Group] = {}
    for case in cases:
        reason = case.message or "no reason given"
        key = (case.verdict, _DIGITS.sub("#", reason))
        group = groups.setdefault(key, Group(case.verdict, reason))
        group.count += 1
        if len(group.cases) < _EXAMPLES:
            group.cases.append(case)
    found = sorted(groups.values(), key=lambda group: -group.count)
    if len(found) <= _GROUPS:
        return found
    rest = found[_GROUPS - 1 :]
    reason = f"{len(rest)} other reasons: see the table of cases"
    return [*found[: _GROUPS - 1], Group("", reason, [], sum(group.count for group in rest))]


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _stamps(summary: Summary) -> list[tuple[str, str, str]]:
    """Name every stamp, what it asks for and whether this run gives it."""
    rows = []
    for stamp, asks in STAMPS.items():
        given = [name for name in summary.stamps if _kind(name) == stamp]
        states = [f"given: {', '.join(given)}"] if given else []
        states += [
            f"{name} is not given: {gaps}"
            for name, gaps in summary.stamps_missing.items()
            if _kind(name) == stamp
        ]
        rows.append((stamp, asks, ". ".join(states) or "not judged in this run"))
    return rows
