"""`data/` in a run's folder: wrong tensors, pictures and source lines, not more than 20 MiB."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.evidence.choice import Choice
from conformance.report.text import count, mapping
from conformance.run_folder import writing

DATA = "data"
SOURCES = "sources.json"

MOST_BYTES = 20 * 2**20
_PICTURE_BYTES = MOST_BYTES // 2
"""What pictures may take, so that the tensor of the first divergence always has room."""

_PARTS = ("oracle", "port", "difference")
_STEM = 80
_OWN = re.compile(r".+-[0-9a-f]{8}(-[0-9]+-(oracle|port|difference)\.png|\.json)")

Line = dict[str, Any]


def stem_of(item_id: str) -> str:
    """Return what the names of an item's files begin with: safe in any file system, and its own."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", item_id)[:_STEM].strip("-.")
    digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe}-{digest[:8]}"


class DataFolder:
    """Moves the evidence of case lines into files, and knows how much there is."""

    def __init__(self, folder: Path) -> None:
        """Begin without files; what lies in the folder is `adopt`ed, or removed by `sweep`.

        Args:
            folder: `data/` of a run; made when the first file is written.
        """
        self.folder = folder
        self._choice = Choice()
        self._names: set[str] = set()
        self._bytes = 0

    def store(self, line: Line) -> Line:
        """Move the evidence of a line into files.

        Args:
            line: A case line as it came from a worker.

        Returns:
            The line with `data` in the place of `evidence`: names of files, and how many are
            `left_out`.
        """
        if "evidence" not in line:
            return line
        evidence = mapping(line["evidence"])
        line = {key: value for key, value in line.items() if key != "evidence"}
        tensor = mapping(evidence.get("tensor"))
        text = json.dumps(tensor, separators=(",", ":")).encode() if tensor else None
        pictures = []
        for picture in _pictures(evidence):
            try:
                parts = {part: base64.b64decode(picture[part]) for part in _PARTS}
            except (KeyError, TypeError, binascii.Error):
                continue
            pictures.append((picture, parts))
        return self._keep(line, text, pictures, count(evidence.get("left_out")))

    def adopt(self, line: Line, folder: Path) -> Line:
        """Take over the files of a line from another folder, or from this one.

        Args:
            line: A case line of an earlier run, or of a shard.
            folder: Its `data/`.

        Returns:
            The line, its `data` naming what is there and has room.
        """
        if "data" not in line:
            return line
        data = mapping(line["data"])
        line = {key: value for key, value in line.items() if key != "data"}
        stem = stem_of(line["case"])  # names are made anew: those in the line may be anything
        text = _read(folder / f"{stem}.json") if data.get("tensor") else None
        pictures = []
        for picture in _pictures(data):
            index = count(picture.get("index"))
            parts = {p: _read(folder / f"{stem}-{index}-{p}.png") for p in _PARTS}
            whole = {part: file for part, file in parts.items() if file is not None}
            if len(whole) == len(parts):
                pictures.append((picture, whole))
        return self._keep(line, text, pictures, count(data.get("left_out")))

    def _keep(
        self,
        line: Line,
        tensor: bytes | None,
        pictures: Iterable[tuple[Mapping[str, Any], dict[str, bytes]]],
        left_out: int,
    ) -> Line:
        """Write what has room; return the line with the names of it."""
        stem = stem_of(line["case"])
        data: dict[str, Any] = {}
        wrong = line["verdict"] == "fail" and line["first_divergence"]  # no expected failure
        if tensor is not None and wrong:
            if self._choice.takes(line) and self._write({f"{stem}.json": tensor}, MOST_BYTES):
                data["tensor"] = f"{stem}.json"
            else:
                left_out += 1
        shown = []
        for picture, parts in pictures:
            index = count(picture.get("index"))
            names = {part: f"{stem}-{index}-{part}.png" for part in _PARTS}
            if self._write({names[p]: parts[p] for p in _PARTS}, _PICTURE_BYTES):
                shown.append({**picture, "index": index, **names})
            else:
                left_out += 1
        if shown:
            data["pictures"] = shown
        if left_out:
            data["left_out"] = left_out
        return line | {"data": data} if data else line

    def _write(self, files: Mapping[str, bytes], most: int) -> bool:
        """Write files if they have room, each whole or not at all.

        Raises:
            SuiteError: They cannot be written.
        """
        size = sum(map(len, files.values()))
        if self._bytes + size > most:
            return False
        self._bytes += size
        self._names |= files.keys()
        with writing(self.folder.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                draft = self.folder / f".{name}.part"
                draft.write_bytes(content)
                draft.replace(self.folder / name)
        return True

    def add_sources(self, sources: Mapping[str, Any]) -> None:
        """Write the source lines that do it right, if there are any."""
        if sources:
            text = json.dumps(sources, separators=(",", ":"))
            self._write({SOURCES: text.encode()}, MOST_BYTES)

    def sweep(self) -> None:
        """Remove the files of earlier runs that nothing names any longer, and no others.

        Raises:
            UsageError: The folder cannot be written, or is none.
        """
        if not self.folder.exists():
            return
        try:
            for path in list(self.folder.iterdir()):
                name = path.name.removeprefix(".").removesuffix(".part")
                own = _OWN.fullmatch(name) or name == SOURCES
                if own and path.name not in self._names and not path.is_dir():
                    path.unlink(missing_ok=True)
        except OSError as error:
            message = f"cannot write to {self.folder}: {error.strerror}; give another --out"
            raise UsageError(message) from error


def left_out(lines: Iterable[Mapping[str, Any]]) -> int:
    """Return how many tensors and pictures of a run are not shown."""
    return sum(count(mapping(line.get("data")).get("left_out")) for line in lines)


def _pictures(evidence: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = evidence.get("pictures")
    return [mapping(picture) for picture in found] if isinstance(found, list) else []


def _read(path: Path) -> bytes | None:
    """Read a file of a run; None where there is none, or one that no run has written."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(_PICTURE_BYTES + 1)
    return content if len(content) <= _PICTURE_BYTES else None
