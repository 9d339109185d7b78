"""Judge the toy: draw the 32 prompts that it has never read, and read what was drawn."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sd1_impl.pipeline import Text2Image
from sd1_impl.toy.captions import HELD_OUT, Caption
from sd1_impl.toy.drawing import PIXELS
from sd1_impl.toy.reading import read

STEPS, GUIDANCE = 25, 2.0
WANTED = 28
"""Prompts, of 32, whose colour and shape have to be right."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was asked for, and what was drawn.

    Attributes:
        pictures: ``(32, 64, 64, 3)``, uint8.
        asked: The prompts' captions.
        seen: What was read; None for an empty picture.
    """

    pictures: Tensor
    asked: tuple[Caption, ...]
    seen: tuple[Caption | None, ...]

    def right(self, *names: str) -> list[bool]:
        """Say of each picture whether these fields of its caption are right."""
        return [
            seen is not None and all(getattr(asked, name) == getattr(seen, name) for name in names)
            for asked, seen in zip(self.asked, self.seen, strict=True)
        ]

    @property
    def passes(self) -> bool:
        """Whether colour and shape are right often enough."""
        return sum(self.right("colour", "shape")) >= WANTED

    @property
    def text(self) -> str:
        """Return the counts in words, and the pictures that are wrong."""
        names = [field.name for field in fields(Caption)]
        counts = ", ".join(f"{name} {sum(self.right(name))}" for name in names)
        both = sum(self.right("colour", "shape"))
        total = f"colour and shape are right in {both} of {len(self.asked)} held-out prompts"
        wrong = [
            f"  {asked.text!r} shows {seen.text if seen else 'nothing'!r}"
            for asked, seen in zip(self.asked, self.seen, strict=True)
            if seen is None or (asked.colour, asked.shape) != (seen.colour, seen.shape)
        ]
        return "\n".join([f"{total} ({WANTED} are wanted); {counts}", *wrong])


def judge(pipeline: Text2Image, seed: int = 0) -> Judgement:
    """Draw the held-out prompts, 25 steps each.

    Args:
        pipeline: The toy.
        seed: Of the noise.
    """
    picture = pipeline(
        [caption.text for caption in HELD_OUT],
        height=PIXELS,
        width=PIXELS,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
    )
    seen = tuple(read(image) for image in picture.decoded)
    return Judgement(picture.image_uint8, HELD_OUT, seen)


def contact_sheet(pictures: Tensor, columns: int = 8, scale: int = 2) -> Tensor:
    """Put pictures side by side, ``(B, H, W, 3)`` into ``(rows H scale, columns W scale, 3)``."""
    width = pictures.shape[2]
    rows = pictures.unflatten(0, (-1, columns)).transpose(1, 2)  # (rows, H, columns, W, 3)
    sheet = rows.reshape(-1, columns * width, 3)
    return sheet.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1)
