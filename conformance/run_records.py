"""The lines of results.jsonl, read again: as far as a kill left them, or whole and in order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance.errors import UsageError

KINDS = ("header", "case", "control", "footer")
"""What the lines are."""


def read_header(path: Path) -> dict[str, Any]:
    """Read the first line of results.jsonl.

    Args:
        path: The file.

    Returns:
        The header; an empty object where a kill cut it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is another kind of file.
    """
    with path.open("rb") as rows:
        return next(_left([rows.readline()]), {})


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read what a kill left of results.jsonl: a line that is no JSON was cut, and is left out.

    Args:
        path: The file.

    Returns:
        The header, then the other lines; nothing where a kill cut the header.

    Raises:
        OSError: It cannot be read.
        ValueError: It is another kind of file; the message names the line.
    """
    with path.open("rb") as rows:
        return list(_left(rows))


def _left(rows: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    header = False
    for number, text in enumerate(rows, start=1):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number == 1 and text.endswith(b"\n"):
                message = f"line 1 is no header: {error}"
                raise ValueError(message) from error
            continue
        kind = _kind(record)
        named = kind in {"header", "footer"} or (kind and isinstance(record.get("case"), str))
        if not named or (kind == "header") is header:
            message = f"line {number} is no line of a run"
            raise ValueError(message)
        header = True
        yield record


def _kind(record: object) -> str:
    """Return which kind of line a JSON value is; empty where it is none."""
    kind = record.get("type") if isinstance(record, dict) else None
    return kind if kind in KINDS else ""


def whole_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a run, one at a time, and refuse what no run writes.

    Args:
        path: Its results.jsonl.

    Yields:
        The number of a line, from 1, and its object: a header, the others, and a footer where the
        run has ended. Where it has not, a cut last line is left out.

    Raises:
        UsageError: The file cannot be read, or a line is damaged or out of order; names the line.
    """
    ended = False
    try:
        with path.open("rb") as rows:
            for place, text in enumerate(rows, start=1):
                try:
                    record = json.loads(text)
                except (ValueError, RecursionError) as error:
                    if place > 1 and not (ended or text.endswith(b"\n")):
                        return
                    raise damaged(path, "it is no JSON", place) from error
                kind = _kind(record)
                if not kind:
                    raise damaged(path, "it is no line of a run", place)
                if (kind == "header") != (place == 1) or ended:
                    raise damaged(path, "its lines are not in the order of a run", place)
                ended = kind == "footer"
                yield place, record
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise UsageError(message) from error


def damaged(path: Path, what: str, place: int | None = None) -> UsageError:
    """Build the error for results.jsonl that are not as a run wrote them.

    Args:
        path: The file.
        what: What is wrong.
        place: The number of the line, where it is one.
    """
    where = "" if place is None else f" at line {place}"
    return UsageError(f"{path} is damaged{where}: {what}; run it again")


def miscounted(footer: Mapping[str, Any], verdicts: Mapping[str, int], controls: int) -> str:
    """Say in what the lines of a run that has ended are not those that its footer counts.

    Args:
        footer: The footer; of what it does not count nothing is said.
        verdicts: How many case lines there are of each verdict.
        controls: How many control lines there are.

    Returns:
        The difference in words; empty if there is none.
    """
    told = footer.get("counts")
    told = told if isinstance(told, dict) else dict(verdicts)
    sizes = [size for size in told.values() if isinstance(size, int)]
    if sum(sizes) != sum(verdicts.values()):
        return f"{sum(verdicts.values())} of {sum(sizes)} cases"
    found = (name for name in {**told, **verdicts} if told.get(name, 0) != verdicts.get(name, 0))
    name = next(found, None)
    if name is not None:
        verdict = str(name)[:20]
        own = verdicts.get(name, 0)
        return f"its footer counts {told.get(name, 0)!r} {verdict}, its lines {own}"
    kept = footer.get("controls", controls)
    return "" if kept == controls else f"{controls} of {str(kept)[:20]} control lines"
