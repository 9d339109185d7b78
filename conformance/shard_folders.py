"""The folders of shards, read and checked: whole, of one run, each part once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.evidence.data_folder import DATA
from conformance.report.run import read_object
from conformance.report.text import count, mapping, one_line
from conformance.run_folder import RESULTS, SUMMARY
from conformance.run_records import miscounted, read_header, read_records
from conformance.shards import Shard, digest_of
from conformance.summary import VERDICTS

Line = dict[str, Any]

SAME = ("suite", "goldens", "weights", "limit", "control")
"""What the headers of all shards say alike, beside the port and the items."""

ITEMS = ("count", "sha256")
"""Of `items` of a header, what is said of the whole run."""

_PORT = {"name": "name", "version": "version", "sha256": "digest"}
"""What makes a port the same, and in words; where its files lie may differ by machine."""

_FIELDS = {
    **dict.fromkeys(("component", "variant", "scenario", "verdict", "message", "detail"), str),
    **dict.fromkeys(("dtype", "device", "backend", "mode"), str),
    "place": int,
    "probes": list,
}
_SHOWN = 60


@dataclass(frozen=True)
class Part:
    """What one shard left in its folder.

    Attributes:
        folder: The folder.
        shard: Which part it is.
        header: The first line of its results, the scope without the part.
        lines: Case lines.
        control: Control lines.
        footer: The last line.
        summary: Its summary.json.
    """

    folder: Path
    shard: Shard
    header: Mapping[str, Any]
    lines: list[Line]
    control: list[Line]
    footer: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def data(self) -> Path:
        """Return the folder of its wrong tensors and pictures."""
        return self.folder / DATA

    @classmethod
    def read(cls, folder: Path) -> Part:
        """Read a folder.

        Raises:
            UsageError: It holds no results, those of a whole run, or those of an unfinished one.
        """
        if not (folder / RESULTS).is_file():
            raise refused(folder, RESULTS, "is not there: name folders that `run --shard` wrote")
        try:
            if read_header(folder / RESULTS).get("shard", "") is None:
                message = (
                    f"cannot merge {folder}: it is a whole run, no shard: name folders that "
                    "`run --shard` wrote"
                )
                raise UsageError(message)
            header, *rest = read_records(folder / RESULTS)
            lines = [_whole(line) for line in rest if line["type"] != "footer"]
        except (OSError, ValueError) as error:
            text = f"is no run's results ({one_line(error)}): run it again"
            raise refused(folder, RESULTS, text) from error
        try:
            shard = Shard.parse(str(header.get("shard")))
        except UsageError as error:
            text = "names no part: only what `run --shard` wrote can be merged"
            raise refused(folder, "shard", text) from error
        if not rest or rest[-1]["type"] != "footer":
            raise refused(folder, "footer", "is missing: finish the run with --resume")
        header["scope"] = str(header.get("scope")).removesuffix(f"; {shard.words}")
        part = cls(
            folder,
            shard,
            header,
            [line for line in lines if line["type"] == "case"],
            [line for line in lines if line["type"] == "control"],
            rest[-1],
            read_object(folder / SUMMARY),
        )
        left = count(mapping(header.get("items")).get("own")) - len(part.lines)
        if left:
            text = f"are unfinished, {left} have no result: finish the run with --resume"
            raise refused(folder, "items", text)
        verdicts = Counter(line["verdict"] for line in part.lines)
        if wrong := miscounted(part.footer, verdicts, len(part.control)):
            raise refused(folder, RESULTS, f"is damaged ({wrong}): run it again")
        return part


def _whole(line: Line) -> Line:
    """Return a line in which everything is there that a verdict is drawn from.

    Raises:
        ValueError: Something is missing; the message names the line and the field.
    """
    damaged = [name for name, kind in _FIELDS.items() if not isinstance(line.get(name), kind)]
    if not damaged and line["verdict"] not in VERDICTS:
        damaged = ["verdict"]
    if not damaged and not all(map(_is_probe, line["probes"])):
        damaged = ["probes"]
    if damaged:
        message = f"{damaged[0]} of {one_line(line['case'], _SHOWN)} is damaged"
        raise ValueError(message)
    return line


def _is_probe(value: object) -> bool:
    return isinstance(value, dict) and {"name", "kind", "ratio", "verdict", "note"} <= value.keys()


def refused(folder: Path, field: str, text: str) -> UsageError:
    """Build the error for a folder that cannot be merged.

    Args:
        folder: The folder.
        field: What of it is wrong.
        text: In what way, and what to do.
    """
    return UsageError(f"cannot merge {folder}: its {field} {text}")


def read_parts(folders: Sequence[Path]) -> list[Part]:
    """Read the shards of one run.

    Args:
        folders: Of one shard each; some of the run's may be missing.

    Returns:
        The shards, by number.

    Raises:
        UsageError: One is not whole, is there twice, or is of another run than the first.
    """
    parts = [Part.read(folder) for folder in folders]
    first = parts[0]
    owners: dict[str, Part] = {}
    numbers: dict[int, Part] = {}
    for part in parts:
        _require_same(part, first)
        other = numbers.setdefault(part.shard.index, part)
        if other is not part:
            text = f"{part.shard} is that of {other.folder} too: leave one out"
            raise refused(part.folder, "shard", text)
        for line in part.lines:
            if line["case"] in owners:
                other = owners[line["case"]]
                text = f"{one_line(line['case'], _SHOWN)} is in {other.folder} too: run it again"
                raise refused(part.folder, "case", text)
            owners[line["case"]] = part
    _require_all(parts, owners)
    return [numbers[number] for number in sorted(numbers)]


def _require_all(parts: Sequence[Part], ids: Mapping[str, Part]) -> None:
    """Refuse shards that are all there and do not make the run that they are parts of."""
    items = mapping(parts[0].header.get("items"))
    whole = {name: items.get(name) for name in ITEMS}
    if len(parts) == parts[0].shard.count and digest_of(ids) != whole:
        text = "are not those that the shards hold together: run the shards again"
        raise refused(parts[0].folder, "items", text)


def _require_same(part: Part, first: Part) -> None:
    """Refuse a shard of another run than the first."""
    own, others = _identity(part), _identity(first)
    field = next((name for name in own if own[name] != others[name]), None)
    if field is not None:
        text = f"is not that of {first.folder}: merge shards of one run"
        raise refused(part.folder, field, text)


def _identity(part: Part) -> dict[str, object]:
    """Return what has to be the same in all shards, by its name for people."""
    header = part.header
    port, items, xfails = (mapping(header.get(name)) for name in ("port", "items", "xfails"))
    return {
        **{name: header.get(name) for name in SAME},
        **{f"port's {words}": port.get(name) for name, words in _PORT.items()},
        "xfails": xfails.get("lines"),
        "items": [items.get(name) for name in ITEMS],
        "shard": part.shard.count,
    }
