"""Headroom of half types: which values come nearest to the largest that the dtype holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from conformance.headroom import SHOWN, headroom
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import mapping, number, printable

_COMPONENTS = 40
_OVERFLOWS = 20
_NEAREST = 16.0
"""Doublings at the right end of a bar: what is farther is as safe as that."""


@dataclass(frozen=True)
class Row:
    """One probe in the case where its values are largest.

    Attributes:
        probe: Its name.
        case: The case.
        port: Largest magnitude of the port's values.
        oracle: Of the oracle's; None where it is not known.
        left: Doublings left; minus infinity where the port's values are not finite.
    """

    probe: str
    case: str
    port: float
    oracle: float | None
    left: float

    @property
    def finite(self) -> bool:
        """Whether the port's values still are numbers."""
        return self.left > float("-inf")

    @property
    def bar(self) -> float:
        """Return how much of the dtype's range, in doublings, is used: 0 to 100."""
        return 100 * (1 - min(max(self.left, 0.0), _NEAREST) / _NEAREST)


@dataclass
class _Nearest:
    """The probes of one component in one arithmetic that come nearest."""

    largest: float
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        known = self.rows.get(row.probe)
        if known is None or row.left < known.left:
            self.rows[row.probe] = row
        if len(self.rows) > 4 * SHOWN:
            self.rows = {row.probe: row for row in self.worst()}

    def worst(self) -> list[Row]:
        return sorted(self.rows.values(), key=lambda row: row.left)[:SHOWN]


class Headroom(Section):
    """Per component and half type, the ten probes with the least headroom."""

    name: ClassVar[str] = "headroom"
    title: ClassVar[str] = "Headroom of half types"
    template: ClassVar[str] = "headroom.html"

    def __init__(self) -> None:
        self._nearest: dict[tuple[str, str], _Nearest] = {}
        self._overflows: list[tuple[str, str]] = []
        self._overflowed = 0

    def add(self, record: dict[str, Any]) -> None:
        """Keep the probes of a case whose values are nearest to the end."""
        facts = mapping(record.get("headroom"))
        largest = number(facts.get("largest"))
        if record.get("type") != "case" or largest is None or not largest > 0:
            return
        case = printable(record.get("case"))
        key = (printable(record.get("component")), printable(record.get("dtype")))
        if key not in self._nearest and len(self._nearest) >= _COMPONENTS:
            return
        nearest = self._nearest.setdefault(key, _Nearest(largest))
        for row in _rows(case, largest, facts.get("probes")):
            nearest.add(row)
        first = printable(facts.get("not_finite"))
        if first:
            self._overflowed += 1
            if len(self._overflows) < _OVERFLOWS:
                self._overflows.append((case, first))

    def view(self, run: Run) -> View | None:  # noqa: ARG002 - every record was told
        """Write a table for each component and arithmetic, the least headroom first."""
        groups = [
            {"component": component, "dtype": dtype, "largest": own.largest, "rows": own.worst()}
            for (component, dtype), own in self._nearest.items()
            if own.rows
        ]
        if not groups:
            return None
        return {
            "groups": sorted(groups, key=lambda group: group["rows"][0].left),
            "overflows": self._overflows,
            "more": self._overflowed - len(self._overflows),
        }


def _rows(case: str, largest: float, probes: object) -> list[Row]:
    """Read the probes of one case; what nobody can read is left out."""
    rows = []
    for entry in probes if isinstance(probes, list) else []:
        if not isinstance(entry, list) or len(entry) != len(("name", "port", "oracle")):
            continue
        port = number(entry[1])
        if port is not None:
            left = headroom(largest, port)
            rows.append(Row(printable(entry[0]), case, port, number(entry[2]), left))
    return rows
