"""A run in a few rows: how the cases of each component and arithmetic came out, and the worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conformance.case import COMPONENTS
from conformance.report.records import VERDICTS, Case
from conformance.report.text import severity

_COMPONENT, _DTYPE = 60, 24
"""Longest names kept, in characters: a port's own are of any length."""


@dataclass(eq=False)
class Row:
    """How the cases of one component, or one family of components, came out in one arithmetic.

    Attributes:
        component: Its name; `scheduler/*` for a family.
        dtype: The arithmetic.
        counts: Cases by verdict.
        worst: The case with the worst ratio; None where none has a ratio.
    """

    component: str
    dtype: str
    counts: Counter[str] = field(default_factory=Counter)
    worst: Case | None = None

    @property
    def cases(self) -> int:
        """Return how many cases there are."""
        return self.counts.total()

    @property
    def wrong(self) -> int:
        """Return how many of them speak against the port, or broke."""
        return self.counts["fail"] + self.counts["error"] + self.counts["xpass"]

    @property
    def worst_ratio(self) -> float | None:
        """Return the worst ratio; None where no case has one."""
        return self.worst.ratio if self.worst else None


def tally(cases: Iterable[Case], most: int) -> list[Row]:
    """Count the cases by component and arithmetic.

    Args:
        cases: All of them.
        most: So many rows at most.

    Returns:
        Rows in the order of components. Where there would be too many, what is right of a family
        is folded into one row (`scheduler/*`); where that is not enough, the rows least wrong are.
    """
    rows: dict[tuple[str, str], Row] = {}
    for case in cases:
        key = (case.component[:_COMPONENT], case.dtype[:_DTYPE])
        _count(rows.setdefault(key, Row(*key)), {case.verdict: 1}, case)
    found = sorted(rows.values(), key=_place)
    if len(found) <= most:
        return found
    folded: dict[tuple[str, str], Row] = {}
    for row in found:
        family, slash, _ = row.component.partition("/")
        key = (f"{family}/*" if slash and not row.wrong else row.component, row.dtype)
        _count(folded.setdefault(key, Row(*key)), row.counts, row.worst)
    found = list(folded.values())
    by_urgency = sorted(found, key=lambda row: (row.wrong, severity(row.worst_ratio)), reverse=True)
    shown, others = by_urgency[: most - 1], by_urgency[most - 1 :]
    if len(others) <= 1:
        return found
    rest = Row(f"{len(others)} more", "")
    for row in others:
        _count(rest, row.counts, row.worst)
    return [row for row in found if row in shown] + [rest]


def columns(rows: Iterable[Row]) -> list[str]:
    """Return the verdicts that occur, passes first and then the most urgent."""
    found = {verdict for row in rows for verdict, count in row.counts.items() if count}
    return [verdict for verdict in ("pass", *VERDICTS[:-1]) if verdict in found]


def _place(row: Row) -> int:
    """Return where a component stands in the making of a picture; a foreign one comes last."""
    known = row.component in COMPONENTS
    return COMPONENTS.index(row.component) if known else len(COMPONENTS)


def _count(row: Row, counts: Mapping[str, int], worst: Case | None) -> None:
    row.counts.update(counts)
    if worst is None or worst.ratio is None:
        return
    if row.worst is None or severity(worst.ratio) > severity(row.worst.ratio):
        row.worst = worst
