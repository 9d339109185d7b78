"""Read a caption off a picture, by a rule: what the toy's own drawings are judged by.

1. *Colour*: pixels whose colour is farther than 0.25 from the ground's (root mean square over red,
   green and blue in [0, 1]) show the shape; of those whose four neighbours do too the mean is
   taken, and the nearest colour of the palette.
2. *Share*: how far each pixel has gone from the ground to that mean, 0 to 1. The shape is where it
   has gone more than half the way.
3. *Place and size*: the middle, and the longer side, of the box around the shape.
4. *Shape*: each of the four is drawn into that box; the one that overlaps most is taken
   (intersection over union, of shares).
"""

from functools import cache

import torch
from torch import Tensor

from sd1_impl.toy.captions import Caption
from sd1_impl.toy.drawing import CENTRES, DISTANCES, GROUND, PALETTE, RADII, cover

_FAR = 0.25
_FEWEST = 12
"""Pixels that a shape has at least: fewer are specks."""


def read(picture: Tensor) -> Caption | None:
    """Return what a picture shows.

    Args:
        picture: ``(3, H, W)`` in [-1, 1]; values beyond are clamped.

    Returns:
        The caption; None if there is nothing on the ground.
    """
    difference = (picture.float().clamp(-1, 1) + 1) / 2 - torch.tensor(GROUND)[:, None, None]
    seen = difference.square().mean(dim=0).sqrt() > _FAR  # (H, W)
    if seen.sum() < _FEWEST:
        return None
    colour = difference[:, _inner(seen)].mean(dim=1)
    share = torch.einsum("chw,c->hw", difference, colour / colour.square().sum()).clamp(0, 1)
    mask = share > 0.5
    rows, columns = (torch.nonzero(mask.any(dim=axis))[:, 0] for axis in (1, 0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    middle = torch.tensor([(left + right) / 2, (top + bottom) / 2])
    side = max(right - left, bottom - top)
    box = share[top:bottom, left:right]
    return Caption(
        colour=_nearest(colour + torch.tensor(GROUND), PALETTE),
        shape=max(DISTANCES, key=lambda shape: _overlap(box, _fitted(shape, *box.shape))),
        size=min(RADII, key=lambda size: abs(2 * RADII[size] - side)),
        place=_nearest(middle, CENTRES),
    )


def _inner(mask: Tensor) -> Tensor:
    """Return where a mask's neighbours are in it too; if that is nowhere, the mask."""
    inner = mask.clone()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= mask.roll(step, dims=axis)
    return inner if inner.any() else mask


def _nearest(point: Tensor, known: dict[str, tuple[float, ...]]) -> str:
    """Return the name of the nearest of known points."""
    return min(known, key=lambda name: float((torch.tensor(known[name]) - point).norm()))


def _fitted(shape: str, height: int, width: int) -> Tensor:
    """Draw a shape that fills a box of a size: ``(height, width)``."""
    return torch.nn.functional.interpolate(_large(shape), (height, width), mode="area")[0, 0]


@cache
def _large(shape: str) -> Tensor:
    """Draw a shape that fills its box: ``(1, 1, h, w)``."""
    axis = torch.arange(-64, 64) + 0.5
    drawn = cover(shape, axis[None, :], axis[:, None], torch.tensor(60.0))
    mask = drawn > 0.5
    return drawn[mask.any(dim=1)][:, mask.any(dim=0)][None, None]


def _overlap(one: Tensor, other: Tensor) -> float:
    """Return intersection over union of two shares."""
    return float(torch.minimum(one, other).sum() / torch.maximum(one, other).sum())
