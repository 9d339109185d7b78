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
        lines += _causes(summary)
        lines.append(_fact("rerun", rerun_command(parsed.port_spec, first.case)))
    return lines


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


def _limit(limit: float | None) -> str:
    return f"limit {number_text(limit)}"
