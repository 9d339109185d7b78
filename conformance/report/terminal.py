"""The verdict in a few lines of plain text, for the end of a run."""

from __future__ import annotations

import math
from typing import Any

from conformance.report.records import Summary, parse_summary
from conformance.report.text import number_text, one_line
from conformance.report.words import (
    counts_text,
    depth_text,
    expected_text,
    headline,
    level_text,
    measured,
    rerun_command,
    sentence,
)

_LONGEST = 400


def verdict_lines(summary: dict[str, Any]) -> list[str]:
    """Write a run's verdict for the terminal.

    Args:
        summary: The contents of `summary.json`.

    Returns:
        At most 20 lines without line ends or control characters: the verdict, counts, worst ratio
        against the limit, scope, level, depth and, where there are any, how the expected failures
        fit, stamps and the first divergence.
    """
    parsed = parse_summary(summary)
    lines = [
        one_line(f"{headline(parsed).upper()}: {sentence(parsed)}", _LONGEST),
        _fact("cases", counts_text(parsed)),
        _fact("worst", _worst(parsed)),
        _fact("scope", parsed.scope or "not stated"),
        _fact("level", level_text(parsed)),
    ]
    if parsed.depth:
        lines.append(_fact("depth", depth_text(parsed)))
    if parsed.expected:
        lines.append(_fact("xfails", expected_text(parsed.expected)))
    if parsed.stamps:
        lines.append(_fact("stamps", ", ".join(parsed.stamps)))
    if first := parsed.divergence:
        lines += [
            one_line(f"First divergence in {first.case}", _LONGEST),
            _fact("probe", first.probe),
            _fact("after", first.after or "nothing: it is the first probe"),
            _fact(*measured(first).split(" ", 1)),
            _fact("kind", first.kind or "unexplained"),
        ]
        if first.hint and first.hint != measured(first):
            lines.append(_fact("hint", first.hint))
        lines += _causes(summary)
        lines.append(_fact("rerun", rerun_command(parsed.port_spec, first.case, parsed.options)))
    return lines


def _worst(summary: Summary) -> str:
    """Say how far off the worst probe of all cases is."""
    worst = summary.worst_ratio
    if worst is not None and math.isnan(worst):
        return "not a number: a wrong shape, or values that are not finite"
    known = ", expected failures included" if summary.counts["xfail"] else ""
    return f"ratio {number_text(worst)}, limit {number_text(summary.limit)}{known}"


_MOST_CAUSES = 3


def _causes(summary: dict[str, Any]) -> list[str]:
    """Name the causes that the failures come down to."""
    faults = [fault for fault in summary.get("faults", ()) if isinstance(fault, dict)]
    texts = []
    for fault in faults[:_MOST_CAUSES]:
        cause = f"mutant {fault['mutant']}, confirmed" if fault.get("confirmed") else "unknown"
        texts.append(f"{cause}: {fault.get('count')} at {fault.get('probes')}")
    if len(faults) > _MOST_CAUSES:
        texts[-1] += f"; and {len(faults) - _MOST_CAUSES} more in summary.json"
    return [_fact("cause", text) for text in texts]


def _fact(name: str, value: str) -> str:
    return f"  {name:<6} {one_line(value, _LONGEST)}"
