"""The header of results.jsonl: what a run is, so that another run can tell whether it is the same.

A run that is resumed, and shards that are merged, must be of one port, suite and set of goldens.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.manifest import manifest_digest
from conformance.report.text import one_line
from conformance.tolerance import LIMIT
from conformance.xfails import FIELDS, Entry, Xfails

Header = dict[str, Any]

RESUMED = ("suite", "port", "scope", "goldens", "weights", "control")
"""What a run that is resumed must not have changed. Expected failures may: they are judged anew."""

_MOST_LINES = 100_000


def header_of(
    port: Mapping[str, str],
    scope: str,
    environment: Mapping[str, str],
    started: dt.datetime,
    *,
    suite: str,
    offers: Collection[str],
    backends: Collection[str],
    options: Collection[str] = (),
    weights: Mapping[str, Any] | None = None,
    xfails: Xfails | None = None,
    shard: str | None = None,
    items: Mapping[str, Any] | None = None,
    control: str | None = None,
    process: int,
) -> Header:
    """Make the first line of results.jsonl.

    Args:
        port: Name, version and spec of the port, and the digest of its files.
        scope: What is being run, in words.
        environment: The machine that the port runs on.
        started: When the run began.
        suite: Version of this suite.
        offers: Components that the port offers.
        backends: Its backends.
        options: What a command that runs one of these cases again must repeat.
        weights: What is to be said of the user's own weights.
        xfails: The failures that are expected of the port.
        shard: `I/N` of a part of a run.
        items: Number and digest of the items of the whole run.
        control: The reference that is run in the same job, as the user typed it.
        process: Number of the process that writes the run.

    Raises:
        GoldenError: There is no valid manifest of goldens.
    """
    return {
        "type": "header",
        "suite": suite,
        "port": dict(port),
        "scope": scope,
        "limit": LIMIT,
        "goldens": manifest_digest(),
        "weights": weights and weights["sha256"],
        "environment": dict(environment),
        "options": list(options),
        "started": started.isoformat(timespec="seconds"),
        "offers": list(offers),
        "backends": list(backends),
        "xfails": None if xfails is None else _xfails_json(xfails),
        "shard": shard,
        "items": None if items is None else dict(items),
        "control": control,
        "process": process,
    }


def require_same(earlier: Mapping[str, Any], header: Mapping[str, Any], out: Path) -> None:
    """Refuse to resume another run than the one that was broken off.

    Raises:
        UsageError: It is another one.
    """
    for key in RESUMED:
        if earlier.get(key) != header[key]:
            what = _other_port(earlier.get(key), header[key]) if key == "port" else f"another {key}"
            message = (
                f"cannot resume {out}: its run has {what} than this one; "
                "drop --resume to start anew"
            )
            raise UsageError(message)


def _other_port(earlier: object, port: Mapping[str, str]) -> str:
    """Say in what way the port of an earlier run is another one."""
    before = earlier if isinstance(earlier, dict) else {}
    for key, words in (("name", "another port"), ("version", "another version of the port")):
        if before.get(key) != port[key]:
            return words
    return "another content of the port's file" if "sha256" in port else "another port"


def _xfails_json(xfails: Xfails) -> dict[str, Any]:
    """Write a list of expected failures such that it can be read again without its file."""
    return {
        "file": str(xfails.path),
        "lines": {str(entry.number): _line(entry) for entry in xfails.entries},
    }


def _line(entry: Entry) -> str:
    expires = "" if entry.expires is None else str(entry.expires)
    fields = (entry.case, entry.probe, entry.device, f"{entry.at_most!r}", entry.reason, expires)
    return " | ".join(fields)


def xfails_of(given: Any, today: dt.date) -> Xfails | None:
    """Read the list of expected failures that a header holds; None where it holds none.

    Args:
        given: `xfails` of the header.
        today: Decides which entries have expired.

    Raises:
        ValueError: It holds something else.
    """
    if given is None:
        return None
    try:
        lines = {int(number): str(line) for number, line in given["lines"].items()}
        path = Path(one_line(given["file"]))
    except (TypeError, LookupError, AttributeError) as error:
        message = f"xfails is no list of {FIELDS}"
        raise ValueError(message) from error
    if not all(0 < number <= _MOST_LINES for number in lines):
        message = f"xfails has a line that is not among the first {_MOST_LINES}"
        raise ValueError(message)
    rows = [lines.get(number, "") for number in range(1, max(lines, default=0) + 1)]
    return Xfails.parse("\n".join(rows), path, today)
