"""A comparison of two bench files, as lines for a terminal."""

from __future__ import annotations

import numpy as np

from conformance.bench.record import quartiles
from conformance.bench.table import between, figure
from conformance.environment import changes_text
from conformance.regression.bench import BETTER, UNDECIDED, WORSE, BenchDiff, Moved
from conformance.report.text import counted, one_line

_TEXT = 400
_MOST, _CHANGED, _NAMES = 20, 6, 5


def bench_lines(found: BenchDiff) -> list[str]:
    """Write a comparison: the verdict, what got worse, what got better, what is to be known.

    Args:
        found: From `bench_diff`.

    Returns:
        A few lines.
    """
    lines = [
        one_line(f"{name:6} {file.path}: bench {file.bench}, suite {file.suite}", _TEXT)
        for name, file in (("before", found.before), ("after", found.after))
    ]
    worse, better, undecided = (found.of(what) for what in (WORSE, BETTER, UNDECIDED))
    compared = len(found.moved)
    if worse:
        lead = "REGRESSION"
    elif found.nothing:
        lead = "NOTHING COMPARED: no row of both files could be judged;"
    else:
        lead = "NO REGRESSION"
    told = [f"{len(rows)} {what}" for what, rows in ((WORSE, worse), (BETTER, better)) if rows]
    told += [] if told or found.nothing else ["nothing moved beyond noise"]
    told += [f"{len(undecided)} undecided"] if undecided else []
    told.append(f"{counted(compared, 'row')} of both")
    lines.append(f"{lead} {'; '.join(told)}")
    lines += [_fact("note", note) for note in found.notes]
    for label, rows in ((WORSE, worse), (BETTER, better)):
        lines += [_fact(label, _moved(moved)) for moved in rows[:_MOST]]
        if len(rows) > _MOST:
            lines.append(_fact("", f"and {len(rows) - _MOST} more"))
    lines += [
        _fact(f"only {side}", _names(names))
        for side, names in (("A", found.lost), ("B", found.new))
        if names
    ]
    if found.environment:
        lines.append(_fact("changed", changes_text(found.environment, _CHANGED)))
    return lines


def _moved(moved: Moved) -> str:
    """Write what a row was and is."""
    before, after = moved.before, moved.after
    factor = "" if moved.factor is None else f" (x {moved.factor:.3g})"
    figures = [figure(row.value, row.unit) for row in (before, after)]
    if moved.p is None:
        grown = f", {after.value - before.value:+,.0f} B" if after.unit == "bytes" else ""
        return f"{after.name} {' -> '.join(figures)}{factor}{grown}"
    told = f"{after.name} {' -> '.join(figures)}"
    if before.ratios and after.ratios:
        ratios = [
            f"{np.median(row.ratios):.3g} ({_half(row.ratios, 'ratio')})" for row in (before, after)
        ]
        told += f"; of the reference's {' -> '.join(ratios)}"
    else:
        told += (
            f"; middle halves {' -> '.join(_half(row.runs, row.unit) for row in (before, after))}"
        )
    return f"{told}{factor}, p {moved.p:.1g}"


def _half(runs: tuple[float, ...], unit: str) -> str:
    return between(*quartiles(runs), unit)


def _names(names: list[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def _fact(name: str, value: str) -> str:
    return f"  {name:<8} {one_line(value, _TEXT)}"
