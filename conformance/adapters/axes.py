"""How a port lays out what the reference has: axes of weights, axes of maps and tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from conformance.errors import PortError

_GROUP = re.compile(r"\(([^()]*)\)|(\S+)")
_ONE = "1"
_CHANNELS = 2  # axes up to the channels: batch, channels

Shape = tuple[int, ...]
Groups = tuple[tuple[str, ...], ...]
"""The axes of a tensor; several names where some were merged into one, none where it is 1 long."""


WHOLE = (0, 1)
"""The part of a parameter that is all of it."""


class MisfitError(Exception):
    """An array cannot have the shape that is wanted."""


def fitted(value: np.ndarray, shape: Shape) -> np.ndarray:
    """Give a map whose pixels are in other axes the shape of the port's own; leave all else.

    Args:
        value: Any array.
        shape: Of the port's own tensor.
    """
    alike = value.ndim != len(shape) and value.size == math.prod(shape)
    same = alike and value.shape[:_CHANNELS] == tuple(shape[:_CHANNELS])
    return value.reshape(shape) if same else value


class Turn(NamedTuple):
    """Tokens (batch, ..., channels) here, a map (batch, channels, ...) there.

    Attributes:
        port_has_map: Whether it is the port that has the map: it computes by a 1x1 convolution
            what is a linear layer of the reference.
    """

    port_has_map: bool

    def to_canonical(self, own: np.ndarray) -> np.ndarray:
        """Return what the reference has in the place of a port's tensor, pixels in one axis."""
        if self.port_has_map:
            tokens = own.reshape(*own.shape[:_CHANNELS], -1)
        else:
            tokens = own.reshape(own.shape[0], -1, own.shape[-1])
        return np.ascontiguousarray(tokens.swapaxes(1, 2))

    def to_own(self, value: np.ndarray, shape: Shape) -> np.ndarray:
        """Return a value of the reference as a port's tensor of that shape holds it."""
        if not self.port_has_map:
            value = value.reshape(*value.shape[:_CHANNELS], -1)
        return value.swapaxes(1, 2).reshape(shape)


@dataclass(frozen=True)
class Axes:
    """The axes of a port's tensor, and those of the canonical one: `i o -> o i`.

    The notation is that of einops: names, `1` for an axis of length 1, and parentheses around
    axes that are merged into one. Both sides have the same names.

    Attributes:
        own: Axes of the port's tensor.
        canonical: Axes of the reference's.
    """

    own: Groups
    canonical: Groups

    @classmethod
    def parse(cls, text: str) -> Axes:
        """Read `h w i o -> o i h w`.

        Raises:
            PortError: The text cannot be read.
        """
        sides = [_groups(side) for side in text.split("->")]
        names = [sorted(name for group in side for name in group) for side in sides]
        if len(sides) != len(("own", "canonical")) or names[0] != names[1]:
            message = (
                f"axes {text!r}: write the port's, an arrow and the canonical ones, `i o -> o i`"
            )
            raise PortError(message)
        repeated = [name for name in names[0] if names[0].count(name) > 1]
        if repeated or not all(name.isidentifier() for name in names[0]):
            message = f"axes {text!r}: {repeated[0]} is named twice" if repeated else (
                f"axes {text!r}: a name is a letter or a word, an axis of length 1 is a 1"
            )  # fmt: skip
            raise PortError(message)
        return cls(*sides)

    @property
    def turn(self) -> Turn | None:
        """Return what a layer of these weights does to tokens: a convolution makes maps of them."""
        kernel, canonical = () in self.own, () in self.canonical
        return None if kernel == canonical else Turn(port_has_map=kernel)

    def to_own(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """Lay out a canonical array as the port does.

        Args:
            array: The canonical array.
            shape: Of the port's tensor; gives the lengths of merged axes.

        Returns:
            The array in that shape.

        Raises:
            MisfitError: No lengths of the axes fit both shapes.
        """
        lengths = self._lengths(shape, array.shape)
        ours, theirs = (
            [name for group in side for name in group] for side in (self.own, self.canonical)
        )
        split = array.reshape([lengths[name] for name in theirs])
        return split.transpose([theirs.index(name) for name in ours]).reshape(shape)

    def _lengths(self, own: Shape, canonical: Shape) -> dict[str, int]:
        sides = ((self.own, own), (self.canonical, canonical))
        if any(len(groups) != len(shape) for groups, shape in sides):
            raise MisfitError
        axes = [pair for groups, shape in sides for pair in zip(groups, shape, strict=True)]
        lengths: dict[str, int] = {}
        for _ in axes:  # each round knows at least one length more
            for names, length in axes:
                unknown = [name for name in names if name not in lengths]
                if len(unknown) == 1:
                    known = math.prod(lengths[name] for name in names if name in lengths)
                    lengths[unknown[0]] = length // known if known else 0
        for names, length in axes:
            if math.prod(lengths.get(name, 0) for name in names) != length:
                raise MisfitError
        return lengths


def _groups(side: str) -> Groups:
    found = ((inner or single).split() for inner, single in _GROUP.findall(side))
    return tuple(() if names == [_ONE] else tuple(names) for names in found)


@dataclass(frozen=True)
class Source:
    """Where a parameter of a port has its values from.

    Attributes:
        names: Canonical names, joined along the first axis; none where it keeps its own values.
        axes: How the port may lay it out; of a parameter of known shape, how it does.
        part: Which of how many parts it is.
    """

    names: tuple[str, ...]
    axes: tuple[Axes, ...] = ()
    part: tuple[int, int] = WHOLE

    def of(self, count: int) -> Source:
        """Return the source of a parameter of so many axes."""
        return replace(self, axes=tuple(a for a in self.axes if len(a.own) == count)[:1])

    def draw(self, weights: Mapping[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
        """Return the values, laid out as the port has them.

        Args:
            weights: Canonical name to array.
            shape: Of the port's parameter.

        Raises:
            MisfitError: They do not fit that shape; says which they have.
        """
        arrays = [weights[name] for name in self.names]
        wanted, (which, of) = tuple(shape), self.part
        try:
            array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
            array = np.split(array, of)[which] if of > 1 else array
            for axes in self.axes:
                array = axes.to_own(array, wanted)
            fits = array.shape == wanted
        except (ValueError, MisfitError):
            fits = False
        if not fits:
            given = " + ".join(f"{n} {a.shape}" for n, a in zip(self.names, arrays, strict=True))
            message = f"has shape {wanted}, its weight is {given}"
            raise MisfitError(message + (f", part {which} of {of}" if of > 1 else ""))
        return np.ascontiguousarray(array)

    @property
    def turn(self) -> Turn | None:
        """What makes maps of a layer's tokens, or tokens of its maps."""
        return next((axes.turn for axes in self.axes if axes.turn), None)
