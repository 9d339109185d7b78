"""The probes of a case line as arrays: what the pictures of many cases are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from conformance import spec
from conformance.report.text import number, printable
from conformance.sampling import PIPELINES, SCHEDULERS

ABSENT = -1.0
"""Stands for a number that a record does not give."""

_LAST = (9,)
_SAMPLING_PARTS = {0: "before the steps", 2: "after the steps", 9: "other"}

_DIFFERENT = 1_000
"""So many lists of names are remembered as read: most cases share theirs."""


class Layers(NamedTuple):
    """The probes of one case in execution order.

    Attributes:
        names: Their names, safe to print.
        ratios: float64, one each, from 0; infinite or not a number as recorded, `ABSENT` if none.
        noises: The same of the noise that each was measured by.
    """

    names: tuple[str, ...]
    ratios: np.ndarray
    noises: np.ndarray


def read_layers(record: dict[str, Any]) -> Layers:
    """Read the probes of a case line, whatever is missing or malformed in them."""
    probes = record.get("probes")
    found = [p for p in probes if isinstance(p, dict)] if isinstance(probes, list) else []
    names = tuple([name if type(name := p.get("name")) is str else str(name) for p in found])
    ratios, noises = ([p.get(key) for p in found] for key in ("ratio", "noise"))
    return Layers(_printable(names), _sizes(ratios), _sizes(noises))


@lru_cache(_DIFFERENT)
def _printable(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(printable, names))


def _sizes(values: list[object]) -> np.ndarray:
    """Read numbers that cannot be negative; those of a healthy file all at once."""
    if None not in values:
        try:
            return np.abs(np.array(values, np.float64))
        except (ValueError, TypeError, OverflowError):
            pass
    return np.array([_size(value) for value in values], np.float64)


def _size(value: object) -> float:
    found = number(value)
    if found is None:
        return ABSENT
    return found if math.isnan(found) else abs(found)


def in_order(component: str, names: Iterable[str]) -> list[str]:
    """Sort names of probes by when they are computed; those that nobody knows come last."""
    return sorted(dict.fromkeys(names), key=lambda name: _place(component, name))


def _place(component: str, name: str) -> tuple[int, ...]:
    try:
        return spec.place(component, name)
    except ValueError:  # no term of a sampler
        return _LAST


def part_of(component: str, name: str) -> str:
    """Return the outermost part that a probe belongs to, such as `down_blocks.0` or `step 3`."""
    if component in SCHEDULERS or component in PIPELINES:
        return _SAMPLING_PARTS.get(_place(component, name)[0]) or f"step {name.partition('#')[2]}"
    blocks = spec.block_names(component)
    path = name.removesuffix(".input").split(".")
    parents = (".".join(path[:i]) for i in range(1, len(path) + 1))
    return next((parent for parent in parents if parent in blocks), path[0])


def block_of(component: str, name: str) -> str:
    """Return the innermost part that a probe belongs to, such as `down_blocks.0.resnets.1`."""
    return spec.block_around(component, name) or part_of(component, name)
