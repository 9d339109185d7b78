"""The fewest layers that must be computed in float32: a bisection, then delta debugging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Measure = Callable[[frozenset[str]], float]
"""Gives the ratio of the output with these layers in float32."""

MOST = 150
"""Evaluations after which the search gives what it has."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        target: The ratio that was asked for.
        before: The ratio with no layer in float32.
        with_all: The ratio with every layer in float32.
        reached: Whether the target was reached.
        ratio: The ratio that the layers found give.
        layers: Those layers, in the order in which they were tried; all of them where even that
            does not reach the target.
        globs: The same in few words, as `--keep` takes them.
        evaluations: How often the network was run.
        minimal: Whether none of the layers can be left out any more.
    """

    target: float
    before: float
    with_all: float
    reached: bool
    ratio: float
    layers: list[str]
    globs: list[str]
    evaluations: int
    minimal: bool


class Search:
    """Measures sets of layers, each once, and counts."""

    def __init__(self, measure: Measure, target: float, most: int = MOST) -> None:
        """Keep how to measure, and what is to be reached."""
        self.measure = measure
        self.target = target
        self.most = most
        self.known: dict[frozenset[str], float] = {}
        self.everything: list[str] = []

    @property
    def spent(self) -> bool:
        """Whether no more evaluations are allowed."""
        return len(self.known) >= self.most

    def ratio(self, layers: Sequence[str]) -> float:
        """Return the ratio with these layers in float32."""
        key = frozenset(layers)
        if key not in self.known:
            self.known[key] = self.measure(key)
        return self.known[key]

    def reaches(self, layers: Sequence[str]) -> bool:
        """Say whether these layers are enough."""
        return self.ratio(layers) <= self.target

    def run(self, groups: Sequence[Sequence[str]]) -> Found:
        """Search.

        Work between layers follows them only where a whole block is in float32. So layers are
        added and left out block by block first, then one by one.

        Args:
            groups: Layers by block, those first that cost most.

        Returns:
            What was found. Ratios need not fall with every layer added, so the set is minimal (no
            layer of it can be left out), not the smallest of all.
        """
        self.everything = everything = [layer for group in groups for layer in group]
        before, with_all = self.ratio([]), self.ratio(everything)
        if before <= self.target:
            return self._found(before, with_all, [], minimal=True)
        if not with_all <= self.target:
            return self._found(before, with_all, everything, minimal=False)
        kept = self._shortest_start(groups)
        kept = self._pruned(kept)
        single = self._pruned([[layer] for group in kept for layer in group])
        layers = [layer for group in single for layer in group]
        return self._found(before, with_all, layers, minimal=not self.spent)

    def _shortest_start(self, groups: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Halve: how many of the blocks, the costliest first, are enough?"""
        low, high = 0, len(groups)  # none is not enough, all are
        while high - low > 1 and not self.spent:
            middle = (low + high) // 2
            if self.reaches([layer for group in groups[:middle] for layer in group]):
                high = middle
            else:
                low = middle
        return list(groups[:high])

    def _pruned(self, groups: list[Sequence[str]]) -> list[Sequence[str]]:
        """Leave out ever smaller runs of groups, the cheapest first, while the rest is enough."""
        size = max(1, len(groups) // 2)
        while True:
            removed = False
            for end in range(len(groups), 0, -size):
                rest = groups[: max(0, end - size)] + groups[end:]
                if self.spent:
                    return groups
                if self.reaches([layer for group in rest for layer in group]):
                    groups, removed = rest, True
            if size == 1 and not removed:
                return groups
            size = max(1, size // 2)

    def _found(self, before: float, with_all: float, layers: list[str], *, minimal: bool) -> Found:
        ratio = self.ratio(layers)
        reached = ratio <= self.target
        globs = outermost(layers, self.everything)
        return Found(
            self.target,
            before,
            with_all,
            reached,
            ratio,
            layers,
            globs,
            len(self.known),
            minimal,
        )


def outermost(chosen: Sequence[str], everything: Sequence[str]) -> list[str]:
    """Name layers by the largest modules of which all layers are chosen.

    Args:
        chosen: Some layers.
        everything: All layers there are.

    Returns:
        Globs that match the chosen layers and no others, in their order.
    """
    within: dict[str, set[str]] = {}
    for layer in everything:
        parts = layer.split(".")
        for depth in range(1, len(parts)):
            within.setdefault(".".join(parts[:depth]), set()).add(layer)
    wanted = set(chosen)
    globs: dict[str, None] = {}
    for layer in chosen:
        parts = layer.split(".")
        starts = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        whole = next((start for start in starts if within[start] <= wanted), None)
        globs[layer if whole is None else f"{whole}.*"] = None
    return list(globs)
