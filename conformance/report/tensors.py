"""The first wrong tensor of a failing case, from `data/`: read with nothing taken for granted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.report.run import read_object
from conformance.report.text import count, mapping, number, number_text, printable

MOST_BARS = 256
"""Bars of one axis; of a longer one each bar is the worst of a stretch."""

_MOST_CELLS = 64
_MOST_VALUES = 100_000
_FILE = re.compile(r"[\w-][\w.-]*\.json")


@dataclass(frozen=True)
class Bars:
    """The ratio of every slice of an axis, or the worst of every `step` of them."""

    axis: str
    length: int
    step: int
    values: list[float | None]


@dataclass(frozen=True)
class Map:
    """Ratios over two axes; each cell is the worst of `step` rows and columns."""

    rows: str
    columns: str
    of: tuple[int, int]
    values: list[list[float | None]]


@dataclass(frozen=True)
class Tensor:
    """A wrong tensor, as a run left it; `worst` is the element with the largest error."""

    case: str
    probe: str
    shape: list[int]
    axes: list[str]
    ratio: float | None
    pcc: float | None
    caption: str
    bars: list[Bars]
    map: Map | None
    worst: tuple[int, ...]
    got: float | None
    expected: float | None


def read_tensor(out: Path, name: str) -> Tensor | None:
    """Read one file of `data/`.

    Args:
        out: The run's folder.
        name: The file, as a case line names it.

    Returns:
        The tensor; None where the name is no plain one, or the file shows nothing.
    """
    record = read_object(out / "data" / name) if _FILE.fullmatch(name) else {}
    axes = [printable(axis, 24) for axis in _list(record.get("axes"))[:8]]
    bars = [
        bars_of(printable(axis, 24), [_ratio(value) for value in _list(values)[:_MOST_VALUES]])
        for axis, values in list(mapping(record.get("slices")).items())[:8]
    ]
    bars = [bar for bar in bars if bar.length > 1]
    found = _map(mapping(record.get("map")))
    if not bars and found is None:
        return None
    worst = mapping(record.get("worst"))
    return Tensor(
        case=printable(record.get("case")),
        probe=printable(record.get("probe")),
        shape=[count(size) for size in _list(record.get("shape"))[:8]],
        axes=axes,
        ratio=number(record.get("ratio")),
        pcc=number(record.get("pcc")),
        caption=printable(record.get("caption")),
        bars=bars,
        map=found,
        worst=tuple(count(place) for place in _list(worst.get("index"))[:8]),
        got=number(worst.get("got")),
        expected=number(worst.get("expected")),
    )


def bars_of(axis: str, values: Sequence[float | None], most: int = MOST_BARS) -> Bars:
    """Make at most `most` bars of an axis."""
    step = math.ceil(len(values) / most) or 1
    stretches = (values[i : i + step] for i in range(0, len(values), step))
    return Bars(axis, len(values), step, [max(s, key=_badness) for s in stretches])


def pcc_text(pcc: float) -> str:
    """Write a correlation with as many digits as tell it from 1."""
    apart = abs(1 - pcc)
    if not math.isfinite(pcc):
        return number_text(pcc)
    if apart == 0:
        return "1"
    digits = min(12, max(3, 1 - math.floor(math.log10(apart))))
    whole, _, decimals = f"{pcc:.{digits}f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(3, '0')}"


def _map(record: dict[str, Any]) -> Map | None:
    rows = [_list(row)[:_MOST_CELLS] for row in _list(record.get("values"))[:_MOST_CELLS]]
    width = max(map(len, rows), default=0)
    of = [count(size) for size in _list(record.get("of"))]
    if not width or len(of) != 2:  # noqa: PLR2004 - a map has two axes
        return None
    values = [[*(_ratio(value) for value in row), *[None] * (width - len(row))] for row in rows]
    names = (printable(record.get("rows"), 24), printable(record.get("columns"), 24))
    return Map(*names, (max(len(rows), of[0]), max(width, of[1])), values)


def _ratio(value: object) -> float | None:
    found = number(value)
    return None if found is None else float(f"{found:.3g}")


def _badness(value: float | None) -> float:
    return -1.0 if value is None else math.inf if math.isnan(value) else value


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
