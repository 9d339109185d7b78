"""Which wrong tensors of a run are kept for people to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from conformance.position import Position, position

EACH = 6
"""Tensors of one component that are shown at least, if it has as many wrong."""
ALL = 60
"""Tensors of one run that are shown."""


class Choice:
    """Chooses the failures of which a tensor is shown: some of each component, and the earliest."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._earliest: dict[str, Position] = {}

    def takes(self, line: Mapping[str, Any]) -> bool:
        """Say whether a failure's tensor is shown, and if so, count it.

        Args:
            line: A failing case line, as for `position`.
        """
        component, place = line["component"], position(line)
        before = self._earliest.setdefault(component, place)
        self._earliest[component] = min(place, before)
        room = self._counts[component] < EACH and self._counts.total() < ALL
        if not room and place >= before:
            return False
        self._counts[component] += 1
        return True
