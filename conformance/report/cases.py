"""The table of all cases: filtered, sorted and opened by the script, from columns of data."""

from __future__ import annotations

from typing import Any, ClassVar

from conformance.report.records import (
    FAILING,
    VERDICTS,
    Case,
    Probe,
    excerpt_of,
    parse_probes,
)
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import case_name, number_text, numbered, severity, shorten
from conformance.report.words import measured, rerun_command

DETAILED = 100
"""How many failing cases show their probes; that of the first divergence always does."""

_PLAIN = 200
"""Cases that did not pass, listed where there is no script."""

_TEXT, _ALL_TEXT = 300, 1_000_000
"""Characters of a case's message, and of all messages together, about."""

_NAME = "\x01"
"""Stands in a command for the case's name, which most commands differ in alone."""

_WORDS = ("component", "variant", "scenario", "dtype", "device", "backend", "mode", "verdict")


class Cases(Section):
    """Every case; of the first failing ones some probes too."""

    name: ClassVar[str] = "cases"
    title: ClassVar[str] = "All cases"
    template: ClassVar[str] = "cases.html"

    def view(self, run: Run) -> View:
        """Write the columns, and a plain list of what did not pass."""
        notable = sorted((case for case in run.cases if case.verdict != "pass"), key=_urgency)
        first = run.summary.divergence
        failing = [case for case in notable if case.verdict in FAILING]
        named = [case for case in failing if first is not None and case.case == first.case]
        detailed = dict.fromkeys([*named, *failing[:DETAILED]])
        return {
            "count": len(run.cases),
            "notable": notable[:_PLAIN],
            "more": len(notable) - _PLAIN,
            "data": {
                **_columns(run),
                "details": {case.case: _details(case, run.line(case)) for case in detailed},
                "verdicts": VERDICTS,
            },
        }


def _urgency(case: Case) -> tuple[int, int, float]:
    """Order cases: failures first, the worst ratio first among them."""
    known, ratio = severity(case.ratio)
    return (VERDICTS.index(case.verdict), -known, -ratio)


def _columns(run: Run) -> dict[str, Any]:
    """Write all cases as columns; texts that repeat are numbers into a list."""
    cases = run.cases
    most = max(60, min(_TEXT, _ALL_TEXT // max(1, len(cases))))
    divergences = [case.divergence for case in cases]
    return {
        "id": [case.case for case in cases],
        **{word: numbered(getattr(case, word) for case in cases) for word in _WORDS},
        "ratio": [_short(case.ratio) for case in cases],
        "seconds": [_short(case.seconds) for case in cases],
        "worst": numbered(case.worst_probe for case in cases),
        "first": numbered(first.probe if first else "" for first in divergences),
        "message": numbered(shorten(case.message, most) for case in cases),
        "hunts": numbered(shorten(case.hunts, most) for case in cases),
        "rerun": numbered(_command(run, case.case) for case in cases),
        "order": sorted(range(len(cases)), key=lambda i: _urgency(cases[i])),
    }


def _command(run: Run, case: str) -> str:
    command = rerun_command(run.summary.port_spec, case, run.summary.options)
    return command.replace(f'"{case_name(case)}"', f'"{_NAME}"', 1)


def _details(case: Case, record: dict[str, Any]) -> dict[str, Any]:
    """Write what a failing case's row opens to, beside what every row does."""
    first = case.divergence
    excerpt = excerpt_of(parse_probes(record), first)
    return {
        "message": case.message,
        "detail": case.detail,
        "after": first.after if first else "",
        "measured": measured(first) if first else "",
        "kind": first.kind if first else "",
        "hint": first.hint if first and first.hint != measured(first) else "",
        "around": [_cells(probe) for probe in excerpt.around],
        "worst": [_cells(probe) for probe in excerpt.worst],
        "total": excerpt.total,
    }


def _cells(probe: Probe) -> list[str | int]:
    """Write a probe as a row of a table."""
    ratio = number_text(probe.ratio)
    return [
        probe.order,
        probe.verdict,
        "wrong shape" if probe.wrong_shape else f"≈ {ratio}" if probe.approximate else ratio,
        f"{probe.name} (output)" if probe.kind == "output" else probe.name,
        *map(number_text, (probe.err, probe.noise, probe.rms, probe.max_abs)),
        probe.wrong_shape or probe.shape,
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
