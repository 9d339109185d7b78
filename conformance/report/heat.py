"""The heat map: every layer in every case, a cell each."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from conformance.golden import SPLICE
from conformance.report.codes import (
    MISSING,
    UNMEASURED,
    noise_codes,
    ratio_codes,
    scale,
    usable_limit,
)
from conformance.report.layers import block_of, in_order, part_of, read_layers
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import number, numbered, printable
from conformance.tolerance import LIMIT

MOST_CELLS = 1_500_000
"""Beyond it layers are folded into their blocks, and then cases that passed are left out."""

_NOISE_UP_TO = 300_000
"""Up to so many cells the noise of each is kept too, for another byte."""


class Choice(NamedTuple):
    """What one picture shows: a component, computed in one way."""

    component: str
    dtype: str
    device: str
    backend: str
    mode: str


class Part(NamedTuple):
    """The cells of a case, or of one block of it, in codes."""

    names: tuple[str, ...]
    ratios: np.ndarray
    noises: np.ndarray


@dataclass
class Column:
    """One case in a picture; items that are about one block each share their case's column.

    Attributes:
        index: Of its item with the worst cell, in the order of the run.
        worst: That cell's code.
        parts: What its items measured.
    """

    index: int
    worst: int = -1
    parts: list[Part] = field(default_factory=list)

    def add(self, index: int, part: Part) -> None:
        """Add what one item measured."""
        worst = int(part.ratios.max(initial=UNMEASURED))
        if worst > self.worst:
            self.index, self.worst = index, worst
        if part.names:
            self.parts.append(part)


class Rows:
    """The rows of a component's pictures: its probes, or the blocks that they belong to.

    Attributes:
        component: Its name.
        names: A row each, in the order of execution.
    """

    def __init__(self, component: str, probes: Iterable[str], *, folded: bool = False) -> None:
        self.component = component
        self._row = {
            name: block_of(component, name) if folded else name
            for name in in_order(component, probes)
        }
        self.names = list(dict.fromkeys(self._row.values()))
        self._index = {name: i for i, name in enumerate(self.names)}
        self._places: dict[tuple[str, ...], np.ndarray] = {}

    def places(self, names: tuple[str, ...]) -> np.ndarray:
        """Return the rows of probes, as indices."""
        if names not in self._places:
            rows = [self._index[self._row[name]] for name in names]
            self._places[names] = np.array(rows, np.intp)
        return self._places[names]

    def as_data(self) -> dict[str, Any]:
        """Return names, and by row the part and the block that it belongs to."""
        parts = [part_of(self.component, name) for name in self.names]
        blocks = [block_of(self.component, name) for name in self.names]
        return {"names": self.names, "parts": numbered(parts), "blocks": numbered(blocks)}


class Heat(Section):
    """Layers by cases, coloured by ratio."""

    name: ClassVar[str] = "heat"
    title: ClassVar[str] = "Layers by cases"
    template: ClassVar[str] = "heat.html"

    def __init__(self) -> None:
        self._limit = LIMIT
        self._cases = 0
        self._columns: dict[Choice, dict[str, Column]] = {}
        self._names: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Keep two bytes of every probe."""
        if record.get("type") == "header":
            self._limit = usable_limit(number(record.get("limit")), LIMIT)
        if record.get("type") != "case":
            return
        index, self._cases = self._cases, self._cases + 1
        choice = Choice(*(printable(record.get(key)) for key in Choice._fields))
        layers = read_layers(record)
        names = self._names.setdefault(choice.component, {}).setdefault(layers.names, layers.names)
        part = Part(names, ratio_codes(layers.ratios, self._limit), noise_codes(layers.noises))
        case = printable(record.get("case")).partition("::")[0]
        self._columns.setdefault(choice, {}).setdefault(case, Column(index)).add(index, part)

    def view(self, run: Run) -> View | None:
        """Lay out one picture for each component and way to compute it, the worst first."""
        pictures = {
            choice: list(columns.values())
            for choice, columns in self._columns.items()
            if any(column.parts for column in columns.values())
        }
        if not pictures:
            return None
        components = dict.fromkeys(choice.component for choice in pictures)
        rows, cells = self._rows(components, pictures)
        folded = cells > MOST_CELLS
        if folded:
            rows, cells = self._rows(components, pictures, folded=True)
        kept = {
            choice: _worst(columns, len(columns) * MOST_CELLS // cells)
            for choice, columns in pictures.items()
        }
        with_noise = not folded and cells <= _NOISE_UP_TO
        first = run.summary.divergence
        named = first.case.partition("::")[0] if first else ""
        ordered = sorted(kept, key=lambda choice: self._urgency(choice, named))
        return {
            "folded": folded,
            "cells": cells,
            "left_out": sum(map(len, pictures.values())) - sum(map(len, kept.values())),
            "pictures": len(kept),
            "data": {
                "scale": scale(self._limit),
                "rows": {component: rows[component].as_data() for component in components},
                "pictures": [
                    _picture(choice, rows[choice.component], kept[choice], with_noise=with_noise)
                    for choice in ordered
                ],
            },
        }

    def _urgency(self, choice: Choice, first: str) -> tuple[bool, int, bool]:
        """Order pictures: that of the first divergence, the worst, and splice before trace."""
        columns = self._columns[choice]
        worst = max(column.worst for column in columns.values())
        return (first not in columns, -worst, choice.mode != SPLICE)

    def _rows(
        self,
        components: Iterable[str],
        pictures: dict[Choice, list[Column]],
        *,
        folded: bool = False,
    ) -> tuple[dict[str, Rows], int]:
        """Return the rows of each component, and how many cells all pictures have."""
        rows = {
            component: Rows(
                component, (n for names in self._names[component] for n in names), folded=folded
            )
            for component in components
        }
        cells = sum(len(rows[c.component].names) * len(columns) for c, columns in pictures.items())
        return rows, cells


def _worst(columns: list[Column], most: int) -> list[Column]:
    """Keep the worst columns, in their order, where there is no room for all."""
    if most >= len(columns):
        return columns
    by_urgency = sorted(columns, key=lambda column: -column.worst)
    return sorted(by_urgency[: max(1, most)], key=lambda column: column.index)


def _picture(
    choice: Choice, rows: Rows, columns: list[Column], *, with_noise: bool
) -> dict[str, Any]:
    """Write one picture's cells, column by column."""
    ratios = np.full((len(columns), len(rows.names)), MISSING, np.uint8)
    noises = np.full_like(ratios, MISSING)
    for i, column in enumerate(columns):
        if not column.parts:
            ratios[i] = UNMEASURED
        for part in column.parts:
            places = rows.places(part.names)
            np.maximum.at(ratios[i], places, part.ratios)  # the worst where several share a row
            noises[i, places] = part.noises
    return {
        **choice._asdict(),
        "cases": [column.index for column in columns],
        "ratios": base64.b64encode(ratios.tobytes()).decode(),
        "noises": base64.b64encode(noises.tobytes()).decode() if with_noise else None,
    }
