"""The lines of sd1_impl that do it right, as the run left them in `data/sources.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conformance.report.run import read_object
from conformance.report.text import count, mapping, printable

_MOST_LINES, _MOST_WIDTH = 80, 160


@dataclass(frozen=True)
class SourceLine:
    """One line: its number, its text, and whether it is the one that matters."""

    number: int
    text: str
    marked: bool


@dataclass(frozen=True)
class Source:
    """A stretch of a file of sd1_impl."""

    file: str
    lines: tuple[SourceLine, ...]


def read_sources(out: Path) -> dict[str, Source]:
    """Return the stretches by probe; none where sd1_impl was not installed."""
    found = read_object(out / "data" / "sources.json")
    sources = {printable(probe): _source(mapping(record)) for probe, record in found.items()}
    return {probe: source for probe, source in sources.items() if source.lines}


def _source(record: dict[str, object]) -> Source:
    start, texts, marked = count(record.get("start")), record.get("lines"), record.get("marked")
    lines = texts[:_MOST_LINES] if isinstance(texts, list) else []
    numbers = marked if isinstance(marked, list) else []
    return Source(
        printable(record.get("file")),
        tuple(
            SourceLine(start + i, printable(text, _MOST_WIDTH), start + i in numbers)
            for i, text in enumerate(lines)
        ),
    )
