"""A run's folder, read once, line by line, keeping only what a report shows.

A run can hold thousands of cases with hundreds of probes each, so a case's probes are dropped as
soon as its excerpt is taken; only those of the case with the worst ratio are kept whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.report.records import (
    FAILING,
    VERDICTS,
    Case,
    Probe,
    Summary,
    parse_case,
    parse_probes,
    parse_summary,
)
from conformance.report.text import mapping, printable, severity

DETAILED = 100
"""How many failing cases keep an excerpt of their probes; the first divergence always does."""


@dataclass
class Run:
    """All that a report shows of a run."""

    summary: Summary
    started: str
    cases: list[Case] = field(default_factory=list)
    detailed: list[Case] = field(default_factory=list)
    worst: Case | None = None
    worst_probes: list[Probe] = field(default_factory=list)
    unreadable_lines: int = 0


def read_run(out: Path) -> Run:
    """Read a run's folder.

    Args:
        out: The folder with `results.jsonl` and, once the run has ended, `summary.json`.

    Returns:
        The run. Where the footer is missing, summary.json is not trusted (it may be left over
        from an earlier run) and the summary is made from the cases that are there.

    Raises:
        UsageError: `out` holds no results.jsonl.
    """
    results = out / "results.jsonl"
    if not results.is_file():
        message = f"{out} holds no results.jsonl: give the folder that a run wrote (--out)"
        raise UsageError(message)
    stored = _read_summary(out / "summary.json")
    named = mapping(stored.get("first_divergence")).get("case")
    header: dict[str, Any] = {}
    footer: dict[str, Any] | None = None
    run = Run(parse_summary({}), started="")
    for record in _records(results):
        match record.get("type"):
            case "header":
                header = record
            case "footer":
                footer = record
            case "case":
                _add_case(run, record, always_in_detail=record.get("case") == named)
            case _:
                run.unreadable_lines += 1
    run.started = printable(header.get("started"))
    derived = {**header, **_derive(run.cases)}
    if footer is None:
        run.summary = replace(parse_summary(derived), finished=False)
    else:
        run.summary = parse_summary({**derived, "seconds": footer.get("seconds"), **stored})
    return run


def _add_case(run: Run, record: dict[str, Any], *, always_in_detail: bool) -> None:
    """Add a case line to the run, keeping no more of its probes than a report shows."""
    probes = record.get("probes")
    probes = probes if isinstance(probes, list) else []
    room = always_in_detail or len(run.detailed) < DETAILED
    in_detail = record.get("verdict") in FAILING and room
    case = parse_case(record, probes if in_detail else [])
    run.cases.append(case)
    if in_detail:
        run.detailed.append(case)
    if not probes or case.dtype == "int64":  # token ids have no depth to look into
        return
    if run.worst is None or severity(case.ratio) > severity(run.worst.ratio):
        run.worst = case
        run.worst_probes = parse_probes(probes)


def _read_summary(path: Path) -> dict[str, Any]:
    """Return summary.json, or nothing where it is missing or cut."""
    try:
        return mapping(json.loads(path.read_text("utf-8", errors="replace")))
    except (FileNotFoundError, ValueError):
        return {}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; an empty one for a line that cannot be read."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                try:
                    yield mapping(json.loads(line))
                except (ValueError, RecursionError):
                    yield {}


def _derive(cases: list[Case]) -> dict[str, Any]:
    """Make from the cases what summary.json would say of them."""
    failing = [case for case in cases if case.verdict == "fail" and case.divergence]
    failing.sort(key=lambda case: "-splice]" not in case.case)
    worst = max((case.ratio for case in cases), key=severity, default=None)
    counts = {verdict: sum(case.verdict == verdict for case in cases) for verdict in VERDICTS}
    derived: dict[str, Any] = {
        "verdict": "nonconformant" if counts["fail"] or counts["xpass"] else "incomplete",
        "counts": counts,
        "worst_ratio": worst,
    }
    if failing and failing[0].divergence:
        derived["first_divergence"] = vars(failing[0].divergence)
    return derived
