"""Inputs of the pipelines: prompts, latents and settings."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from conformance.recipe import SEED, TensorRecipe
from conformance.sampling import (
    TEXT_TO_IMAGE,
    adds_noise,
    calls,
    config_array,
    pipeline_terms,
    settings,
)
from conformance.scenarios.scenario import BASE, SMALL, Scenario, input_recipe
from conformance.variants import Variant

_TINY = ("tiny",)
_FOX = "A red fox in the snow, oil on canvas"
_CATHEDRAL = "cathédrale de Reims at dusk, 35mm"
_BLURRY = "blurry, low quality"


@dataclass(frozen=True)
class PictureScenario(Scenario):
    """One picture, or a batch of them.

    Attributes:
        prompts: One for each picture.
        negative_prompts: As many.
        algorithm: Scheduler: `ddpm`, `ddim` or `pndm`.
        steps: `num_inference_steps`.
        guidance_scale: 1 and less mean no guidance.
        eta: Of DDIM.
        height: Of the latents; the image's is 8 times that.
        width: Of the latents.
    """

    _: KW_ONLY
    prompts: tuple[str, ...] = (_FOX,)
    negative_prompts: tuple[str, ...] = (_BLURRY,)
    algorithm: str = "ddim"
    steps: int = 2
    guidance_scale: float = 7.5
    eta: float = 0.0
    height: int = 8
    width: int = 8

    @property
    def config(self) -> dict[str, Any]:
        """Return the scheduler's name and its full configuration."""
        changes = {"eta": self.eta} if self.algorithm == "ddim" else {}
        return {"scheduler": self.algorithm} | settings(self.algorithm, self.steps, **changes)

    @property
    def calls(self) -> int:
        """Return how often the UNet is asked."""
        return calls(self.algorithm, self.config)

    def terms(self) -> list[str]:
        """Return the terms that are kept; at a scale of 1 and less there is no guidance."""
        return pipeline_terms(self.calls, guided=self.guidance_scale > 1)

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs.

        Args:
            variant: Gives the channel counts.
            seed: Seed of the recipe.

        Returns:
            `prompt` and `negative_prompt`, strings, shape (B,); `latents` (B, 4, h, w), float32;
            `guidance_scale`, float64, shape (); `config`, JSON, shape (); where the scheduler adds
            noise, `noise` (calls, B, 4, h, w), float32.
        """
        drawn = super().inputs(variant, seed)
        return {
            "prompt": np.array(self.prompts),
            "negative_prompt": np.array(self.negative_prompts),
            "latents": drawn.pop("latents"),
            "guidance_scale": np.array(self.guidance_scale),
            "config": config_array(self.config),
            **drawn,
        }

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipes of the drawn inputs, by input name."""
        channels = variant.architecture("unet")["out_channels"]
        latents = (len(self.prompts), channels, self.height, self.width)
        shapes: dict[str, tuple[int, ...]] = {"latents": latents}
        if adds_noise(self.algorithm, self.config):
            shapes["noise"] = (self.calls, *latents)
        return {
            name: input_recipe(TEXT_TO_IMAGE, self.name, name, shape, variant)
            for name, shape in shapes.items()
        }


_TWO: dict[str, Any] = {"prompts": (_FOX, _CATHEDRAL), "negative_prompts": (_BLURRY, "")}

PICTURE_SCENARIOS: tuple[PictureScenario, ...] = (
    PictureScenario(
        BASE,
        "guidance halves exchanged, prompts paired wrongly in a batch, latent scale missing, "
        "pixels truncated, the orders of PLMS",
        **_TWO,
        algorithm="pndm",
        steps=7,
        sizes=SMALL,
    ),
    PictureScenario(
        "ddim", "steps_offset, final alpha, coefficients", **_TWO, steps=7, sizes=SMALL
    ),
    PictureScenario(
        "ddpm",
        "noise not added, shared within the batch or given to another step",
        **_TWO,
        algorithm="ddpm",
        steps=7,
        sizes=SMALL,
    ),
    PictureScenario("eta1", "eta not handed to the scheduler", eta=1.0, steps=7, sizes=_TINY),
    PictureScenario("ddim1", "a single step special-cased", steps=1, sizes=_TINY),
    PictureScenario("ddim2", "the last step left out or taken twice", steps=2),
    PictureScenario("pndm2", "PLMS before it has a past", algorithm="pndm", steps=2, sizes=_TINY),
    PictureScenario("ddim50", "errors that add up over a whole trajectory", steps=50, sizes=_TINY),
    PictureScenario(
        "pndm50",
        "errors that add up over a whole trajectory; the past not cut at four",
        algorithm="pndm",
        steps=50,
        sizes=_TINY,
    ),
    PictureScenario(
        "ddpm50",
        "errors that add up over a whole trajectory; noise of the wrong step",
        algorithm="ddpm",
        steps=50,
        sizes=_TINY,
    ),
    PictureScenario(
        "guidance0",
        "zero taken for 'not given', or for the unconditional branch alone",
        **_TWO,
        guidance_scale=0.0,
        sizes=_TINY,
    ),
    PictureScenario(
        "guidance1",
        "guidance of scale - 1; the conditional branch is the answer",
        **_TWO,
        guidance_scale=1.0,
        sizes=_TINY,
    ),
    PictureScenario(
        "guidance1.5", "guidance switched off below 2", guidance_scale=1.5, sizes=_TINY
    ),
    PictureScenario(
        "empty",
        "the empty prompt replaced by zeros; no negative prompt",
        prompts=("",),
        negative_prompts=("",),
        sizes=_TINY,
    ),
    PictureScenario(
        "long",
        "a prompt of several rows: end of text lost, chunked or averaged",
        prompts=(", ".join([_FOX, _CATHEDRAL] * 6),),
        sizes=_TINY,
    ),
    PictureScenario(
        "nonsquare", "height and width exchanged", **_TWO, height=8, width=12, sizes=SMALL
    ),
    PictureScenario("oddsize", "sizes that are no multiple of 64", height=7, width=11, sizes=_TINY),
    PictureScenario(
        "batch3",
        "prompts and latents of a batch paired wrongly",
        prompts=(_FOX, _CATHEDRAL, "a chair"),
        negative_prompts=("", _BLURRY, "wood"),
        sizes=_TINY,
    ),
)
