"""A run's folder, read once, line by line, keeping only what a report shows.

A run can hold thousands of cases with hundreds of probes each, so a line's probes are dropped as
soon as every section of the page has seen them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import UsageError
from conformance.report.records import VERDICTS, Case, Summary, parse_case, parse_summary
from conformance.report.text import mapping, printable, severity
from conformance.run_folder import RESULTS, SUMMARY
from conformance.run_records import KINDS

if TYPE_CHECKING:
    from conformance.report.sections import Section


@dataclass
class Run:
    """All that a report shows of a run.

    Attributes:
        out: Its folder.
        summary: The verdict.
        record: What `summary` was read from: summary.json, or what the cases say where it is not
            there. As hostile as any record.
        started: When the run began.
        cases: Its cases in the order of the file; control lines are none.
        unreadable_lines: How many lines of results.jsonl are no record.
        doubt: Why the verdict of a run that has ended is not known; empty where it is.
    """

    out: Path
    summary: Summary
    record: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    cases: list[Case] = field(default_factory=list)
    unreadable_lines: int = 0
    doubt: str = ""

    def line(self, case: Case) -> dict[str, Any]:
        """Read the line of one of the cases once more, for its probes."""
        with (self.out / RESULTS).open("rb") as file:
            file.seek(case.place)
            return _object(file.readline())


def read_run(out: Path, sections: Iterable[Section] = ()) -> Run:
    """Read a run's folder.

    Args:
        out: The folder with `results.jsonl` and, once the run has ended, `summary.json`.
        sections: Parts of a page, each of which is told every record.

    Returns:
        The run. Where the footer is missing, summary.json is not trusted (it may be left over
        from an earlier run) and the summary is made from the cases that are there.

    Raises:
        UsageError: `out` holds no results.jsonl.
    """
    results = out / RESULTS
    if not results.is_file():
        message = f"{out} holds no results.jsonl: give the folder that a run wrote (--out)"
        raise UsageError(message)
    told = tuple(sections)
    header: dict[str, Any] = {}
    footer: dict[str, Any] | None = None
    run = Run(out, parse_summary({}))
    for place, record in _records(results):
        kind = record.get("type")
        if kind not in KINDS:
            run.unreadable_lines += 1
            continue
        match kind:
            case "header":
                header = record
            case "footer":
                footer = record
            case "case":
                run.cases.append(parse_case(record, place))
        for section in told:
            section.add(record)
    run.started = printable(header.get("started"))
    run.record = {**header, **_derive(run.cases)}
    if footer is not None:
        run.record |= {"seconds": footer.get("seconds"), **read_object(out / SUMMARY)}
        run.doubt = doubt_of(out)
    run.summary = replace(parse_summary(run.record), finished=footer is not None)
    return run


def doubt_of(out: Path) -> str:
    """Say why the verdict of a run that has ended is not known; empty where it is."""
    path = out / SUMMARY
    if read_object(path):
        return ""
    what = "cannot be read" if path.exists() else "is missing"
    return f"The verdict is not known: {SUMMARY} {what}: run again with --resume"


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty one where it is missing or cut."""
    try:
        return mapping(json.loads(path.read_text("utf-8", errors="replace")))
    except (OSError, ValueError, RecursionError):
        return {}


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield where each line of a JSON-lines file begins, in bytes, and its object."""
    place = 0
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield place, _object(line)
            place += len(line)


def _object(line: bytes) -> dict[str, Any]:
    """Return a line's object; an empty one where it cannot be read."""
    try:
        return mapping(json.loads(line.decode("utf-8", errors="replace")))
    except (ValueError, RecursionError):
        return {}


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
