"""Causes that failures tell themselves: a port that differs from itself, a lower precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.execution import MEMORY, STABILITY
from conformance.golden import SPLICE
from conformance.position import position
from conformance.precision import PRECISION, shows_products
from conformance.variants import parse_variant

Line = Mapping[str, Any]
How = tuple[str, str, str, str]

_REPEAT, _FRESH, _STATE, _THREADS, _BATCH = STABILITY
_OWN = (_REPEAT, _FRESH, _STATE)
"""Modes of whose failures no wrong formula can be the cause."""


@dataclass
class Told:
    """One cause.

    Attributes:
        text: What it is, in words.
        mode: The stability mode that found it; empty for a precision.
        names: Probes that are wrong for it.
    """

    text: str
    mode: str
    names: set[str]

    @property
    def sure(self) -> bool:
        """Say whether it stands beside any other cause of the same probes."""
        return self.mode in _OWN


def how(line: Line) -> How:
    """Return the case of a line and how it was run, but for the mode."""
    case = line["case"].partition("[")[0]
    return case, line["dtype"], line.get("device", ""), line.get("backend", "")


def first_wrong(line: Line) -> str | None:
    """Return the first probe or output of a line that fails."""
    return next((p["name"] for p in line["probes"] if p["verdict"] == "fail"), None)


def unstable(lines: Iterable[Line], component: str) -> dict[How, Line]:
    """Return where a port differs from itself, with the line that tells it most plainly.

    Args:
        lines: Case lines.
        component: The component.

    Returns:
        By case and execution, the failing line of the first stability mode. Two threads that differ
        where a lower precision was found are no cause: rounding to few bits makes much of little.
    """
    own = [n for n in lines if n["component"] == component and n["verdict"] == "fail"]
    rounded = {how(line) for line in own if _is_precision(line)}
    found: dict[How, Line] = {}
    for line in sorted(
        (line for line in own if line["mode"] in STABILITY), key=lambda n: _rank(n["mode"])
    ):
        if line["mode"] != _THREADS or how(line) not in rounded:
            found.setdefault(how(line), line)
    return found


def _rank(mode: str) -> int:
    return (_REPEAT, _FRESH, _STATE, _BATCH, _THREADS).index(mode)


def is_excused(line: Line, where: Mapping[How, Line], passed: Iterable[How]) -> bool:
    """Say whether a trace is wrong only because the port differs from itself.

    Args:
        line: Of a failing item.
        where: From `unstable`.
        passed: Where splice mode found every layer right, from `spliced_well`.
    """
    return line["mode"] != SPLICE and how(line) in where and how(line) in passed


def spliced_well(lines: Iterable[Line], component: str) -> set[How]:
    """Return where splice mode found every layer right."""
    own = [n for n in lines if n["component"] == component and n["mode"] == SPLICE]
    wrong = {how(line) for line in own if line["verdict"] not in {"pass", "warn"}}
    return {how(line) for line in own} - wrong


def told_causes(lines: Sequence[Line], component: str) -> list[Told]:
    """Return the causes that the failures of a component tell, those of precision first."""
    found: dict[tuple[str, str], Told] = {}
    failing = [n for n in lines if n["component"] == component and n["verdict"] == "fail"]
    rounded = [n for n in failing if _is_precision(n) and not _is_overruled(n, failing)]
    for line in sorted(rounded, key=position):
        text = line["first_divergence"]["hint"]
        told = found.setdefault((PRECISION, text.partition(" in ")[0]), Told(text, "", set()))
        wrong = [p["name"] for p in line["probes"] if p["verdict"] == "fail"]
        told.names.update(wrong if line["mode"] == SPLICE else wrong[:1])
    where, passed = unstable(lines, component), spliced_well(lines, component)
    for line in where.values():
        text, mode = _what_differs(line), line["mode"]
        told = found.setdefault((mode, text), Told(text, mode, set()))
        excused = [n for n in failing if is_excused(n, {how(line): line}, passed)]
        told.names |= {name for n in (line, *excused) if (name := first_wrong(n))}
    return list(found.values())


def earliest_hint(lines: Iterable[Line], component: str) -> str:
    """Return the hint of a component's first divergence."""
    own = [n for n in lines if n["component"] == component and n["verdict"] == "fail"]
    found = [line for line in own if line.get("first_divergence")]
    return str(min(found, key=position)["first_divergence"]["hint"]) if found else ""


def _is_precision(line: Line) -> bool:
    first = line.get("first_divergence") or {}
    return bool(first.get("kind") == PRECISION)


def _is_overruled(line: Line, failing: list[Line]) -> bool:
    """Say whether a precision was read off whole blocks, and cases that see inside name none."""
    if _sees_products(line):
        return False
    computed = [n for n in failing if n["mode"] not in (*STABILITY, MEMORY)]
    inside = [n for n in computed if n["dtype"] == line["dtype"] and _sees_products(n)]
    return bool(inside) and not any(map(_is_precision, inside))


def _sees_products(line: Line) -> bool:
    names = [p["name"] for p in line["probes"]]
    return shows_products(names, line["component"], parse_variant(line["variant"]).size)


def _what_differs(line: Line) -> str:
    """Return what a stability item was changed by: its hint, less what it says of the elements."""
    first = line.get("first_divergence") or {"probe": "", "hint": ""}
    note = next((p.get("note", "") for p in line["probes"] if p["name"] == first["probe"]), "")
    hint = str(first["hint"]).removesuffix(f": {note}")
    return hint or f"differs from itself in mode {line['mode']}"
