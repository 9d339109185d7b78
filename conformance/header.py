"""The header of results.jsonl: what a run is, so that another run can tell whether it is the same.

A run that is resumed, and shards that are merged, must be of one port, suite and set of goldens.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
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

_PORT = {"name": "port", "version": "port's version", "spec": "PORT", "sha256": "port's files"}
_DIGEST = re.compile("[0-9a-f]{64}")
_OF_DIGEST = 12
_MOST_SHOWN = 200
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
        UsageError: It is another one; says in what, with both values.
    """
    found = [
        f"{name} {_shown(before)}, now {_shown(now)}"
        for key in RESUMED
        for name, before, now in _differences(key, earlier.get(key), header[key])
    ]
    if found:
        message = (
            f"cannot resume {out}, its run is another: {'; '.join(found)}; "
            "repeat what that one was given, or drop --resume to start anew"
        )
        raise UsageError(message)


def _differences(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield in what a field of two headers differs: a name, and both values."""
    if before == now:
        return
    if key == "port":
        before = before if isinstance(before, dict) else {}
        for own, name in _PORT.items():
            if before.get(own) != now.get(own):
                yield name, before.get(own), now.get(own)
    elif key == "scope" and isinstance(before, str):
        old, new = before.split("; "), now.split("; ")
        gone = [part for part in old if part not in new]
        come = [part for part in new if part not in old]
        if not gone and not come:
            gone, come = old, new
        yield key, _quoted(gone), _quoted(come)
    else:
        yield key, before, now


def _quoted(parts: Iterable[str]) -> str:
    """Write parts of a scope."""
    text = "; ".join(parts)
    return repr(text) if text else "nothing"


def _shown(value: object) -> str:
    """Write a value of a header: of a digest the first letters tell it apart."""
    if value is None:
        return "none"
    text = one_line(str(value), _MOST_SHOWN)
    return text[:_OF_DIGEST] if _DIGEST.fullmatch(text) else text


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
