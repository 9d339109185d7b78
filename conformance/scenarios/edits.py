"""Inputs of the pipelines that begin with a picture: image to image, and inpainting."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from conformance.recipe import SEED, TensorRecipe
from conformance.sampling import (
    ALGORITHMS,
    IMAGE_TO_IMAGE,
    INPAINT,
    steps_left_out,
)
from conformance.scenarios.pictures import (
    BLURRY,
    CATHEDRAL,
    FOX,
    TINY,
    TWO,
    PictureScenario,
)
from conformance.scenarios.scenario import BASE
from conformance.variants import Variant

_FACTOR = 8
_COLOURS = 3
_BYTES = ("image", "mask")
_WHITE = 128
"""From here on a grey of a mask is white."""

INPAINTED = ("tiny", "tiny-inpaint")


@dataclass(frozen=True)
class EditScenario(PictureScenario):
    """Pictures made of pictures.

    Attributes:
        images: How many there are: one for each prompt, or one for all.
        strength: Share of the steps that are made.
    """

    _: KW_ONLY
    images: int = 1
    strength: float = 0.5
    steps: int = 4

    component = IMAGE_TO_IMAGE

    @property
    def in_halves(self) -> bool:
        """Whether half-precision arithmetic is judged here too: once is enough."""
        return self.name == BASE

    @property
    def keeps_pixels(self) -> bool:
        """Whether a golden keeps the oracle's 8-bit picture, for PSNR and SSIM."""
        return self.name == BASE

    @property
    def left_out(self) -> int:
        """Return how many calls of the run are not made."""
        return steps_left_out(self.algorithm, self.steps, self.strength)

    def lacks(self, variant: Variant) -> tuple[str, ...]:  # noqa: ARG002 - of inpainting it matters
        """Return the terms of pipelines that this one has not."""
        return ("mask", "masked_image", "masked_image_latents", "unblended", *self.unguided)

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs.

        Args:
            variant: Gives the channel counts.
            seed: Seed of the recipe.

        Returns:
            As `PictureScenario.inputs`, and `image` (B or 1, 8 h, 8 w, 3), uint8, the recipe's
            integers plus 128; `image_noise` (B or 1, 4, h, w), float32, where the picture is
            encoded; `strength`, float64, shape (). For inpainting also `mask` (B or 1, 8 h, 8 w),
            uint8, and with a UNet of 9 channels `masked_image_noise`, as `image_noise`.
        """
        drawn = super().inputs(variant, seed) | {"strength": np.array(self.strength)}
        return drawn | {name: _bytes(drawn[name]) for name in _BYTES if name in drawn}

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipes of the drawn inputs, by input name."""
        return super().recipes(variant) | self.drawn(self.pictures(variant), variant)

    def pictures(self, variant: Variant) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the pictures, and of the noise that encoding them takes."""
        channels = variant.architecture("unet")["out_channels"]
        size = (self.images, _FACTOR * self.height, _FACTOR * self.width)
        return {
            "image": (*size, _COLOURS),
            "image_noise": (self.images, channels, self.height, self.width),
        }


@dataclass(frozen=True)
class InpaintScenario(EditScenario):
    """Pictures of which a part is drawn anew.

    Attributes:
        everywhere: Whether all of the picture is drawn anew: no grey of the mask is black.
    """

    _: KW_ONLY
    everywhere: bool = False

    component = INPAINT

    def lacks(self, variant: Variant) -> tuple[str, ...]:
        """Return the terms of pipelines that this one has not."""
        own: tuple[str, ...] = ("unblended",)
        if not _reads_mask(variant):
            own = ("masked_image", "masked_image_latents")
        elif not self.encodes(variant):
            own = ("unblended", "image_latents")
        return (*own, *self.unguided)

    def encodes(self, variant: Variant) -> bool:
        """Say whether the whole picture is encoded: not where nothing reads its latents."""
        return not _reads_mask(variant) or self.strength < 1

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs; see `EditScenario.inputs`."""
        drawn = super().inputs(variant, seed)
        if self.everywhere:
            drawn["mask"] |= np.uint8(_WHITE)
        return drawn

    def pictures(self, variant: Variant) -> dict[str, tuple[int, ...]]:
        """Return the shapes of pictures and masks, and of the noise that encoding them takes."""
        shapes = super().pictures(variant)
        shapes["mask"] = shapes["image"][:-1]
        noise = shapes["image_noise"]
        if not self.encodes(variant):
            del shapes["image_noise"]
        if _reads_mask(variant):
            shapes["masked_image_noise"] = noise
        return shapes


def _reads_mask(variant: Variant) -> bool:
    """Say whether the UNet was trained to inpaint: it reads mask and masked picture."""
    sizes = variant.architecture("unet")
    return bool(sizes["in_channels"] > sizes["out_channels"])


def _bytes(drawn: np.ndarray) -> np.ndarray:
    """Return the recipe's integers k, of which (2 k + 1) / 128 was made, as bytes k + 128."""
    return ((drawn * 128 - 1) / 2 + 128).astype(np.uint8)


_ONE_EACH: dict[str, Any] = {**TWO, "images": 2}
_THREE: dict[str, Any] = {
    "prompts": (FOX, CATHEDRAL, "a chair"),
    "negative_prompts": ("", BLURRY, "wood"),
    "images": 3,
}
_HUNTS = {
    "strength0.1": "steps rounded to nearest or up (1.9 are 1), or the step count itself reduced",
    "strength1": "at full strength the picture left out of image to image, or kept in inpainting",
    "guidance0": "zero taken for 'not given', or for the unconditional branch alone",
    "guidance1": "guidance of scale - 1; the conditional branch is the answer",
    "empty": "the empty prompt replaced by zeros; no negative prompt",
    "nonsquare": "height and width of the picture exchanged",
    "oddsize": "sides floored to a multiple of 32 or 64; rows of a picture padded",
    "batch3": "pictures, prompts and noise of a batch paired wrongly",
    "shared": "one picture for two prompts: repeated wrongly, encoded with another noise",
    "each2": "several pictures of a prompt: prompts repeated as a whole, not each for itself",
}
_SCHEDULED = "another schedule of noise than the sampler's; a run that begins at the wrong step"


def _common(make: Any, sizes: tuple[str, ...], once: tuple[str, ...]) -> tuple[EditScenario, ...]:
    """Return what both pipelines are tried with, beside `base`.

    Args:
        make: Makes a scenario.
        sizes: That are tried.
        once: Of these, those that are tried with what does not depend on the UNet's channels.
    """
    return (
        make("strength0.1", _HUNTS["strength0.1"], steps=19, strength=0.1, sizes=sizes),
        make("strength1", _HUNTS["strength1"], **_ONE_EACH, steps=2, strength=1.0, sizes=sizes),
        make("guidance0", _HUNTS["guidance0"], guidance_scale=0.0, sizes=once),
        make("guidance1", _HUNTS["guidance1"], guidance_scale=1.0, sizes=once),
        make("empty", _HUNTS["empty"], prompts=("",), negative_prompts=("",), sizes=once),
        make("nonsquare", _HUNTS["nonsquare"], height=8, width=12, sizes=once),
        make("oddsize", _HUNTS["oddsize"], height=7, width=11, sizes=once),
        make("batch3", _HUNTS["batch3"], **_THREE, steps=2, sizes=sizes),
        make("shared", _HUNTS["shared"], **TWO, sizes=sizes),
        make("each2", _HUNTS["each2"], **TWO, each=2, steps=2, sizes=sizes),
        *(
            make(name.replace("_", "-"), _SCHEDULED, algorithm=name, steps=6, sizes=sizes)
            for name in ALGORITHMS
        ),
    )


IMAGE_TO_IMAGE_SCENARIOS: tuple[EditScenario, ...] = (
    EditScenario(
        BASE,
        "noise of the step before or after the first; pictures in 0..1 or BGR, normalised twice; "
        "latents not scaled, the mean for a sample",
        **_ONE_EACH,
        sizes=("tiny", "odd"),
    ),
    *_common(EditScenario, TINY, TINY),
)

INPAINT_SCENARIOS: tuple[InpaintScenario, ...] = (
    InpaintScenario(
        BASE,
        "order of the UNet's 9 channels, mask inverted or averaged, masked part not grey; what is "
        "known put back with the noise of another step",
        **_ONE_EACH,
        sizes=(*INPAINTED, "odd"),
    ),
    InpaintScenario(
        "everywhere",
        "a picture that is drawn anew as a whole: the masked picture is grey, not black",
        everywhere=True,
        strength=1.0,
        steps=2,
        sizes=(*INPAINTED, "sd1-inpaint"),
    ),
    *_common(InpaintScenario, INPAINTED, INPAINTED[1:]),  # type: ignore[arg-type]
)
