"""The catalogue of mutants and what its last gate measured, for those who have no torch.

`sd1-conformance mutants --update` writes it beside the fingerprints; the report reads it: what a
mutant does wrong, which real ports had it, and how far apart honest programs and bugs lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).parent / "mutants" / "catalogue.json"


@dataclass(frozen=True)
class KnownBug:
    """One mutant.

    Attributes:
        id: Its name in the catalogue.
        component: The component whose cases hunt it.
        wrong: What is wrong, in one sentence.
        seen: Where it was seen: issues, commits, files; empty for the project's own.
        evidence: How sure that is, in words.
        size: What a person sees of it in a picture.
        probe: Where the gate caught it; empty for a port that ends in an exception.
        case: By which case.
    """

    id: str
    component: str
    wrong: str
    seen: str
    evidence: str
    size: str
    probe: str
    case: str


@dataclass(frozen=True)
class Margin:
    """How far apart the gate found honest programs and bugs.

    Attributes:
        honest: The largest ratio of a null mutant.
        nulls: How many null mutants there are.
        wrong: The smallest ratio of a mutant.
        mutants: How many mutants there are.
    """

    honest: float
    nulls: int
    wrong: float
    mutants: int


@cache
def known_bugs() -> Mapping[str, KnownBug]:
    """Return the catalogue, by id."""
    return {row["id"]: KnownBug(**row) for row in _read()["bugs"]}


@cache
def margin() -> Margin:
    """Return what the last gate measured on both sides of the limit."""
    return Margin(**_read()["margin"])


def write_catalogue(bugs: list[KnownBug], measured: Margin, path: Path = CATALOGUE) -> None:
    """Write the catalogue, one mutant a line."""
    lines = ",\n".join(json.dumps(asdict(bug), ensure_ascii=False) for bug in bugs)
    text = f'{{"margin": {json.dumps(asdict(measured))},\n"bugs": [\n{lines}\n]}}\n'
    path.write_text(text, encoding="utf-8")
    known_bugs.cache_clear()
    margin.cache_clear()


def _read() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return content
