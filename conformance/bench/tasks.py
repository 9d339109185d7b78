"""What is timed: networks and a pipeline, by size and batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from conformance.errors import UsageError
from conformance.sampling import TEXT_TO_IMAGE

TEXT, UNET, DECODER, ENCODER = "text_encoder", "unet", "vae_decoder", "vae_encoder"

STEPS = 10
"""Of a whole picture, with DDIM."""

GUIDANCE = 7.5
_LATENT = 8
"""A latent stands for so many pixels each way."""


@dataclass(frozen=True)
class Task:
    """One thing to time.

    Attributes:
        component: `text_encoder`, `unet`, `vae_decoder`, `vae_encoder` or `pipeline/txt2img`.
        variant: Architecture.
        batch: Pictures or prompts at once; of the UNet samples, which are two for a picture.
        pixels: Height and width of the picture; 0 of the text encoder.
        quick: Whether `--quick` has it.
        large: Only worth while on a GPU.
    """

    component: str
    variant: str
    batch: int
    pixels: int = 0
    quick: bool = False
    large: bool = False

    @property
    def latent(self) -> int:
        """Return height and width of the picture's latents."""
        return self.pixels // _LATENT

    @property
    def id(self) -> str:
        """Return its name, `unet/sd1/latent64-batch2`."""
        size = {
            TEXT: "",
            UNET: f"latent{self.latent}-",
            DECODER: f"latent{self.latent}-",
            ENCODER: f"image{self.pixels}-",
            TEXT_TO_IMAGE: f"image{self.pixels}-steps{STEPS}-",
        }[self.component]
        return f"{self.component}/{self.variant}/{size}batch{self.batch}"


def tasks(variant: str) -> list[Task]:
    """Return all there is to time of a variant, the small before the large."""
    return [
        Task(TEXT, variant, 1, quick=True),
        Task(TEXT, variant, 2),
        Task(UNET, variant, 1, 256, quick=True),
        Task(UNET, variant, 2, 256),
        Task(UNET, variant, 1, 512),
        Task(UNET, variant, 2, 512),
        Task(DECODER, variant, 1, 256, quick=True),
        Task(DECODER, variant, 1, 512),
        Task(ENCODER, variant, 1, 512),
        Task(TEXT_TO_IMAGE, variant, 1, 256),
        Task(TEXT_TO_IMAGE, variant, 1, 512, large=True),
        Task(TEXT_TO_IMAGE, variant, 4, 512, large=True),
        Task(TEXT_TO_IMAGE, variant, 16, 512, large=True),
    ]


def choose(
    variant: str, globs: Sequence[str] | None, *, quick: bool = False, on_gpu: bool = False
) -> list[Task]:
    """Choose what to time.

    Args:
        variant: Architecture.
        globs: Of ids; None for all.
        quick: The small ones alone, if nothing is named.
        on_gpu: The large ones too, if nothing is named.

    Raises:
        UsageError: A glob fits none.
    """
    known = tasks(variant)
    if globs is None:
        return [task for task in known if (task.quick or not quick) and (on_gpu or not task.large)]
    unmatched = next((g for g in globs if not any(fnmatchcase(t.id, g) for t in known)), None)
    if unmatched is not None or not globs:
        message = f"--case {unmatched or ''!r} fits none of {', '.join(t.id for t in known)}"
        raise UsageError(message)
    return [task for task in known if any(fnmatchcase(task.id, glob) for glob in globs)]
