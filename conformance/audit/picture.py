"""A profile as a small picture of text: how many bits are right, layer after layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from conformance.audit.names import EXACT

_BLOCKS = " ▁▂▃▄▅▆▇█"
_STEPS = len(_BLOCKS) - 1
_COLUMNS = 70


def bits_picture(bits: Sequence[float | None], marks: Sequence[str], height: int = 4) -> list[str]:
    """Draw bits over depth as columns of block characters.

    Args:
        bits: Of each layer, in the order of execution; None where unknown.
        marks: The stage of each layer: a tick stands where it changes.
        height: Lines.

    Returns:
        Lines, 0 at the bottom, the scale at the left, and a line of ticks; what is exact is drawn
        to the top. Where there are many layers a column shows the fewest bits of several.
    """
    count = min(_COLUMNS, len(bits))
    if not count:
        return []
    edges = [round(i * len(bits) / count) for i in range(count + 1)]
    columns: list[float | None] = []
    for a, b in pairwise(edges):
        known = [x for x in bits[a:b] if x is not None and not math.isnan(x)]
        columns.append(min(known) if known else None)
    inexact = [x for x in columns if x is not None and x < EXACT]
    high = max(1, math.ceil(max(inexact, default=EXACT)))
    lines = []
    for line in range(height - 1, -1, -1):
        label = f"{high * (line + 1) / height:5.3g} "
        lines.append(label + "".join(_glyph(x, line, height, high) for x in columns).rstrip())
    ticks = [
        "╵"
        if edges[i] and any(marks[k] != marks[k - 1] for k in range(edges[i], edges[i + 1]))
        else " "
        for i in range(count)
    ]
    return [*lines, ("      " + "".join(ticks)).rstrip()]


def _glyph(value: float | None, line: int, height: int, high: float) -> str:
    """Return the part of a column that a line shows; `·` below where nothing is known."""
    if value is None:
        return "·" if line == 0 else " "
    filled = max(0.0, min(value, high)) / high * height - line
    step = round(filled * _STEPS)
    if line == 0:
        step = max(1, step)
    return _BLOCKS[max(0, min(_STEPS, step))]
