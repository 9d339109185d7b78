"""Fingerprints: where a wrong port goes wrong, over cases; and which mutant's is the most alike.

A fingerprint is made of marks. Each case that was run, in each mode, leaves the probes at which the
port is wrong (in trace mode the first of them, since all that follows inherits its error) and how
far off each is. So it says where an error starts and how it grows with the timestep, size, batch,
magnitude and regime of the weights. The size of the network is left out: what is learnt on `tiny`
is recognised on any other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from conformance.execution import MEMORY, STABILITY
from conformance.golden import SPLICE
from conformance.variants import parse_variant

LIBRARY = Path(__file__).parent / "mutants" / "fingerprints.json"

NAMED = 3
"""Up to this many wrong probes of one kind are remembered by name."""

_CEILING = 12.0
_UNLIKE = 0.25
"""Marks less alike than this are no hint."""

Mark = tuple[int, float, tuple[str, ...]]
"""Of one kind of probe: how many are wrong, log10 of the worst ratio, and their names if few."""

Marks = dict[str, dict[str, Mark]]
"""By case (regime, scenario and mode) and kind of probe; an empty dict where all was right."""


def kind_of_probe(name: str) -> str:
    """Return a probe's name without its numbers: what all layers of one kind share."""
    return re.sub(r"\d+", "*", name)


def marks_of(lines: Iterable[Mapping[str, Any]], component: str) -> Marks:
    """Make the fingerprint of a component from the case lines of a run.

    Args:
        lines: Case lines. Of several sizes, arithmetics and devices one counts: that of the first
            line that fails.
        component: Its component.

    Returns:
        The marks; cases that were skipped leave none, nor do those that differ from themselves.
    """
    others = (*STABILITY, MEMORY)
    judged = [line for line in lines if line["verdict"] != "skip" and line["mode"] not in others]
    own = [line for line in judged if line["component"] == component]
    wrong = [line for line in own if line["verdict"] in {"fail", "error"}]
    own = [line for line in own if _kind_of_run(line) == _kind_of_run((wrong or own)[0])]
    marks: Marks = {}
    for line in own:
        found = marks.setdefault(_key(line), {})
        for kind, mark in _line_marks(line).items():
            found[kind] = _joined(found.get(kind), mark)
    return marks


def _kind_of_run(line: Mapping[str, Any]) -> tuple[str, str, str]:
    return parse_variant(line["variant"]).size, line["dtype"], line.get("device", "")


def _key(line: Mapping[str, Any]) -> str:
    """Name a case without the size of its network, and its mode."""
    return f"{parse_variant(line['variant']).regime}/{line['scenario']}/{line['mode']}"


def _line_marks(line: Mapping[str, Any]) -> dict[str, Mark]:
    if line["verdict"] == "error":
        text = line["message"].partition(": ")[0]  # "the port raised RuntimeError"
        return {f"!{text}": (1, 0.0, ())}
    wrong = [p for p in line["probes"] if p["verdict"] == "fail"]
    if line["mode"] != SPLICE:
        wrong = wrong[:1]
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for probe in wrong:
        kinds.setdefault(kind_of_probe(probe["name"]), []).append(probe)
    return {
        kind: (
            len(probes),
            round(max(_log(p["ratio"]) for p in probes), 2),
            tuple(p["name"] for p in probes) if len(probes) <= NAMED else (),
        )
        for kind, probes in kinds.items()
    }


def _log(ratio: Any) -> float:
    value = float(ratio)
    return _CEILING if not value < 10**_CEILING else math.log10(value)


def _joined(before: Mark | None, mark: Mark) -> Mark:
    if before is None:
        return mark
    count, names = before[0] + mark[0], (*before[2], *mark[2])
    kept = names if count <= NAMED and len(names) == count else ()
    return count, max(before[1], mark[1]), kept


def likeness(a: Marks, b: Marks) -> float:
    """Return how alike two fingerprints are, 0 to 1, over the cases that both were run on."""
    total, weight = 0.0, 0.0
    for key in a.keys() & b.keys():
        both_right = not a[key] and not b[key]  # as most are: it says little
        own = 0.2 if both_right else 3.0 if key.endswith(SPLICE) else 1.0
        total += own * _alike(a[key], b[key])
        weight += own
    return total / weight if weight else 0.0


def _alike(a: Mapping[str, Mark], b: Mapping[str, Mark]) -> float:
    kinds = {**a, **b}
    if not kinds:
        return 1.0
    return sum(_same(a[k], b[k]) for k in kinds if k in a and k in b) / len(kinds)


def _same(a: Mark, b: Mark) -> float:
    counts = min(a[0], b[0]) / max(a[0], b[0])
    ratios = math.exp(-abs(a[1] - b[1]) / 0.7)
    if a[2] and b[2]:
        names = len({*a[2]} & {*b[2]}) / len({*a[2]} | {*b[2]})
    else:
        names = float(bool(a[2]) == bool(b[2]))
    return 0.3 + 0.25 * counts + 0.25 * ratios + 0.2 * names


@dataclass(frozen=True)
class Known:
    """The fingerprint of a catalogued mutant.

    Attributes:
        id: Its name in the catalogue.
        component: The component whose cases hunt it.
        wrong: What is wrong, in one sentence.
        marks: Its fingerprint, taken on `tiny`.
    """

    id: str
    component: str
    wrong: str
    marks: Marks

    def as_json(self) -> dict[str, Any]:
        """Return what `library` reads back."""
        return {
            "id": self.id, "component": self.component, "wrong": self.wrong, "marks": self.marks,
        }  # fmt: skip


@cache
def library(path: Path = LIBRARY) -> tuple[Known, ...]:
    """Read the fingerprints of the catalogue; none where the file is missing."""
    if not path.exists():
        return ()
    entries = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Known(
            entry["id"],
            entry["component"],
            entry["wrong"],
            {
                key: {kind: (m[0], m[1], tuple(m[2])) for kind, m in found.items()}
                for key, found in entry["marks"].items()
            },
        )
        for entry in entries
    )


def write_library(known: Iterable[Known], path: Path = LIBRARY) -> None:
    """Write the fingerprints of the catalogue, one a line."""
    lines = [json.dumps(k.as_json(), separators=(",", ":")) for k in known]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    library.cache_clear()


def known_of(component: str) -> list[Known]:
    """Return the catalogued mutants of a component."""
    return [known for known in library() if known.component == component]


def rank(marks: Marks, component: str, known: Iterable[Known] | None = None) -> list[Known]:
    """Return the mutants of a component whose fingerprints are alike, the most alike first.

    Args:
        marks: Of a failing run.
        component: Its component.
        known: Fingerprints; None for those that are shipped.
    """
    candidates = known_of(component) if known is None else list(known)
    candidates = [k for k in candidates if k.component == component]
    scored = [(likeness(marks, k.marks), k) for k in candidates]
    return [k for score, k in sorted(scored, key=lambda row: -row[0]) if score >= _UNLIKE]
