"""What lets a network do with less memory, for more time: a sample, or a tile, after the other.

*By sample*, the autoencoder takes the pictures of a batch one after the other: the numbers stay.
*Tiled*, it takes a picture in tiles, and blends each with its neighbours where they overlap. What a
picture needs then hardly grows with its size; but a tile is normalised by what it holds itself and
sees nothing beyond its edges, so that the result is a slightly different picture. *Recomputing* is
for training: see `sd1_impl.recomputation`. Attention in slices is in `sd1_impl.attention_kernels`.

Source: ``enable_slicing`` and ``enable_tiling`` of diffusers' ``AutoencoderKL``, whose numbers
these are; the original code of Stable Diffusion v1 has neither.

Shapes: B batch, C channels, H W height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut; the defaults are those of diffusers for SD v1.

    Attributes:
        size: Height and width of a tile, in latents: 64, which are 512 pixels (``sample_size`` of
            the autoencoder's *config.json*). What fits into one tile is not cut.
        overlap: How much of it the next tile, on the right or below, shows again, in latents: a
            quarter (``tile_overlap_factor`` of ``AutoencoderKL``).

    Raises:
        ValueError: If the overlap is not below the size.
    """

    size: int = 64
    overlap: int = 16

    def __post_init__(self) -> None:
        """Refuse tiles that lead nowhere."""
        if not 0 <= self.overlap < self.size:
            raise ValueError(
                f"overlap is {self.overlap}, expected 0 to {self.size - 1}, below size"
            )


def by_sample(compute: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Compute one sample of a batch after the other."""
    return torch.cat([compute(sample) for sample in batch.split(1)])


def by_tile(
    compute: Callable[[Tensor], Tensor], whole: Tensor, tiling: Tiling, *, reads: int, writes: int
) -> Tensor:
    """Compute one tile after the other, from the top left.

    Args:
        compute: Maps ``(B, C, reads h, reads w)`` to ``(B, C', writes h, writes w)``, whatever the
            size in latents, ``(h, w)``.
        whole: ``(B, C, H, W)``; what is beyond a multiple of ``reads`` belongs to the last tiles.
        tiling: How it is cut.
        reads: Pixels per latent, and side, of what is read: 8 to encode, 1 to decode.
        writes: The same of the result: 1 to encode, 8 to decode.

    Returns:
        ``(B, C', writes * (H // reads), writes * (W // reads))``.
    """
    if max(whole.shape[-2:]) <= reads * tiling.size:
        return compute(whole)
    height, width = (length // reads for length in whole.shape[-2:])
    step = tiling.size - tiling.overlap
    canvas = _Canvas(writes * height, writes * width, writes * step)
    for top, left in product(range(0, height, step), range(0, width, step)):
        rows, columns = (slice(reads * i, reads * (i + tiling.size)) for i in (top, left))
        canvas.paste(compute(whole[..., rows, columns]), writes * top, writes * left)
    return canvas.picture


class _Canvas:
    """A picture in the making, and the edges of tiles that the next ones are blended with.

    Args:
        height: Of the picture.
        width: Likewise.
        step: From a tile to the next: what is beyond in a tile is its edge.
    """

    picture: Tensor

    def __init__(self, height: int, width: int, step: int) -> None:
        self.size = height, width
        self.step = step
        self.lower_edges: dict[int, Tensor] = {}  # by column, of the tiles above
        self.right_edge: Tensor | None = None  # of the tile before

    def paste(self, tile: Tensor, top: int, left: int) -> None:
        """Blend a tile with those above and before, which were so themselves; put it down."""
        if top == left == 0:
            self.picture = tile.new_empty(*tile.shape[:-2], *self.size)
        if top > 0:
            _fade(self.lower_edges[left], tile, dim=-2)
        if left > 0:
            _fade(self.right_edge, tile, dim=-1)
        self.lower_edges[left] = tile[..., self.step :, :].clone()  # a view would keep the tile
        self.right_edge = tile[..., self.step :].clone()
        own = tile[..., : self.step, : self.step]
        self.picture[..., top : top + self.step, left : left + self.step] = own


def _fade(edge: Tensor, tile: Tensor, dim: int) -> None:
    """Let a tile, which is changed, begin as the edge of another and become itself, linearly."""
    length = edge.shape[dim]
    start = tile.narrow(dim, 0, length)
    share = torch.arange(length, dtype=tile.dtype, device=tile.device) / length
    start.copy_(torch.lerp(edge, start, share if dim == -1 else share[:, None]))


SAVINGS: dict[str, tuple[str, Any]] = {
    "by_sample": ("by_sample", True),
    "tiled": ("tiling", Tiling()),
    "recompute": ("recompute", True),
}
"""By name: the attribute that a module has if it can save so, and what switches it on."""


def use_saving(network: nn.Module, name: str) -> int:
    """Let a network save memory.

    Args:
        network: Any of this package, or a block of one.
        name: One of `SAVINGS`. Several can be on at once.

    Returns:
        In how many places it saves so: 0 where it cannot.
    """
    attribute, value = SAVINGS[name]
    places = [module for module in network.modules() if hasattr(module, attribute)]
    for module in places:
        setattr(module, attribute, value)
    return len(places)
