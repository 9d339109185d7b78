"""Where in a tensor the error is, in words: a head, a channel, the last column."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from conformance.evidence.error_kinds import explanation
from conformance.evidence.error_map import HEAD, Errors
from conformance.tolerance import LIMIT

_APART = 3.0
"""Times that the least wrong slice is worse than the worst of the others."""
_SMALL = 0.1
"""Values of this part of the whole's size may have errors as large as theirs."""
_MOST_LISTED = 4
_MANY = 4
"""Slices from which there is a pattern; a border is at most this part of a map wide."""
_SOME = 3 / 4
"""Of the places of a map: if more are wrong, their number says little."""
_SPATIAL = ("row", "column", "token", "step", "timestep")
_NOUNS = {"batch": "batch item"}

_NORM = re.compile(r"norm\w*$")
_PADDED = re.compile(
    r"^(sample|image)$|\b(conv|conv1|conv2|conv_in|conv_out)$|(resnets|samplers|blocks)\.\d+$"
)
"""Probes and outputs that a 3x3 convolution makes, or a block that has one."""


@dataclass(frozen=True)
class Probe:
    """What is known of a tensor beside its values.

    Attributes:
        name: Of the probe or output.
        heads: From `tensor_axes.heads_of`.
        groups: From `tensor_axes.groups_of`.
        weighted: Whether it is made with weights, which may be others.
    """

    name: str = ""
    heads: int = 1
    groups: int = 1
    weighted: bool = True

    @property
    def mixed_up(self) -> str:
        """Return the cause of values that have nothing in common with those that are right."""
        return ": other weights, or another order" if self.weighted else ""

    @property
    def norm(self) -> str:
        """Return the cause of values that are scaled, where the layer is a norm."""
        return ": weights, variance or eps of the norm" if _NORM.search(self.name) else ""

    @property
    def padded(self) -> str:
        """Return the cause of a wrong border, where a 3x3 convolution is the layer, or in it."""
        return ": padding" if _PADDED.search(self.name) else ""

    @property
    def enlarged(self) -> str:
        """Return the cause of a checkerboard, where the layer makes maps larger."""
        return ": upsampling" if "upsamplers" in self.name else ""


def places(errors: Errors, probe: Probe) -> tuple[list[str], Errors]:
    """Say which slices are wrong, where the others are right.

    Args:
        errors: The tensor, in units of noise.
        probe: What else is known of it.

    Returns:
        Words, axis by axis, and the part of the tensor that they leave.
    """
    if probe.heads > 1:
        by_heads = errors.by_heads(probe.heads)
        features = len(_wrong(by_heads, HEAD)) * errors.got.shape[-1] // probe.heads
        if 2 * len(_wrong(errors, "feature")) > features > 0:
            errors = by_heads
    axes = [axis for axis in errors.axes if axis not in {"row", "column"}]
    found: dict[str, str] = {}
    while True:  # an axis may stand out only in the part that another has left
        wrong = {axis: _wrong(errors, axis) for axis in axes if axis not in found}
        axis = next((axis for axis, places in wrong.items() if places), None)
        if axis is None:
            break
        words = _words(axis, wrong[axis], errors.got.shape[errors.axes.index(axis)], probe)
        errors = errors.taking(axis, wrong[axis])
        found[axis] = words + _exchanged(errors, axis, wrong[axis])
    where = [found[axis] for axis in axes if axis in found]
    return where + (list(_on_the_map(errors, probe)) if "row" in errors.axes else []), errors


def _exchanged(part: Errors, axis: str, places: list[int]) -> str:
    """Say so if two slices that are wrong are each other's."""
    if len(places) != 2:  # noqa: PLR2004 - two
        return ""
    other = np.flip(part.truth, part.axes.index(axis))
    return explanation(part, [lambda _: [(", exchanged", other)]])


def _wrong(errors: Errors, axis: str) -> list[int]:
    """Return the slices of an axis that are wrong, if the others are right; else nothing."""
    return np.flatnonzero(_outstanding(errors, axis)).tolist()


def _outstanding(errors: Errors, *axes: str) -> np.ndarray:
    """Return which slices are over the limit, if others are within and far below; else none.

    They have to stand out absolutely and beside the size of their values: noise may be as large
    everywhere, or as large as values are.
    """
    ratios, levels = errors.along(*axes), errors.levels(*axes)
    wrong = ratios > LIMIT * np.maximum(levels, 1.0)
    if wrong.all() or not wrong.any():
        return np.zeros(ratios.shape, bool)
    least_level = max(_SMALL, math.sqrt(ratios.size / errors.got.size))
    for sizes in (ratios, ratios / np.maximum(levels, least_level)):
        least = _APART * float(sizes[~wrong].max())
        if wrong.mean() > 1 / 2:  # the few that are right must not be so by chance
            least = max(least, float(np.median(sizes[wrong])) / _APART)
        if float(sizes[wrong].min()) < least:
            return np.zeros(ratios.shape, bool)
    return wrong


def _words(axis: str, places: list[int], count: int, probe: Probe) -> str:
    """Say which slices of an axis are wrong."""
    noun = _NOUNS.get(axis, axis)
    first, last, many = places[0], places[-1], len(places)
    run = last - first + 1 == many
    group = _group(axis, first, many, count, probe) if run else ""
    if many == 1:
        return f"{_ordinal(axis, first, count)} only"
    if many == count - 1 and count >= _MANY:
        (other,) = set(range(count)) - set(places)
        return f"every {noun} but {_ordinal(axis, other, count, after='but')}"
    if count >= _MANY and places in (list(range(0, count, 2)), list(range(1, count, 2))):
        return f"every second {noun}, from {first}"
    if run and many > 2:  # noqa: PLR2004 - two are listed
        return f"{noun}s {first} to {last} only{group}"
    if many <= _MOST_LISTED:
        listed = f"{', '.join(map(str, places[:-1]))} and {last}"
        return f"{noun}s {listed} only{group}"
    return f"{many} of {count} {noun}s only"


def _ordinal(axis: str, place: int, count: int, after: str = "") -> str:
    """Name one slice: rows and tokens have a first and a last, channels have numbers."""
    noun = _NOUNS.get(axis, axis)
    if axis in _SPATIAL and place in {0, count - 1}:
        word = "last" if place else "first"
        return f"the {word}" if after else f"{word} {noun}"
    return str(place) if after else f"{noun} {place}"


def _group(axis: str, first: int, many: int, count: int, probe: Probe) -> str:
    """Say how many groups of a norm a run of channels is, if it is whole ones."""
    size = count // probe.groups
    if axis != "channel" or probe.groups == 1 or first % size or many % size:
        return ""
    return ": one group of the norm" if many == size else f": {many // size} groups of the norm"


def _on_the_map(errors: Errors, probe: Probe) -> Iterator[str]:
    """Say where on a feature map the error is."""
    wrong = _outstanding(errors, "row", "column")
    if not wrong.any():
        return
    height, width = wrong.shape
    if border := _border(wrong):
        yield f"{border}{probe.padded}"
        return
    rows, columns = (np.flatnonzero(wrong.any(axis=i)).tolist() for i in (1, 0))
    if wrong[np.ix_(rows, columns)].all():
        if len(rows) < height:
            yield _words("row", rows, height, probe)
        if len(columns) < width:
            yield _words("column", columns, width, probe)
        return
    if _is_checkerboard(wrong):
        yield f"checkerboard{probe.enlarged}"
        return
    count = int(np.count_nonzero(wrong))
    if count <= _SOME * wrong.size:
        yield f"{count} of {wrong.size} places of the map only"


def _border(wrong: np.ndarray) -> str:
    """Name the sides at which a map is wrong, if it is right inside."""
    height, width = wrong.shape
    for wide in range(1, min(height, width) // _MANY + 1):
        if wrong[wide:-wide, wide:-wide].any():
            continue
        bands = {
            "first row": wrong[:wide, wide:-wide],
            "last row": wrong[-wide:, wide:-wide],
            "first column": wrong[wide:-wide, :wide],
            "last column": wrong[wide:-wide, -wide:],
        }
        sides = [name for name, band in bands.items() if band.mean() >= 1 - 1 / _MANY]
        if not sides or any(bands[n].any() for n in bands if n not in sides):
            return ""
        many = "" if wide == 1 else f", {wide} wide"
        return f"{'border' if len(sides) == len(bands) else ' and '.join(sides)} only{many}"
    return ""


def _is_checkerboard(wrong: np.ndarray) -> bool:
    """Say whether of every 2 x 2 places those of one diagonal are wrong."""
    rows, columns = np.indices(wrong.shape)
    odd = (rows + columns) % 2 == 1
    return min(wrong.shape) >= _MANY and bool((wrong == odd).all() or (wrong == ~odd).all())
