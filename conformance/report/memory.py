"""What the port holds beside what the reference holds, and which block and operation hold most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from conformance.execution import MEMORY, SDPA
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import case_name, count, mapping, printable, size_text

_ROWS = 400
_BLOCKS = 100


@dataclass(frozen=True)
class Bar:
    """A block in the picture of a network: where it stands, how high it is, and what it says."""

    x: float
    height: float
    allowed: float
    over: bool
    title: str


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        case: The item.
        how: Arithmetic, backend, and the device where it is no CPU.
        verdict: Its verdict.
        peak: Bytes that the port holds at once, without weights.
        ceiling: The reference's; 0 where it is not known.
        weights: Bytes of weights.
        place: The operation at the peak, and the module that it runs in.
        blocks: Bytes by block, in execution order.
        allowed: The same as recorded of this port; empty where nothing is.
        first: The first block that holds too much; empty where none does.
        own: Whether the port computes by its own backend.
    """

    case: str
    how: str
    verdict: str
    peak: int
    ceiling: int
    weights: int
    place: str
    blocks: dict[str, int]
    allowed: dict[str, int]
    first: str
    own: bool


@dataclass
class _Case:
    """The configurations of one case."""

    name: str
    rows: list[Row] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        return any(row.verdict == "fail" for row in self.rows)

    @property
    def most(self) -> int:
        """Return where the bars end."""
        return max(max(row.peak, row.ceiling) for row in self.rows)


class Memory(Section):
    """A table and bars of each case; of each component its blocks, where it holds most."""

    name: ClassVar[str] = "memory"
    title: ClassVar[str] = "Memory"
    template: ClassVar[str] = "memory.html"

    def __init__(self) -> None:
        self._rows: list[tuple[str, Row]] = []
        self._seen = 0

    def add(self, record: dict[str, Any]) -> None:
        """Keep what a configuration holds."""
        facts = mapping(record.get("memory"))
        if record.get("type") != "case" or record.get("mode") != MEMORY or not facts:
            return
        self._seen += 1
        if len(self._rows) < _ROWS:
            self._rows.append((printable(record.get("component"), 60), _row(record, facts)))

    def view(self, run: Run) -> View | None:  # noqa: ARG002 - every record was told
        """Gather the configurations by component and case."""
        if not self._rows:
            return None
        components: dict[str, dict[str, _Case]] = {}
        for component, row in self._rows:
            name = case_name(row.case)
            components.setdefault(component, {}).setdefault(name, _Case(name)).rows.append(row)
        groups = [
            {
                "component": component,
                "cases": [*cases.values()],
                "picture": _picture([row for case in cases.values() for row in case.rows]),
            }
            for component, cases in components.items()
        ]
        return {"groups": groups, "left_out": self._seen - len(self._rows)}


def _row(record: dict[str, Any], facts: dict[str, Any]) -> Row:
    blocks = _sizes(facts.get("blocks"))
    budget = facts.get("budget")  # of its blocks those that differ
    allowed = blocks | _sizes(mapping(budget).get("blocks")) if budget else {}
    how = [printable(record.get(key), 30) for key in ("dtype", "backend", "device")]
    place = [printable(facts.get(key), 120) for key in ("at", "where")]
    return Row(
        case=printable(record.get("case")),
        how=", ".join(text for text in how if text not in {"", "cpu"}),
        verdict=printable(record.get("verdict"), 10),
        peak=count(facts.get("peak")),
        ceiling=count(facts.get("ceiling")),
        weights=count(facts.get("weights")),
        place=" in ".join(text for text in place if text),
        blocks=blocks,
        allowed=allowed,
        first=printable(mapping(record.get("first_divergence")).get("probe"), 120),
        own=record.get("backend") == SDPA,
    )


def _sizes(value: object) -> dict[str, int]:
    found = list(mapping(value).items())[:_BLOCKS]
    return {printable(name, 120): count(size) for name, size in found}


def _picture(rows: Iterable[Row]) -> dict[str, Any] | None:
    """Draw the innermost blocks of one configuration: a failing one, its own backend's, large."""
    drawn = [row for row in rows if row.blocks]
    if not drawn:
        return None
    row = max(drawn, key=lambda row: (row.verdict == "fail", row.own, row.peak))
    names = [name for name in row.blocks if not _is_around(name, row.blocks)]
    most = max(1, *(max(row.blocks[name], row.allowed.get(name, 0)) for name in names))
    bars = []
    for i, name in enumerate(names):
        size, allowed = row.blocks[name], row.allowed.get(name, 0)
        title = f"{name}: {size_text(size)}"
        if allowed and allowed != size:
            title += f", allowed {size_text(allowed)}"
        over = bool(allowed and size != allowed) or name == row.first
        bars.append(Bar(i, 100 * size / most, 100 * allowed / most, over, title))
    largest = max(names, key=lambda name: row.blocks[name])
    return {"row": row, "bars": bars, "largest": largest, "size": row.blocks[largest]}


def _is_around(name: str, others: Iterable[str]) -> bool:
    """Say whether a block has blocks inside it."""
    return any(other.startswith(f"{name}.") for other in others)
