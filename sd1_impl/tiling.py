"""A batch one sample after the other, a picture one tile after the other: less memory, more time.

*By sample*, the autoencoder takes the pictures of a batch one by one: the numbers stay. *By tile*,
it takes a picture in tiles, and blends each with its neighbours where they overlap. What a picture
needs then hardly grows with its size; but a tile is normalised by what it holds itself and sees
nothing beyond its edges, so that the result is a slightly different picture.

Source: ``enable_slicing`` and ``enable_tiling`` of diffusers' ``AutoencoderKL``, whose numbers
these are; the original code of Stable Diffusion v1 has neither.

Shapes: B batch, C channels, H W height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut; the defaults are those of diffusers for SD v1.

    Attributes:
        size: Height and width of a tile, in latents: 64, which are 512 pixels (``sample_size`` of
            the autoencoder's *config.json*). What fits into one tile is not cut.
        overlap: How many latents a tile shares with the next one, on the right or below: a quarter
            of its size (``tile_overlap_factor`` of ``AutoencoderKL``).

    Raises:
        ValueError: If the overlap is not below the size.
    """

    size: int = 64
    overlap: int = 16

    def __post_init__(self) -> None:
        """Refuse tiles that do not move on."""
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
            size in latents, ``(h, w)``. What it returns is written to.
        whole: ``(B, C, H, W)``; what is beyond a multiple of ``reads`` belongs to the last tiles.
        tiling: How it is cut.
        reads: Pixels per latent, and side, of what is read: 8 to encode, 1 to decode.
        writes: The same of the result: 1 to encode, 8 to decode.

    Returns:
        ``(B, C', writes * (H // reads), writes * (W // reads))``.
    """
    if max(whole.shape[-2:]) <= reads * tiling.size:
        return compute(whole)
    step = tiling.size - tiling.overlap
    tops, lefts = (range(0, length // reads, step) for length in whole.shape[-2:])
    rows: list[Tensor] = []
    above: list[Tensor | None] = [None] * len(lefts)
    for top in tops:
        row: list[Tensor] = []
        for left, edge in zip(lefts, above, strict=True):
            area = (slice(reads * start, reads * (start + tiling.size)) for start in (top, left))
            before = row[-1][..., writes * step :] if row else None
            row.append(_blended(compute(whole[..., *area]), edge, before))
        rows.append(
            torch.cat([tile[..., : writes * step, : writes * step] for tile in row], dim=-1)
        )
        above = [tile[..., writes * step :, :].clone() for tile in row]  # a view would keep all
    return torch.cat(rows, dim=-2)


def _blended(tile: Tensor, above: Tensor | None, before: Tensor | None) -> Tensor:
    """Return a tile, changed: it begins as the edges of those above and before it."""
    for edge, dim in ((above, -2), (before, -1)):
        if edge is not None:
            start = tile.narrow(dim, 0, edge.shape[dim])
            share = torch.arange(edge.shape[dim], dtype=tile.dtype, device=tile.device)
            share = (share / len(share)).view(-1, *[1] * (-dim - 1))
            start.copy_(torch.lerp(edge, start, share))
    return tile
