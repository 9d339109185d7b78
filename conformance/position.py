"""Where failures stand among each other: the earliest is what a reader is shown first."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from conformance import spec
from conformance.case import COMPONENTS, all_cases
from conformance.execution import MEMORY
from conformance.golden import SPLICE
from conformance.tolerance import badness

Position = tuple[bool, int, bool, bool, tuple[int, ...], int, float, bool, int]

_PLAIN = 100.0
"""From this ratio on a failure is plain: how much more it is says nothing."""


def position(line: Mapping[str, Any]) -> Position:
    """Return a key that orders failing lines: the earliest in execution, of equals the clearest.

    Of a component, what splice mode found comes first. Settings of SD v1 come before others: a
    port that ignores those is told so last. What is held comes after all that is computed. Of cases
    that fail as plainly the first of the catalogue comes first, a batch last: they stand there from
    the ordinary to the special.

    Args:
        line: A case line, with its first divergence.
    """
    component, first = line["component"], line["first_divergence"]
    case = line["case"].partition("[")[0]
    outputs = [p["name"] for p in line["probes"] if p["kind"] == "output"]
    return (
        line["mode"] == MEMORY,
        COMPONENTS.index(component),
        case in _beyond_sd1(),
        line["mode"] != SPLICE,
        spec.place(component, first["probe"]),
        outputs.index(first["probe"]) if first["probe"] in outputs else -1,
        -min(badness(float(first["ratio"])), _PLAIN),
        case.rpartition("/")[2].startswith("batch"),
        _places().get(case, -1),
    )


@cache
def _places() -> dict[str, int]:
    """Return where each case stands in the catalogue, by id."""
    return {case.id: place for place, case in enumerate(all_cases())}


@cache
def _beyond_sd1() -> frozenset[str]:
    """Return the ids of the cases that ask for what SD v1 has not."""
    return frozenset(case.id for case in all_cases() if case.scenario.asks)
