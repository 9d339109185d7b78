"""The verdict in plain text, for the end of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from conformance.execution import MEMORY, SDPA, STABILITY
from conformance.report.causes import causes_text
from conformance.report.gates import gates
from conformance.report.records import Summary, parse_case, parse_summary
from conformance.report.tally import Row, columns, tally
from conformance.report.text import ELLIPSIS, count, mapping, number_text, one_line, size_text
from conformance.report.words import (
    counts_text,
    depth_text,
    expected_text,
    headline,
    level_text,
    measured,
    rerun_of,
    sentence,
)

_LONGEST = 400
_SCOPE = 1200
"""Longest scope: that of all components ends with what was not run."""

_ROWS = 14
_WIDTH = 80
_LEAST_WHERE = 12
_LEADS = {"conformant": "\x1b[1;36m", "nonconformant": "\x1b[1;33m", "incomplete": "\x1b[1;35m"}
_PLAIN = "\x1b[0m"


def verdict_lines(
    summary: dict[str, Any], lines: Iterable[dict[str, Any]] = (), *, colour: bool = False
) -> list[str]:
    """Write a run's verdict for the terminal.

    Args:
        summary: The contents of `summary.json`.
        lines: The run's case lines, for the table by component and arithmetic.
        colour: Whether to colour the verdict and the rows that fail (ANSI).

    Returns:
        Lines without line ends or control characters but those of the colours: the verdict, counts,
        worst ratio against the limit, scope, level and what else there is to say of the run; the
        table, about 80 columns wide; the causes in one line; the first divergence in at most 15.
    """
    parsed, lines = parse_summary(summary), list(lines)
    lead = one_line(f"{headline(parsed).upper()}: {sentence(parsed)}", _LONGEST)
    written = [_painted(lead, parsed.verdict, colour=colour), *_facts(parsed, lines)]
    if parsed.stamps_missing and any(map(_is_for_stamps, lines)):
        gaps = (f"{name}: {text}" for name, text in parsed.stamps_missing.items())
        written.append(_fact("unmet", ". ".join(gaps)))
    written += [_fact(gate.name, gate.text) for gate in gates(summary)]
    written += _table([*tally(map(parse_case, lines), _ROWS)], colour=colour)
    if parsed.faults:
        written.append(_fact("causes", causes_text(parsed)))
    return written + _divergence(parsed)


def wants_colour(stream: TextIO) -> bool:
    """Say whether a stream is a terminal whose user has not asked for plain text (NO_COLOR)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def _facts(summary: Summary, lines: Sequence[dict[str, Any]]) -> list[str]:
    held = [line for line in lines if line.get("mode") == MEMORY]
    alone = bool(held) and len(held) == len(lines)  # nothing was computed: no ratio, no level
    facts = [
        _fact("items", counts_text(summary)),
        *([] if alone else [_fact("worst", _worst(summary))]),
        *([_fact("held", _held_text(held))] if held else []),
        _fact("scope", summary.scope or "not stated", longest=_SCOPE),
        *([] if alone else [_fact("level", level_text(summary))]),
    ]
    if summary.depth:
        facts.append(_fact("depth", depth_text(summary)))
    if summary.expected:
        facts.append(_fact("xfails", expected_text(summary.expected)))
    if summary.stamps:
        facts.append(_fact("stamps", ", ".join(summary.stamps)))
    return facts


def _is_for_stamps(line: dict[str, Any]) -> bool:
    """Say whether a line is of a backend or of a mode that only stamps ask for."""
    return line.get("backend") not in {"", SDPA, None} or line.get("mode") in (*STABILITY, MEMORY)


def _divergence(summary: Summary) -> list[str]:
    first = summary.divergence
    if first is None:
        return []
    lines = [
        one_line(f"First divergence in {first.case}", _LONGEST),
        _fact("probe", first.probe),
        _fact("after", first.after or "nothing: it is the first probe"),
        _fact(*measured(first).split(" ", 1)),
        _fact("kind", first.kind or "unexplained"),
    ]
    if first.hint and first.hint != measured(first):
        lines.append(_fact("hint", first.hint))
    lines.append(_fact("rerun", rerun_of(summary, first)))
    return lines


def _table(rows: Sequence[Row], *, colour: bool) -> list[str]:
    """Write the rows aligned; what does not fit of the last column loses its beginning."""
    if not rows:
        return []
    verdicts = columns(rows)
    head = ["component", "dtype", "items", *verdicts, "worst"]
    cells = [
        [
            one_line(row.component),
            one_line(row.dtype),
            str(row.cases),
            *(str(row.counts[verdict] or "") for verdict in verdicts),
            _short(row.worst_ratio),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    room = max(_LEAST_WHERE, _WIDTH - sum(widths) - 2 * len(widths) - 2)
    lines = ["", _aligned(head, widths, "where")]
    for row, own in zip(rows, cells, strict=True):
        where = one_line(row.worst.worst_probe) if row.worst else ""
        text = _aligned(own, widths, _end_of(where, room))
        lines.append(_painted(text, "nonconformant" if row.wrong else "", colour=colour))
    return [*lines, ""]


def _end_of(name: str, most: int) -> str:
    """Cut a dotted name at its beginning, in front of a dot if there is one near."""
    if len(name) <= most:
        return name
    end = name[1 - most :]
    dot = end.find(".", 0, most // 2)
    return ELLIPSIS + end[max(0, dot) :]


def _aligned(cells: Sequence[str], widths: Sequence[int], last: str) -> str:
    """Join cells, the two names to the left and the numbers to the right."""
    texts = [
        cell.ljust(width) if i < 2 else cell.rjust(width)  # noqa: PLR2004 - two names
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  " + "  ".join([*texts, last]).rstrip()


def _painted(text: str, verdict: str, *, colour: bool) -> str:
    return f"{_LEADS[verdict]}{text}{_PLAIN}" if colour and verdict else text


def _short(ratio: float | None) -> str:
    return "nan" if ratio is not None and math.isnan(ratio) else number_text(ratio)


def _worst(summary: Summary) -> str:
    """Say how far off the worst probe of all cases is."""
    worst = summary.worst_ratio
    if worst is not None and math.isnan(worst):
        return "not a number: a wrong shape, or values that are not finite"
    known = ", expected failures included" if summary.counts["xfail"] else ""
    return f"ratio {number_text(worst)}, limit {number_text(summary.limit)}{known}"


def _held_text(lines: Iterable[dict[str, Any]]) -> str:
    """Say what is held at most, and where the reference's peak is nearest or exceeded by most."""
    found = [(line, mapping(line.get("memory"))) for line in lines]
    known = [(count(facts.get("peak")), line["case"], facts) for line, facts in found if facts]
    if not known:
        return "nothing was judged: every configuration was skipped, or broke"
    peak, case, facts = max(known, key=lambda row: row[0])
    text = f"{size_text(peak)} at most, beside {size_text(count(facts.get('weights')))} of weights"
    text += f", in {case}"
    beside = [(own / most, name) for own, name, f in known if (most := count(f.get("ceiling")))]
    if beside:
        share, name = max(beside)
        text += f"; {number_text(share)} of the reference's peak at most, in {name}"
    return text


def _fact(name: str, value: str, *, longest: int = _LONGEST) -> str:
    return f"  {name:<6} {one_line(value, longest)}"
