"""The ratchet: the best ratio that each item has ever reached. It only goes down.

A comparison with one earlier run lets a port get worse little by little, each time by less than
noise. The best ratio does not move up with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.regression.findings import is_worse
from conformance.run_folder import write_whole

RATCHET = "ratchet.json"
"""The file's name in a run's folder."""

_UNITS = ("goldens", "weights")


@dataclass(frozen=True)
class Ratchet:
    """The best ratio by item.

    Attributes:
        units: SHA-256 of the goldens and of the weights (empty for the recipe's): what the noise
            depends on, and so the unit of every ratio.
        best: By item id, from 1: below 1 a ratio is the reference's own noise, and no merit.
    """

    units: tuple[str, ...]
    best: dict[str, float]

    @classmethod
    def empty(cls, header: Mapping[str, Any]) -> Ratchet:
        """Return that of a run that begins.

        Args:
            header: The header of its results.
        """
        return cls(tuple(str(header.get(key) or "") for key in _UNITS), {})

    @classmethod
    def read(cls, folder: Path) -> Ratchet | None:
        """Read that of an earlier run; None where it left none.

        Raises:
            UsageError: The file is damaged.
        """
        path = folder / RATCHET
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text("utf-8"))
            units = tuple(str(found[key]) for key in _UNITS)
            best = {str(case): float(ratio) for case, ratio in found["best"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            best = {"": math.nan}
        if not all(1 <= ratio < math.inf for ratio in best.values()):
            message = (
                f"{path} is no ratchet (its best has to hold numbers from 1): restore it, or "
                "delete it to begin anew"
            )
            raise UsageError(message)
        return cls(units, best)

    def lowered(self, ratios: Iterable[tuple[str, float | None]]) -> Ratchet:
        """Return the ratchet after a run.

        Args:
            ratios: Item ids with their worst ratios, None where nothing was measured.
        """
        best = dict(self.best)
        for case, ratio in ratios:
            if ratio is not None and math.isfinite(ratio):
                best[case] = min(best.get(case, math.inf), max(1.0, ratio))
        return Ratchet(self.units, best)

    def slipped(self, ratios: Iterable[tuple[str, float | None]]) -> list[dict[str, Any]]:
        """Return the items that are over twice their best, the worst first.

        Args:
            ratios: As for `lowered`.

        Returns:
            Objects for summary.json: `case`, `before` (its best) and `after`.
        """
        found = [
            {"case": case, "before": self.best[case], "after": ratio}
            for case, ratio in ratios
            if ratio is not None and case in self.best and is_worse(self.best[case], ratio)
        ]
        return sorted(found, key=_factor, reverse=True)

    def write(self, folder: Path) -> None:
        """Write it into a run's folder, the items in order."""
        best = {case: float(f"{self.best[case]:.4g}") for case in sorted(self.best)}
        facts = {**dict(zip(_UNITS, self.units, strict=True)), "best": best}
        write_whole(folder / RATCHET, [json.dumps(facts, indent=1), "\n"])


def _factor(item: Mapping[str, Any]) -> float:
    factor = float(item["after"]) / float(item["before"])
    return math.inf if math.isnan(factor) else factor


def measured(lines: Iterable[Mapping[str, Any]]) -> list[tuple[str, float | None]]:
    """Return the ids and worst ratios of case lines."""
    return [
        (line["case"], None if line["ratio"] is None else float(line["ratio"])) for line in lines
    ]
