"""Draw captions: one flat shape on a light ground, with smooth edges.

A shape is where its signed distance, in pixels, is negative; the edge is one pixel wide.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sd1_impl.toy.captions import Caption

PIXELS = 64
"""Height and width of a picture."""

GROUND = (0.93, 0.93, 0.90)
PALETTE = {
    "red": (0.85, 0.12, 0.15),
    "green": (0.10, 0.60, 0.25),
    "blue": (0.12, 0.30, 0.85),
    "yellow": (0.95, 0.80, 0.10),
    "purple": (0.58, 0.20, 0.70),
    "black": (0.08, 0.08, 0.10),
}
"""Colours, red green blue in [0, 1]."""

RADII = {"small": 8.5, "large": 15.5}
"""From the middle of a shape to its farthest point, or of a square to its side, in pixels."""

CENTRES = {
    "in the middle": (32.0, 32.0),
    "at the top left": (18.0, 18.0),
    "at the top right": (46.0, 18.0),
    "at the bottom left": (18.0, 46.0),
    "at the bottom right": (46.0, 46.0),
}
"""Middles of shapes, right and down from the top left corner, in pixels."""

_SHIFT, _GROWTH, _TINT = 2.0, 0.08, 0.03
"""How far pictures of one caption differ: in place (pixels), size (share) and colour."""

_HALF_ROOT_3 = 0.75**0.5


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.9 * radius


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Of three equal sides, standing on one: within three half-planes."""
    inradius = 0.55 * radius
    low = y - inradius / 2  # from the centroid; its box is what is put in the middle
    return torch.maximum(low, _HALF_ROOT_3 * x.abs() - low / 2) - inradius


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    longer, shorter = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(longer - radius, shorter - 0.3 * radius)


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
"""Signed distance of a point, right and down from the middle of a shape of a radius."""


def cover(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return how much of each pixel a shape covers, 0 to 1.

    Args:
        shape: One of `DISTANCES`.
        x: Pixels to the right of its middle, any shape.
        y: Pixels below it.
        radius: In pixels.
    """
    return (0.5 - DISTANCES[shape](x, y, radius)).clamp(0, 1)


def draw(captions: Sequence[Caption], generator: torch.Generator | None = None) -> Tensor:
    """Draw one picture of each caption.

    Args:
        captions: B of them.
        generator: Where small differences in place, size and colour come from; None for none.

    Returns:
        ``(B, 3, 64, 64)``, float32 in [-1, 1].
    """
    count = len(captions)
    jitter = torch.zeros(count, 6)
    if generator is not None:
        jitter = torch.rand(count, 6, generator=generator) * 2 - 1
    axis = torch.arange(PIXELS) + 0.5
    ground = torch.tensor(GROUND)[:, None, None]
    pictures = []
    for caption, (right, down, growth, *tint) in zip(captions, jitter, strict=True):
        centre_x, centre_y = CENTRES[caption.place]
        x = axis[None, :] - centre_x - _SHIFT * right
        y = axis[:, None] - centre_y - _SHIFT * down
        covered = cover(caption.shape, x, y, RADII[caption.size] * (1 + _GROWTH * growth))
        colour = torch.tensor(PALETTE[caption.colour]) + _TINT * torch.stack(tint)
        pictures.append(torch.lerp(ground, colour[:, None, None], covered))
    return torch.stack(pictures).clamp(0, 1) * 2 - 1
