"""From what is held too much to its cause: where it is, and which catalogued mutant holds the same.

Predictions are cheap and exact: a mutant that holds the very same bytes, whole and in every block,
is what the port computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from conformance.case import find_case
from conformance.execution import MEMORY, Execution
from conformance.memory.footprint import Footprint
from conformance.report.text import one_line

Line = Mapping[str, Any]

_WORDS = 160
_SHOWN = 3


def memory_faults(lines: Iterable[Line], component: str) -> list[dict[str, Any]]:
    """Return the causes of the memory budgets of a component that were not kept.

    Args:
        lines: Case lines.
        component: The component.

    Returns:
        Entries of `faults`, one for each mutant or place, `found_by` what is to be said of it.
        Nothing that a mutant raises gets out: it only leaves a cause without a name.
    """
    over = [n for n in lines if n["component"] == component and _is_over(n)]
    found: dict[str, list[Line]] = {}
    wrong: dict[str, str] = {}
    for place, own in _by_place(over).items():
        first = min(own, key=lambda line: line["memory"]["peak"])  # the quickest to predict
        mutants = _fitting(first)
        key = next(iter(mutants), place)
        wrong |= mutants
        found.setdefault(key, []).extend(own)
    return [_fault(key, own, wrong.get(key)) for key, own in found.items()]


def _is_over(line: Line) -> bool:
    first = line.get("first_divergence") or {}
    failed = line["mode"] == MEMORY and line["verdict"] == "fail"
    return failed and bool(line.get("memory")) and "probe" in first


def _by_place(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Group lines by the first block that holds too much and what is done at the peak."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        at = Footprint.of(line["memory"]).place
        first = line["first_divergence"]
        how = "less" if float(first["ratio"]) < 1 else "more"
        text = f"{how} is held than in the budget from {first['probe']} on, at {at}"
        found.setdefault(text, []).append(line)
    return found


def _fitting(line: Line) -> dict[str, str]:
    """Return the mutants that hold just what a line tells: what is wrong, by id."""
    try:
        held: Any = importlib.import_module("conformance.mutants.held")
        case, execution = find_case(line["case"]), Execution.of_item(line["case"])
        mutants = held.fitting(Footprint.of(line["memory"]), case, execution)
    except Exception:  # noqa: BLE001 - no torch, or a port that is unlike sd1_impl: no name
        return {}
    return {mutant.id: mutant.wrong for mutant in mutants}


def _fault(key: str, lines: list[Line], wrong: str | None) -> dict[str, Any]:
    names = {line["first_divergence"]["probe"] for line in lines}
    fault = {
        "names": names,
        "probes": ", ".join(sorted(names)[:_SHOWN]),
        "count": len(names),
        "mutant": key if wrong else None,
        "confirmed": wrong is not None,
        "ratio_if_so": 1.0 if wrong else None,
        "held": True,
    }
    if wrong is None:
        return fault | {"text": key, "found_by": key}
    told = f"confirmed: the port holds what mutant {key} holds ({one_line(wrong, _WORDS)})"
    return fault | {"found_by": told}
