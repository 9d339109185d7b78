"""Ports that keep channels last, or take fixed shapes only: what the engine does for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from conformance.errors import UnsupportedError

if TYPE_CHECKING:
    from conformance.port import Arrays, Component, Hello

NHWC = "NHWC"

_MAP = 4
"""Axes of a batch of feature maps; the steps of a scheduler have one more in front."""

_ROWS = 3

PIXELS = "image_uint8"
"""A picture: channels last in every port."""

FLATTENED = ".group_norm"
"""A map that may have its pixels in one axis, before its channels: that norm of the VAE."""


def require_shapes(hello: Hello, component: str, inputs: Mapping[str, np.ndarray]) -> None:
    """Refuse inputs of a shape that the port does not take.

    Raises:
        UnsupportedError: A shape is not among those of `hello.shapes`.
    """
    for name, allowed in hello.shapes.get(component, {}).items():
        if name not in inputs:
            continue
        shape = channels_last(inputs[name]).shape if hello.layout == NHWC else inputs[name].shape
        if not any(_fits(shape, wanted) for wanted in allowed):
            choices = ", ".join(_text(wanted) for wanted in allowed)
            message = f"{hello.name} takes {name} of shape {choices} only, not {shape}"
            raise UnsupportedError(message)


def _fits(shape: tuple[int, ...], wanted: list[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        length is None or length == own for own, length in zip(shape, wanted, strict=True)
    )


def _text(wanted: list[int | None]) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in wanted)})"


def channels_last(array: np.ndarray) -> np.ndarray:
    """Move the channels of maps to the end: (..., C, H, W) to (..., H, W, C).

    Bytes are the pixels of a picture, which have them there already.
    """
    if array.ndim < _MAP or array.dtype == np.uint8:
        return array
    return np.ascontiguousarray(np.moveaxis(array, -3, -1))


def channels_first(name: str, array: np.ndarray) -> np.ndarray:
    """Move the channels of a port's maps to where a golden has them.

    Args:
        name: Of the probe or output.
        array: As the port gave it: a map has 4 axes, or 5 with the steps of a scheduler.

    Returns:
        What is no map (tokens, pixels of a picture) is left alone.
    """
    if name == PIXELS:
        return array
    if array.ndim >= _MAP:
        return np.ascontiguousarray(np.moveaxis(array, -1, -3))
    if array.ndim == _ROWS and name.endswith(FLATTENED):
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return array


class ChannelsLast:
    """A component whose maps have channels last, seen by the engine with channels first."""

    def __init__(self, component: Component) -> None:
        """Wrap a component of the port."""
        self.component = component

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`."""
        given = {name: channels_last(array) for name, array in inputs.items()}
        values = None if replace is None else {n: channels_last(a) for n, a in replace.items()}
        answer = self.component.run(given, probes, values)
        if not isinstance(answer, tuple):
            return answer  # contract.call says what is wrong with it
        return tuple(map(_channels_first, answer))  # type: ignore[return-value]


def _channels_first(arrays: Arrays) -> Arrays:
    if not isinstance(arrays, dict):
        return arrays
    return {n: channels_first(n, a) if isinstance(a, np.ndarray) else a for n, a in arrays.items()}
