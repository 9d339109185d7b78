"""Whether a run's files are whole and of one run: what does not agree is not reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.report.run import read_object
from conformance.report.text import mapping, number, one_line
from conformance.run_folder import RESULTS, SUMMARY
from conformance.run_records import damaged, miscounted, whole_records
from conformance.summary import VERDICTS, verdict_of

_ROUNDED = 0.001
"""Seconds to which summary.json rounds the time that the footer tells."""


def require_whole(out: Path) -> bool:
    """Refuse a run of which a line is damaged or missing, or whose summary.json is another run's.

    Args:
        out: Its folder. The last line of a run that did not end may be cut, and summary.json may be
            missing: that is then said, and no verdict given.

    Returns:
        Whether the run has ended.

    Raises:
        UsageError: The files do not agree; the message names file and field.
    """
    path = out / RESULTS
    if not path.is_file():
        message = f"{out} holds no {RESULTS}: give the folder that a run wrote (--out)"
        raise UsageError(message)
    ends: dict[str, dict[str, Any]] = {}
    verdicts: Counter[str] = Counter()
    controls = 0
    for _, record in whole_records(path):
        kind = record["type"]
        if kind in {"header", "footer"}:
            ends[kind] = record
        elif kind == "case":
            verdicts[one_line(record.get("verdict"))] += 1
        else:
            controls += 1
    if "header" not in ends:
        raise damaged(path, "it holds no header")
    if "footer" not in ends:
        return False
    if wrong := miscounted(ends["footer"], verdicts, controls):
        raise damaged(path, wrong)
    summary = read_object(out / SUMMARY)
    field = _other(summary, ends["header"], ends["footer"]) if summary else ""
    if field:
        message = (
            f"{out / SUMMARY} is not of the run in {RESULTS}: its {field} differs; run again with "
            "--resume"
        )
        raise UsageError(message)
    return True


def _other(summary: Mapping[str, Any], header: Mapping[str, Any], footer: Mapping[str, Any]) -> str:
    """Return the field in which summary.json is not that of its run; empty if there is none."""
    told = mapping(summary.get("counts"))
    counts = mapping(footer.get("counts", told))
    if any(told.get(name, 0) != counts.get(name, 0) for name in {**told, **counts}):
        return "counts"
    same = (name for name in ("suite", "port", "shard") if name in summary and name in header)
    field = next((name for name in same if summary[name] != header[name]), "")
    if field:
        return field
    if not str(summary.get("scope", "")).startswith(str(header.get("scope", ""))):
        return "scope"
    seconds = [number(record.get("seconds")) for record in (summary, footer)]
    if None not in seconds and abs((seconds[0] or 0) - (seconds[1] or 0)) > _ROUNDED:
        return "seconds"
    return "" if summary.get("verdict") == _verdict(summary, told) else "verdict"


def _verdict(summary: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """Draw the verdict anew from what summary.json counts."""
    missing = summary.get("missing_shards")
    return verdict_of(
        {name: int(number(told.get(name)) or 0) for name in VERDICTS},
        mapping(summary.get("xfails")),
        mapping(summary.get("control")),
        missing if isinstance(missing, list) else [],
    )
