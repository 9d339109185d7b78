"""The catalogue as data, made of the results of the gate; `conformance.known_bugs` reads it."""

from __future__ import annotations

from typing import Any

from conformance.known_bugs import KnownBug, Margin
from conformance.mutants.catalogue import CATALOGUE
from conformance.mutants.mutant import EVIDENCE, Mutant


def record(summary: dict[str, Any]) -> tuple[list[KnownBug], Margin]:
    """Take from the gate what a report shows.

    Args:
        summary: The contents of mutants.json, of all mutants.

    Returns:
        The mutants, null ones left out, and the margin between both kinds.
    """
    rows = {row["id"]: row for row in summary["mutants"]}
    wrong = [m for m in CATALOGUE if not m.null and m.id in rows]
    nulls = [m for m in CATALOGUE if m.null and m.id in rows]
    computing, lawful = ([m for m in own if not m.heavy] for own in (wrong, nulls))
    measured = Margin(
        honest=max(float(rows[m.id]["ratio"]) for m in lawful),
        nulls=len(lawful),
        wrong=min(float(rows[m.id]["ratio"]) for m in computing if not m.refuses),
        mutants=len(computing),
    )
    return [_bug(m, rows[m.id]) for m in wrong], measured


def _bug(mutant: Mutant, row: dict[str, Any]) -> KnownBug:
    first = row["first_divergence"] or {}
    return KnownBug(
        id=mutant.id,
        component=mutant.component,
        wrong=mutant.wrong,
        seen=mutant.seen,
        evidence=EVIDENCE[mutant.evidence],
        size=mutant.size,
        probe=first.get("probe", ""),
        case=first.get("case") or (row["killed_by"] or [""])[0],
    )
