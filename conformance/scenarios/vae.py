"""Inputs of the two halves of the VAE: images with noise, and latents."""

from __future__ import annotations

from dataclasses import dataclass, replace

from conformance.recipe import TensorRecipe
from conformance.regimes import REGIMES
from conformance.scenarios.scenario import BASE, SMALL, Scenario, input_recipe
from conformance.variants import Variant

FACTOR = 8
"""Pixels of the image to a latent, along each side."""

_HALF = -1
"""Images lie in -1..1: drawn values, which lie in -2..2, times 2**-1."""


@dataclass(frozen=True)
class Pattern:
    """What is made of drawn values.

    Attributes:
        shift: They are multiplied by 2**shift.
        constant: Every value is this instead.
        signs: Only their signs stay, times the power of two.
        border: Only this many rows and columns at each edge stay.
        mean: Added at the end.
    """

    shift: int = 0
    constant: float | None = None
    signs: bool = False
    border: int | None = None
    mean: float = 0.0

    def of(self, recipe: TensorRecipe) -> TensorRecipe:
        """Return the recipe with the pattern."""
        return replace(
            recipe,
            shift=recipe.shift + self.shift,
            constant=self.constant,
            signs=self.signs,
            border=self.border,
            mean=self.mean,
        )


PLAIN = Pattern()


@dataclass(frozen=True)
class ImageScenario(Scenario):
    """One input of the encoder.

    Attributes:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        batch: Number of images.
        pattern: What is made of the drawn image.
    """

    height: int = 48
    width: int = 48
    batch: int = 2
    pattern: Pattern = PLAIN

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return `image` (batch, 3, height, width) in -1..1 and `noise`, shaped as the latents."""
        architecture = variant.architecture("vae_encoder")
        image = (self.batch, architecture["in_channels"], self.height, self.width)
        noise = (
            self.batch,
            architecture["latent_channels"],
            self.height // FACTOR,
            self.width // FACTOR,
        )
        return {
            "image": self.pattern.of(
                input_recipe("vae_encoder", self.name, "image", image, variant, _HALF)
            ),
            "noise": input_recipe("vae_encoder", self.name, "noise", noise, variant),
        }


@dataclass(frozen=True)
class LatentsScenario(Scenario):
    """One input of the decoder.

    Attributes:
        height: Of the latents.
        width: Of the latents.
        batch: Number of samples.
        pattern: What is made of the drawn latents.
    """

    height: int = 2
    width: int = 3
    batch: int = 2
    pattern: Pattern = PLAIN

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return `latents` (batch, 4, height, width), as the UNet makes them: times 0.18215."""
        architecture = variant.architecture("vae_decoder")
        shape = (self.batch, architecture["latent_channels"], self.height, self.width)
        recipe = input_recipe("vae_decoder", self.name, "latents", shape, variant)
        return {"latents": self.pattern.of(recipe)}


IMAGE_SCENARIOS: tuple[ImageScenario, ...] = (
    ImageScenario(
        BASE,
        "wrong wiring, layer, constant, latents not scaled; eps (lowvar), cast (dense), "
        "softmax (sharp), log-variance not clamped (outlier), variance (offset)",
        regimes=REGIMES,
    ),
    ImageScenario("nonsquare", "height and width exchanged", 40, 72),
    ImageScenario(
        "oddsize", "sides that are no multiple of 8: padded instead of cut when halved", 52, 44
    ),
    ImageScenario(
        "border",
        "symmetric padding before the stride: the only structure is at the edges",
        pattern=Pattern(border=2),
        sizes=("tiny", "sd1"),
    ),
    ImageScenario(
        "constant",
        "a norm that divides by zero variance; padding with something else than 0",
        batch=1,
        pattern=Pattern(constant=0.5),
        sizes=("tiny",),
    ),
    ImageScenario(
        "saturated",
        "pixels clipped or rescaled at -1 and 1",
        pattern=Pattern(shift=1, signs=True),
        sizes=("tiny",),
    ),
    ImageScenario(
        "offset",
        "mean of the image removed; low contrast lost: a bright, flat image",
        pattern=Pattern(shift=-5, mean=0.75),
        sizes=("tiny",),
    ),
    ImageScenario(
        "quiet",
        "eps of the norms: an image of tiny variance",
        pattern=Pattern(-6),
        sizes=("tiny",),
    ),
    ImageScenario(
        "loud", "overflow; pixels clipped to -1..1", pattern=Pattern(3), sizes=("tiny", "sd1")
    ),
    ImageScenario("batch1", "a batch of one squeezed", 64, 64, 1, sizes=("tiny",)),
    ImageScenario("batch3", "noise or images shared within a batch", 32, 40, 3, sizes=SMALL),
)

LATENTS_SCENARIOS: tuple[LatentsScenario, ...] = (
    LatentsScenario(
        BASE,
        "wrong wiring, layer, constant, latents not divided by 0.18215; eps (lowvar), cast "
        "(dense), softmax (sharp), variance (offset)",
        regimes=REGIMES,
    ),
    LatentsScenario("nonsquare", "height and width exchanged", 2, 5, 1),
    LatentsScenario("oddsize", "latents of a size that no power of two divides", 5, 3, 1),
    LatentsScenario(
        "border",
        "padding of the convolutions: the only structure is at the edges",
        4,
        3,
        1,
        Pattern(border=1),
        sizes=("tiny",),
    ),
    LatentsScenario(
        "constant",
        "a norm that divides by zero variance; padding with something else than 0",
        3,
        3,
        1,
        Pattern(constant=0.5),
        sizes=("tiny",),
    ),
    LatentsScenario(
        "saturated",
        "latents or pixels clipped",
        3,
        3,
        1,
        Pattern(shift=2, signs=True),
        sizes=("tiny",),
    ),
    LatentsScenario(
        "offset", "mean of the latents removed", 3, 3, 1, Pattern(-3, mean=3), sizes=("tiny",)
    ),
    LatentsScenario(
        "quiet",
        "eps of the norms: latents of tiny variance",
        3,
        3,
        1,
        Pattern(-6),
        sizes=("tiny",),
    ),
    LatentsScenario(
        "loud", "overflow; image clipped to -1..1", 3, 3, 1, Pattern(3), sizes=("tiny", "sd1")
    ),
    LatentsScenario(
        "brink",
        "overflow: a map reaches 38,000, and half precision must still hold it",
        3,
        3,
        1,
        Pattern(10),
        sizes=("tiny",),
    ),
    LatentsScenario(
        "beyond",
        "latents clipped to be safe: a map is past what half precision holds",
        3,
        3,
        1,
        Pattern(12),
        sizes=("tiny",),
    ),
    LatentsScenario("batch1", "a batch of one squeezed", 3, 3, 1, sizes=("tiny",)),
    LatentsScenario("batch3", "last slice of a batch dropped", 2, 2, 3, sizes=SMALL),
)
