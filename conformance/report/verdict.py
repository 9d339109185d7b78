"""The verdict: counts, level, stamps, what was judged beside the port, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conformance.report.gates import gates
from conformance.report.records import Summary
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import mapping, number_text, printable
from conformance.report.words import depth_text, expected_text, level_text

_SHOWN = {
    "pass": "pass",
    "warn": "pass, over half the limit",
    "fail": "fail",
    "error": "broke",
    "xpass": "pass, though listed to fail",
    "xfail": "known to fail",
    "skip": "skipped",
}
_LEAST = 0.6
"""Percent of the bar that one case gets at least, so that it is seen among thousands."""


@dataclass(frozen=True)
class Share:
    """The cases of one verdict, as a piece of the bar; `x` and `width` in percent."""

    verdict: str
    label: str
    count: int
    x: float
    width: float


class Verdict(Section):
    """What the run says as a whole."""

    name: ClassVar[str] = "verdict"
    title: ClassVar[str] = "Verdict"
    template: ClassVar[str] = "verdict.html"

    def view(self, run: Run) -> View:
        """List the facts."""
        summary = run.summary
        return {
            "shares": _shares(summary),
            "level": level_text(summary),
            "seen": depth_text(summary),
            "expected": expected_text(summary.expected) if summary.expected else "",
            "gates": gates(run.record),
            "environment": _environment(run),
        }


def _shares(summary: Summary) -> list[Share]:
    """Divide the bar among the verdicts that occur."""
    found = [v for v in _SHOWN if summary.counts[v]]
    total = sum(summary.counts[v] for v in found) or 1
    sizes = [max(_LEAST, 100 * summary.counts[v] / total) for v in found]
    scale = 100 / sum(sizes) if sizes else 1
    shares, x = [], 0.0
    for verdict, size in zip(found, sizes, strict=True):
        width = round(size * scale, 3)
        shares.append(Share(verdict, _SHOWN[verdict], summary.counts[verdict], round(x, 3), width))
        x += width
    return shares


def _environment(run: Run) -> list[tuple[str, str]]:
    """Return what is known of port, suite and machine, row by row."""
    summary = run.summary
    rows = [
        ("port", f"{summary.port} {summary.port_version}".strip()),
        ("port as given", summary.port_spec),
        ("suite", summary.suite),
        ("started", run.started),
        ("seconds", number_text(summary.seconds)),
        ("shard", printable(run.record.get("shard"))),
        *(
            (f"weights: {printable(k)}", printable(v))
            for k, v in mapping(run.record.get("weights")).items()
        ),
        ("left out of data/", printable(run.record.get("left_out") or None)),
        *sorted(summary.environment.items()),
    ]
    return [(name, value) for name, value in rows if value]
