"""Whether a run's files are whole and of one run: what does not agree is not reported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.report.run import read_object
from conformance.report.text import mapping, number, one_line
from conformance.run_folder import KINDS, RESULTS, SUMMARY, miscounted
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
    verdicts: Counter[str] = Counter()
    header: dict[str, Any] = {}
    footer: dict[str, Any] | None = None
    for record in _records(path):
        match record["type"]:
            case "header":
                header = record
            case "case":
                verdicts[one_line(record.get("verdict"))] += 1
            case "footer":
                footer = record
    if not header:
        raise _damaged(path, ": it holds no header")
    if footer is None:
        return False
    if wrong := miscounted(footer, verdicts):
        raise _damaged(path, f": {wrong}")
    summary = read_object(out / SUMMARY)
    field = _other(summary, header, footer) if summary else ""
    if field:
        message = (
            f"{out / SUMMARY} is not of the run in {RESULTS}: its {field} differs; run again with "
            "--resume"
        )
        raise UsageError(message)
    return True


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run; a cut last line is left out, and anything else refused."""
    ended = False
    with path.open("rb") as lines:
        for place, text in enumerate(lines, start=1):
            record = _parsed(text)
            cut = record is None and place > 1 and not text.endswith(b"\n")
            if cut and not ended:
                return
            kind = None if record is None else record.get("type")
            if record is None or kind not in KINDS:
                raise _damaged(path, f" at line {place}: it is no line of a run")
            if (kind == "header") != (place == 1) or ended:
                raise _damaged(path, f" at line {place}: its lines are not in the order of a run")
            ended = kind == "footer"
            yield record


def _parsed(text: bytes) -> dict[str, Any] | None:
    """Return a line's object; None where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is damaged{what}; run it again")


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
