"""The worst ratio of every layer over all cases of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from conformance.execution import STABILITY
from conformance.golden import SPLICE
from conformance.report.layers import in_order, read_layers
from conformance.report.text import printable, severity

_NOTHING = -0.5
"""Less bad than any ratio, and worse than `ABSENT`."""


class Worst(NamedTuple):
    """The worst ratio of something.

    Attributes:
        ratio: It.
        probe: Where.
        case: Index of the case that it was measured in, in the order of the run.
        own: Whether it was measured in splice mode, so that nothing of it is inherited.
    """

    ratio: float
    probe: str
    case: int
    own: bool


@dataclass
class _Tally:
    """The worst of cases whose probes have the same names, an entry a probe."""

    badness: np.ndarray
    ratios: np.ndarray
    indices: np.ndarray

    @classmethod
    def of(cls, size: int) -> _Tally:
        nothing = np.full(size, _NOTHING)
        return cls(nothing, nothing.copy(), np.zeros(size, np.int64))

    def add(self, index: int, ratios: np.ndarray) -> None:
        badness = np.nan_to_num(ratios, nan=np.inf, posinf=np.finfo(np.float64).max)
        worse = badness > self.badness
        self.badness[worse] = badness[worse]
        self.ratios[worse] = ratios[worse]
        self.indices[worse] = index


@dataclass
class WorstLayers:
    """Collects the worst ratio of every layer, in splice mode and otherwise.

    Attributes:
        cases: How many cases were added.
    """

    cases: int = 0
    _tallies: dict[tuple[str, bool], dict[tuple[str, ...], _Tally]] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Note one case line."""
        index, self.cases = self.cases, self.cases + 1
        layers = read_layers(record)
        if not layers.names or record.get("mode") in STABILITY:
            return  # a difference from the port itself is no error of a layer
        key = (printable(record.get("component")), record.get("mode") == SPLICE)
        tallies = self._tallies.setdefault(key, {})
        if layers.names not in tallies:
            tallies[layers.names] = _Tally.of(len(layers.names))
        tallies[layers.names].add(index, layers.ratios)

    @property
    def components(self) -> list[str]:
        """Return the components of which something was measured."""
        return list(dict.fromkeys(component for component, _ in self._tallies))

    def of(self, component: str, *, own: bool) -> dict[str, Worst]:
        """Return the worst of each probe of a component, in the order of execution.

        Args:
            component: Its name.
            own: In splice mode; otherwise in all others.
        """
        found: dict[str, Worst] = {}
        for names, tally in self._tallies.get((component, own), {}).items():
            rows = zip(names, tally.ratios.tolist(), tally.indices.tolist(), strict=True)
            for name, ratio, index in rows:
                worst = Worst(ratio, name, index, own)
                if ratio != _NOTHING and (name not in found or _worse(worst, found[name])):
                    found[name] = worst
        return {name: found[name] for name in in_order(component, found)}


def worst_of(several: Iterable[Worst]) -> Worst | None:
    """Return the worst of several; of equals the first."""
    found: Worst | None = None
    for worst in several:
        if found is None or _worse(worst, found):
            found = worst
    return found


def _worse(one: Worst, other: Worst) -> bool:
    return severity(one.ratio) > severity(other.ratio)
