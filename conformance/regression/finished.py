"""A finished run, read line by line to be compared: every judged number of it, in compact arrays.

A run can hold thousands of cases with hundreds of probes each. As JSON objects they would fill
gigabytes; here a probe takes some twenty bytes, and the names that many cases share are kept once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.errors import UsageError
from conformance.report.text import count, mapping, number, one_line
from conformance.run_folder import RESULTS
from conformance.run_records import damaged, miscounted, whole_records
from conformance.summary import VERDICTS

Names = tuple[tuple[str, str], ...]
"""Of probes, in execution order: kind (`probe`, `output`) and name."""

Group = tuple[str, ...]
"""Component, variant, arithmetic, device, backend and mode: items that are run alike."""

CASE, CONTROL = "case", "control"
PROBE_VERDICTS = ("pass", "warn", "fail")

_GROUP = ("component", "variant", "dtype", "device", "backend", "mode")
_MESSAGE = 200


@dataclass(frozen=True, slots=True)
class Judged:
    """What a run says of one item.

    Attributes:
        group: How it was run, and what of.
        verdict: One of `VERDICTS`.
        ratio: The worst; None where nothing was measured.
        names: Its probes and outputs.
        ratios: float64 (probes,), NaN where a value was not finite.
        noises: float64 (probes,): the unit of each ratio.
        verdicts: uint8 (probes,), places in `PROBE_VERDICTS`.
        message: Why, in one line; kept of what was not measured.
        held: Bytes that the port holds at its peak, in mode `memory`; None in others.
    """

    group: Group
    verdict: str
    ratio: float | None
    names: Names
    ratios: np.ndarray
    noises: np.ndarray
    verdicts: np.ndarray
    message: str
    held: int | None = None

    @property
    def component(self) -> str:
        """Return its component."""
        return self.group[0]

    @property
    def mode(self) -> str:
        """Return its mode: `trace`, `splice` or none."""
        return self.group[-1]

    @property
    def measured(self) -> bool:
        """Say whether there are numbers of it: it was neither skipped nor did it break."""
        return self.verdict not in {"skip", "error"}

    def probe_verdict(self, row: int) -> str:
        """Return the verdict of one of its probes."""
        return PROBE_VERDICTS[self.verdicts[row]]


class Interned:
    """Keeps each tuple that many lines share once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def names(self, probes: list[Mapping[str, Any]]) -> Names:
        """Return the names of a line's probes.

        Raises:
            TypeError: One of them is no text.
        """
        found = tuple((probe["kind"], probe["name"]) for probe in probes)
        kept = self._kept.get(found)
        if kept is None:
            "".join(text for pair in found for text in pair)  # raises where one is no text
            kept = self._kept[found] = found
        return kept

    def group(self, line: Mapping[str, Any]) -> Group:
        """Return how a line's item was run.

        Raises:
            TypeError: A field is no text.
        """
        found = tuple(line[name] for name in _GROUP)
        "".join(found)
        return self._kept.setdefault(found, found)

    def judged(self, line: Mapping[str, Any]) -> Judged:
        """Read a case or control line.

        Raises:
            ValueError: It is none; the message says which field.
        """
        field = "probes"
        try:
            probes = line[field]
            names = self.names(probes)
            rows = len(probes)
            ratios = np.fromiter((float(p["ratio"]) for p in probes), np.float64, rows)
            noises = np.fromiter((float(p["noise"]) for p in probes), np.float64, rows)
            places = (PROBE_VERDICTS.index(p["verdict"]) for p in probes)
            verdicts = np.fromiter(places, np.uint8, rows)
            field = "verdict"
            verdict = VERDICTS[VERDICTS.index(line[field])]
            field = "ratio"
            ratio = None if line[field] is None else float(line[field])
            field = "component"
            group = self.group(line)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            message = f"its {field} cannot be read ({type(error).__name__})"
            raise ValueError(message) from error
        told = one_line(line.get("message"), _MESSAGE) if verdict in {"skip", "error"} else ""
        held = count(mapping(line.get("memory")).get("peak")) or None
        return Judged(group, verdict, ratio, names, ratios, noises, verdicts, told, held)


class FinishedRun:
    """The folder of a run that has ended.

    Attributes:
        folder: The folder.
        header: The header of its results.
        interned: Shared with the run that it is compared with, so that equal names are one object.
    """

    def __init__(self, folder: Path, interned: Interned | None = None) -> None:
        """Read the header.

        Raises:
            UsageError: The folder holds no run.
        """
        self.folder = folder
        self.interned = interned or Interned()
        if not (folder / RESULTS).is_file():
            message = f"{folder} holds no {RESULTS}: give the folder that a run wrote (--out)"
            raise UsageError(message)
        _, self.header = next(self._records())
        limit = number(self.header.get("limit", 0))
        if limit is None or not math.isfinite(limit):
            raise self._damaged(1, "its limit is no number")

    def judged(self) -> Iterator[tuple[str, str, Judged]]:
        """Yield its lines, one at a time.

        Yields:
            `case` or `control`, the item's id, and what is said of it.

        Raises:
            UsageError: The file is damaged, or its run did not end.
        """
        seen: set[tuple[str, str]] = set()
        verdicts: Counter[str] = Counter()
        controls = 0
        for place, record in self._records():
            kind = record["type"]
            if kind == "footer":
                self._require_all(record, verdicts, controls)
            if kind not in {CASE, CONTROL}:
                continue
            key = (kind, str(record.get("case")))
            if key in seen:
                raise self._damaged(place, f"{one_line(key[1], _MESSAGE)} is there twice")
            try:
                judged = self.interned.judged(record)
            except ValueError as error:
                raise self._damaged(place, str(error)) from error
            seen.add(key)
            if kind == CASE:
                verdicts[judged.verdict] += 1
            else:
                controls += 1
            yield (*key, judged)

    def _require_all(
        self, footer: Mapping[str, Any], verdicts: Counter[str], controls: int
    ) -> None:
        """Refuse a run in which a line is missing or changed."""
        wrong = miscounted(footer, verdicts, controls)
        own = count(mapping(self.header.get("items")).get("own"))
        if not wrong and verdicts.total() < own:
            wrong = f"{verdicts.total()} of {own} cases"
        if wrong:
            raise damaged(self.folder / RESULTS, wrong)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield header, lines and footer with their numbers; refuse a run without a footer."""
        kind = ""
        for place, record in whole_records(self.folder / RESULTS):
            kind = record["type"]
            yield place, record
        if kind != "footer":
            raise self._unfinished()

    def _damaged(self, place: int, what: str) -> UsageError:
        return damaged(self.folder / RESULTS, what, place)

    def _unfinished(self) -> UsageError:
        return UsageError(
            f"the run in {self.folder} did not end: go on with it by run --resume --out "
            f"{self.folder}"
        )


@dataclass(frozen=True)
class EarlierRun:
    """A finished run, kept to compare later ones with it.

    Attributes:
        folder: Its folder.
        header: The header of its results.
        cases: What it says of its items, by id.
        controls: What it says of the items of its control.
        interned: For the lines that are compared with it.
    """

    folder: Path
    header: dict[str, Any]
    cases: dict[str, Judged]
    controls: dict[str, Judged]
    interned: Interned

    @classmethod
    def read(cls, folder: Path) -> EarlierRun:
        """Read a folder whole.

        Raises:
            UsageError: It holds no run, a damaged one or one that did not end.
        """
        run = FinishedRun(folder)
        kept: dict[str, dict[str, Judged]] = {CASE: {}, CONTROL: {}}
        for kind, case, judged in run.judged():
            kept[kind][case] = judged
        return cls(folder, run.header, kept[CASE], kept[CONTROL], run.interned)
