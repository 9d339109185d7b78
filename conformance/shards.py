"""Sharing a run among machines: the same parts everywhere, balanced by what cases cost."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from conformance.case import Case
from conformance.costs import Costs, group_of
from conformance.errors import UsageError
from conformance.execution import Execution
from conformance.report.text import counted

Pair = tuple[Case, Execution]
Item = Pair | tuple[Case, Execution, str]
"""A case, how it is run, and in pytest one of its named blocks."""

_FORM = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Shard:
    """One of several parts of a run.

    Attributes:
        index: Which part, from 1.
        count: How many parts there are.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `I/N`.

        Raises:
            UsageError: It names no part.
        """
        found = _FORM.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            message = f"shard {text!r}: write I/N, which part of how many, such as 2/4"
            raise UsageError(message)
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def words(self) -> str:
        """Say which part it is."""
        return f"shard {self.index} of {self.count}"


@dataclass(frozen=True)
class Unit:
    """What is never divided: both modes of a case, since a trace is explained by splicing.

    Attributes:
        name: Case, arithmetic, device and backend.
        group: The network that it runs on, by `group_name`.
        cost: Seconds.
    """

    name: str
    group: str
    cost: float


def units_of(items: Iterable[Pair], costs: Costs) -> dict[str, Unit]:
    """Put together the items that stay together.

    Args:
        items: Of the whole run.
        costs: What they cost.

    Returns:
        The unit of each item, by the item's id.
    """
    gathered: dict[tuple[str, ...], list[Pair]] = {}
    for case, run in items:
        gathered.setdefault((case.id, run.dtype, run.device, run.backend), []).append((case, run))
    found: dict[str, Unit] = {}
    for members in gathered.values():
        case, run = members[0]
        cost = sum(costs.of(case, execution) for case, execution in members)
        name = f"{case.id}[{run.dtype}-{run.device}-{run.backend}]"
        unit = Unit(name, group_of(case, run), cost)
        found |= {execution.item_id(case): unit for case, execution in members}
    return found


def deal(units: Iterable[Unit], count: int, loads: Mapping[str, float]) -> dict[Unit, int]:
    """Deal units out, the longest first, each to the part that is done first with it.

    Args:
        units: All units of a run.
        count: Number of parts.
        loads: Seconds that it takes to load a group, once in each part that has something of it.

    Returns:
        The part of each unit, from 1; the same on every machine.

    Raises:
        UsageError: There are fewer units than parts.
    """
    left = sorted(set(units), key=lambda unit: (-unit.cost, unit.name))
    if len(left) < count:
        most = len(left)
        message = f"{counted(most, 'case')} cannot be shared by {count}: ask for at most {most}"
        raise UsageError(message)
    totals = dict.fromkeys(range(1, count + 1), 0.0)
    held: dict[int, set[str]] = {part: set() for part in totals}
    found: dict[Unit, int] = {}
    for i, unit in enumerate(left):
        empty = [part for part in totals if not held[part]]
        choice = empty if len(empty) == len(left) - i else totals
        ends = {
            part: totals[part] + unit.cost + loads.get(unit.group, 0.0) * (unit.group not in own)
            for part, own in held.items()
            if part in choice
        }
        part = min(ends, key=lambda part: (ends[part], part))
        totals[part] = ends[part]
        held[part].add(unit.group)
        found[unit] = part
    return found


class Selection:
    """The items of a whole run, and those of them that are run here."""

    def __init__(
        self,
        items: Sequence[Item],
        shard: Shard | None = None,
        beside: Sequence[Pair] = (),
        costs: Costs | None = None,
    ) -> None:
        """Choose the items of a part.

        Args:
            items: Of the whole run.
            shard: Which part is run here; None for all of it.
            beside: What else is to be shared and makes no line of the results.
            costs: What items cost; None for what is recorded.

        Raises:
            UsageError: There are more parts than cases.
        """
        self.shard = shard
        self.ids = [line_id(*item) for item in items]
        self.own = set(self.ids)
        self._places = {item: place for place, item in enumerate(self.ids)}
        self._parts: dict[str, int] = {}
        if shard is not None:
            costs = costs or Costs.recorded()
            units = units_of([*((case, run) for case, run, *_ in items), *beside], costs)
            dealt = deal(units.values(), shard.count, costs.loads)
            self._parts = {item: dealt[unit] for item, unit in units.items()}
            self.own = {line_id(*item) for item in items if self.holds(item[0], item[1])}

    def holds(self, case: Case, run: Execution) -> bool:
        """Say whether an item is run here."""
        return self.shard is None or self._parts[run.item_id(case)] == self.shard.index

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return `items` of the header: those of the whole run, and how many are run here."""
        return {**digest_of(self.ids), "own": len(self.own)}

    def placed(self, line: dict[str, Any]) -> dict[str, Any]:
        """Return a case line of a part with its place in the whole run, for `merge`."""
        return line if self.shard is None else {**line, "place": self._places[line["case"]]}


def line_id(case: Case, run: Execution, block: str = "") -> str:
    """Return the id of a case line: of an item, or of one of its named blocks."""
    return f"{run.item_id(case)}::{block}" if block else run.item_id(case)


def digest_of(ids: Iterable[str]) -> dict[str, Any]:
    """Say which items there are: how many, and the SHA-256 of their sorted ids."""
    names = sorted(ids)
    text = "\n".join(names).encode()
    return {"count": len(names), "sha256": hashlib.sha256(text).hexdigest()}
