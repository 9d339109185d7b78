"""The verdict in a few lines of plain text, for the end of a run."""

from __future__ import annotations

from typing import Any

from conformance.report.records import parse_summary
from conformance.report.text import number_text, one_line
from conformance.report.words import counts_text, headline, level_text, rerun_command, sentence

_LONGEST = 400


def verdict_lines(summary: dict[str, Any]) -> list[str]:
    """Write a run's verdict for the terminal.

    Args:
        summary: The contents of `summary.json`.

    Returns:
        At most 15 lines without line ends or control characters: the verdict, counts, worst ratio
        against the limit, scope, level and, where there is one, the first divergence.
    """
    parsed = parse_summary(summary)
    lines = [
        one_line(f"{headline(parsed).upper()}: {sentence(parsed)}", _LONGEST),
        _fact("cases", counts_text(parsed)),
        _fact("worst", f"ratio {number_text(parsed.worst_ratio)}, {_limit(parsed.limit)}"),
        _fact("scope", parsed.scope or "not stated"),
        _fact("level", level_text(parsed)),
    ]
    if parsed.stamps:
        lines.append(_fact("stamps", ", ".join(parsed.stamps)))
    if first := parsed.divergence:
        lines += [
            one_line(f"First divergence in {first.case}", _LONGEST),
            _fact("probe", first.probe),
            _fact("after", first.after or "nothing: it is the first probe"),
            _fact("ratio", f"{number_text(first.ratio)}, {_limit(first.limit)}"),
            _fact("kind", first.kind or "unexplained"),
        ]
        if first.hint:
            lines.append(_fact("hint", first.hint))
        lines.append(_fact("rerun", rerun_command(parsed.port_spec, first.case)))
    return lines


def _fact(name: str, value: str) -> str:
    return f"  {name:<6} {one_line(value, _LONGEST)}"


def _limit(limit: float | None) -> str:
    return f"limit {number_text(limit)}"
