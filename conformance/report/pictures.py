"""Pictures: what the oracle drew, what the port drew, and where they differ."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from conformance.report.records import FAILING
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import count, mapping, number, number_text, printable, severity

_EMBEDDED = 6_000_000
"""Bytes that the pictures of one page take at most, as they stand in it."""

_REMEMBERED = 2_000
_OPEN = 3
"""So many triptychs are unfolded at first."""

_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_HEAD = 24
"""Bytes up to the end of a PNG's width and height."""

_FILE = re.compile(r"[\w-][\w.-]*\.png")
_PARTS = ("oracle", "port", "difference")


class Image(NamedTuple):
    """A PNG in base64, and its size in pixels."""

    content: str
    width: int
    height: int


@dataclass(frozen=True)
class Triptych:
    """Three files in `data/` and how alike the pictures are.

    Attributes:
        case: The case's id.
        verdict: Its verdict.
        ratio: Its worst ratio.
        index: Of the picture in its batch.
        files: Names of the oracle's, the port's and the difference's PNG.
        factor: By how much the difference is amplified.
        psnr: Peak signal-to-noise ratio in dB.
        ssim: Structural similarity.
    """

    case: str
    verdict: str
    ratio: float | None
    index: int
    files: tuple[str, ...]
    factor: float | None
    psnr: float | None
    ssim: float | None

    @property
    def urgency(self) -> tuple[bool, int, float]:
        """Return a key that sorts failing cases first, the worst ratio first."""
        known, ratio = severity(self.ratio)
        return (self.verdict not in FAILING, -known, -ratio)


class Pictures(Section):
    """Triptychs of pipelines."""

    name: ClassVar[str] = "pictures"
    title: ClassVar[str] = "Pictures"
    template: ClassVar[str] = "pictures.html"

    def __init__(self) -> None:
        self._triptychs: list[Triptych] = []
        self._seen = 0

    def add(self, record: dict[str, Any]) -> None:
        """Remember which files a case has."""
        if record.get("type") != "case":
            return
        pictures = mapping(record.get("data")).get("pictures")
        for picture in map(mapping, pictures if isinstance(pictures, list) else []):
            self._seen += 1
            if len(self._triptychs) < _REMEMBERED:
                self._triptychs.append(_triptych(record, picture))

    def view(self, run: Run) -> View | None:
        """Embed as many as there is room for."""
        room = _EMBEDDED
        shown: list[tuple[Triptych, list[Image]]] = []
        for triptych in sorted(self._triptychs, key=lambda one: one.urgency):
            images = [_read(run.out / "data", name) for name in triptych.files]
            found = [image for image in images if image is not None]
            room -= sum(len(image.content) for image in found)
            if room < 0:
                break
            if len(found) == len(_PARTS):
                shown.append((triptych, found))
        if not shown:
            return None
        return {
            "shown": [
                (triptych, zip(_PARTS, _captions(triptych), images, strict=True))
                for triptych, images in shown
            ],
            "open": _OPEN,
            "left_out": self._seen - len(shown),
            "unmeasured": all(one.psnr is None and one.ssim is None for one, _ in shown),
        }


def _triptych(record: dict[str, Any], picture: dict[str, Any]) -> Triptych:
    return Triptych(
        case=printable(record.get("case")),
        verdict=printable(record.get("verdict")),
        ratio=number(record.get("ratio")),
        index=count(picture.get("index")),
        files=tuple(printable(picture.get(part)) for part in _PARTS),
        factor=number(picture.get("factor")),
        psnr=number(picture.get("psnr")),
        ssim=number(picture.get("ssim")),
    )


def _read(folder: Path, name: str) -> Image | None:
    """Read a PNG file; None where the name is no plain one, or the file no PNG."""
    if not _FILE.fullmatch(name):
        return None
    try:
        content = (folder / name).read_bytes()
    except OSError:
        return None
    if not content.startswith(_PNG) or len(content) < _HEAD:
        return None
    width, height = (int.from_bytes(content[i : i + 4]) for i in (_HEAD - 8, _HEAD - 4))
    return Image(base64.b64encode(content).decode(), width, height)


def _captions(triptych: Triptych) -> list[str]:
    """Say below each picture what it is."""
    alike = []
    if triptych.psnr is not None:
        alike.append(f"PSNR {number_text(triptych.psnr)} dB")
    if triptych.ssim is not None:
        alike.append(f"SSIM {triptych.ssim:.4f}")
    factor = number_text(triptych.factor)
    return ["oracle", ", ".join(["port", *alike]), f"difference, amplified {factor} times"]
