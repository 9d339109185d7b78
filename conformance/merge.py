"""Putting the shards of a run together: the same verdict, counts and ratios as one run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.evidence.data_folder import SOURCES
from conformance.header import xfails_of
from conformance.port import Hello
from conformance.regression.baseline import Baseline
from conformance.report.run import read_object
from conformance.report.text import mapping, number, one_line
from conformance.results import Merged, Results
from conformance.shard_folders import ITEMS, Line, Part, read_parts, refused
from conformance.shards import Shard
from conformance.xfails import Xfails


def merged(folders: Sequence[Path], out: Path, baseline: Path | None = None) -> Results:
    """Put the shards of a run together, as if it had been one.

    Args:
        folders: Of one shard each.
        out: Folder to create, none of theirs.
        baseline: An earlier run to compare with.

    Returns:
        The results, to be closed. Where shards are missing the verdict will be incomplete, unless
        what is there is wrong.

    Raises:
        UsageError: They are not shards of one run, or `out` cannot be written.
    """
    for folder in folders:
        if folder.resolve() == out.resolve():
            message = f"--out {out} is one of the shards: name another folder"
            raise UsageError(message)
    parts = read_parts(folders)
    header, total = parts[0].header, parts[0].shard.count
    present = {part.shard.index for part in parts}
    missing = tuple(str(Shard(i, total)) for i in range(1, total + 1) if i not in present)
    port = {str(name): str(text) for name, text in mapping(header.get("port")).items()}
    hello = Hello(
        one_line(port.get("name")),
        one_line(port.get("version")),
        tuple(_texts(header.get("offers"))),
        backends=tuple(_texts(header.get("backends"))),
    )
    started = [_time(part) for part in parts]
    weights = parts[0].summary.get("weights")
    results = Results(
        out,
        hello,
        port.get("spec", ""),
        str(header["scope"]) + (f"; without shard {', '.join(missing)}" if missing else ""),
        machine=_environment(parts),
        xfails=_xfails(parts[0], max(started).date()),
        options=_texts(header.get("options")),
        weights=mapping(weights) or None,
        control=header.get("control"),
        baseline=None if baseline is None else Baseline.read(baseline, out, hello.name),
        items={
            **{name: mapping(header.get("items")).get(name) for name in ITEMS},
            "own": sum(len(part.lines) for part in parts),
        },
        merged=Merged(
            port,
            min(started),
            sum(number(part.footer.get("seconds")) or 0.0 for part in parts),
            [cause for part in parts for cause in _causes(part)],
            missing,
            {k: v for part in parts for k, v in read_object(part.data / SOURCES).items()},
        ),
    )
    for part, line in _in_order((own, line) for own in parts for line in own.lines):
        results.add(results.data.adopt(line, part.data))
    for _, line in _in_order((own, line) for own in parts for line in own.control):
        results.add_control(line)
    return results


def _in_order(lines: Iterable[tuple[Part, Line]]) -> Iterator[tuple[Part, Line]]:
    """Yield lines in the order of the run that was divided, without their places in it."""
    for part, line in sorted(lines, key=lambda pair: pair[1]["place"]):
        yield part, {name: value for name, value in line.items() if name != "place"}


def _time(part: Part) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(str(part.header.get("started")))
    except ValueError as error:
        raise refused(part.folder, "started", "is no time: run it again") from error


def _xfails(part: Part, today: dt.date) -> Xfails | None:
    try:
        return xfails_of(part.header.get("xfails"), today)
    except (ValueError, UsageError) as error:
        text = f"cannot be read ({one_line(error)}): run it again"
        raise refused(part.folder, "xfails", text) from error


def _environment(parts: Sequence[Part]) -> dict[str, str]:
    """Return the environment of all shards; where they differ, each in turn."""
    found: dict[str, dict[str, None]] = {}
    for part in parts:
        for name, text in mapping(part.header.get("environment")).items():
            found.setdefault(name, {})[str(text)] = None
    return {name: " | ".join(texts) for name, texts in found.items()}


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _causes(part: Part) -> Iterator[dict[str, Any]]:
    """Yield the mutants that a shard confirmed; one that its footer does not tell whole is none."""
    told = part.footer.get("faults")
    for cause in map(mapping, told if isinstance(told, list) else []):
        ratio = number(cause.get("ratio_if_so"))
        texts = cause.get("component"), cause.get("mutant")
        if cause.get("confirmed") is True and ratio is not None and all(texts):
            yield {
                "component": str(texts[0]),
                "mutant": str(texts[1]),
                "confirmed": True,
                "ratio_if_so": ratio,
                "names": _texts(cause.get("names")),
            }
