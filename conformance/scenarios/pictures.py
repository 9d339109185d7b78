"""Inputs of the pipelines: prompts, latents and settings; here those of text to image."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from conformance.recipe import SEED, TensorRecipe
from conformance.sampling import (
    IMAGE_TERMS,
    SIGMA_FAMILY,
    TEXT_TO_IMAGE,
    adds_noise,
    calls,
    config_array,
    pipeline_terms,
    settings,
)
from conformance.scenarios.scenario import BASE, SMALL, Scenario, input_recipe
from conformance.variants import Variant

TINY = ("tiny",)
FOX = "A red fox in the snow, oil on canvas"
CATHEDRAL = "cathédrale de Reims at dusk, 35mm"
BLURRY = "blurry, low quality"
TWO: dict[str, Any] = {"prompts": (FOX, CATHEDRAL), "negative_prompts": (BLURRY, "")}

_KEPT = ("ddim", "ddim2", "nonsquare", "oddsize", "ddim50")
"""Scenarios of text to image whose pictures are kept as they are seen, besides `base`."""

GUIDED_TERMS = ("negative_input_ids", "negative_prompt_embeds", "noise_pred_uncond")


@dataclass(frozen=True)
class PictureScenario(Scenario):
    """One picture, or a batch of them.

    Attributes:
        prompts: One for each picture, or for each group of them.
        negative_prompts: As many.
        each: How many pictures there are of each prompt.
        algorithm: Scheduler: one of `sampling.ALGORITHMS`.
        changes: Its settings that differ from SD v1's.
        steps: `num_inference_steps`.
        guidance_scale: 1 and less mean no guidance.
        height: Of the latents; the image's is 8 times that.
        width: Of the latents.
    """

    _: KW_ONLY
    prompts: tuple[str, ...] = (FOX,)
    negative_prompts: tuple[str, ...] = (BLURRY,)
    each: int = 1
    algorithm: str = "ddim"
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    steps: int = 2
    guidance_scale: float = 7.5
    height: int = 8
    width: int = 8

    component = TEXT_TO_IMAGE

    @property
    def config(self) -> dict[str, Any]:
        """Return the scheduler's name and its full configuration."""
        own = settings(self.algorithm, self.steps, **self.changes)
        return {"scheduler": self.algorithm} | own

    @property
    def in_halves(self) -> bool:
        """Whether half-precision arithmetic is judged here too: SD v1's own schedulers will do."""
        return self.algorithm not in SIGMA_FAMILY

    @property
    def keeps_pixels(self) -> bool:
        """Whether a golden keeps the oracle's 8-bit picture, for PSNR and SSIM."""
        return self.name == BASE or self.name in _KEPT

    @property
    def left_out(self) -> int:
        """Return how many calls of the run are not made."""
        return 0

    @property
    def calls(self) -> int:
        """Return how often the UNet is asked."""
        return calls(self.algorithm, self.config) - self.left_out

    def terms(self, variant: Variant) -> list[str]:
        """Return the terms that are kept; at a scale of 1 and less there is no guidance."""
        return pipeline_terms(self.calls, self.lacks(variant))

    def lacks(self, variant: Variant) -> tuple[str, ...]:  # noqa: ARG002 - of others it matters
        """Return the terms of pipelines that this one has not."""
        return (*IMAGE_TERMS, "unblended", *self.unguided)

    @property
    def unguided(self) -> tuple[str, ...]:
        """Return what is not computed without guidance."""
        return () if self.guidance_scale > 1 else GUIDED_TERMS

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs.

        Args:
            variant: Gives the channel counts.
            seed: Seed of the recipe.

        Returns:
            `prompt` and `negative_prompt`, strings, shape (B,); `latents` (B n, 4, h, w), float32;
            `guidance_scale`, float64, shape (); `config`, JSON, shape (); where the scheduler adds
            noise, `noise` (calls, B n, 4, h, w), float32; `num_images_per_prompt`, int64, shape (),
            where this n is not 1.
        """
        drawn = super().inputs(variant, seed)
        several = {} if self.each == 1 else {"num_images_per_prompt": np.array(self.each)}
        return {
            "prompt": np.array(self.prompts),
            "negative_prompt": np.array(self.negative_prompts),
            "latents": drawn.pop("latents"),
            "guidance_scale": np.array(self.guidance_scale),
            "config": config_array(self.config),
            **several,
            **drawn,
        }

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipes of the drawn inputs, by input name."""
        channels = variant.architecture("unet")["out_channels"]
        latents = (self.each * len(self.prompts), channels, self.height, self.width)
        shapes: dict[str, tuple[int, ...]] = {"latents": latents}
        if adds_noise(self.algorithm, self.config):
            shapes["noise"] = (self.calls, *latents)
        return self.drawn(shapes, variant)

    def drawn(
        self, shapes: dict[str, tuple[int, ...]], variant: Variant
    ) -> dict[str, TensorRecipe]:
        """Return the recipes of inputs of these shapes."""
        return {
            name: input_recipe(self.component, self.name, name, shape, variant)
            for name, shape in shapes.items()
        }


PICTURE_SCENARIOS: tuple[PictureScenario, ...] = (
    PictureScenario(
        BASE,
        "guidance halves exchanged, prompts paired wrongly in a batch, latent scale missing, "
        "pixels truncated, the orders of PLMS",
        **TWO,
        algorithm="pndm",
        steps=7,
        sizes=SMALL,
    ),
    PictureScenario("ddim", "steps_offset, final alpha, coefficients", **TWO, steps=7, sizes=SMALL),
    PictureScenario(
        "ddpm",
        "noise not added, shared within the batch or given to another step",
        **TWO,
        algorithm="ddpm",
        steps=7,
        sizes=SMALL,
    ),
    PictureScenario(
        "eta1", "eta not handed to the scheduler", changes={"eta": 1.0}, steps=7, sizes=TINY
    ),
    PictureScenario("ddim1", "a single step special-cased", steps=1, sizes=TINY),
    PictureScenario("ddim2", "the last step left out or taken twice", steps=2),
    PictureScenario("pndm2", "PLMS before it has a past", algorithm="pndm", steps=2, sizes=TINY),
    PictureScenario("ddim50", "errors that add up over a whole trajectory", steps=50, sizes=TINY),
    PictureScenario(
        "pndm50",
        "errors that add up over a whole trajectory; the past not cut at four",
        algorithm="pndm",
        steps=50,
        sizes=TINY,
    ),
    PictureScenario(
        "ddpm50",
        "errors that add up over a whole trajectory; noise of the wrong step",
        algorithm="ddpm",
        steps=50,
        sizes=TINY,
    ),
    PictureScenario(
        "guidance0",
        "zero taken for 'not given', or for the unconditional branch alone",
        **TWO,
        guidance_scale=0.0,
        sizes=TINY,
    ),
    PictureScenario(
        "guidance1",
        "guidance of scale - 1; the conditional branch is the answer",
        **TWO,
        guidance_scale=1.0,
        sizes=TINY,
    ),
    PictureScenario("guidance1.5", "guidance switched off below 2", guidance_scale=1.5, sizes=TINY),
    PictureScenario(
        "empty",
        "the empty prompt replaced by zeros; no negative prompt",
        prompts=("",),
        negative_prompts=("",),
        sizes=TINY,
    ),
    PictureScenario(
        "long",
        "a prompt of several rows: end of text lost, chunked or averaged",
        prompts=(", ".join([FOX, CATHEDRAL] * 6),),
        sizes=TINY,
    ),
    PictureScenario(
        "nonsquare", "height and width exchanged", **TWO, height=8, width=12, sizes=SMALL
    ),
    PictureScenario("oddsize", "sizes that are no multiple of 64", height=7, width=11, sizes=TINY),
    PictureScenario(
        "batch3",
        "prompts and latents of a batch paired wrongly",
        prompts=(FOX, CATHEDRAL, "a chair"),
        negative_prompts=("", BLURRY, "wood"),
        sizes=TINY,
    ),
    PictureScenario(
        "each2",
        "several pictures of a prompt: prompts repeated as a whole, not each for itself",
        **TWO,
        each=2,
        sizes=TINY,
    ),
    *(
        PictureScenario(
            algorithm.replace("_", "-"),
            "initial latents not scaled to the first sigma, the UNet given unscaled latents, "
            "fractions cut off the timesteps",
            algorithm=algorithm,
            steps=5,
            sizes=TINY,
        )
        for algorithm in SIGMA_FAMILY
    ),
    PictureScenario(
        "karras",
        "timesteps of the grid, not of the sigmas",
        algorithm="euler",
        changes={"use_karras_sigmas": True},
        steps=3,
        sizes=TINY,
    ),
    PictureScenario(
        "leading",
        "initial latents of a grid that begins later: the picture is no negligible part of them",
        algorithm="euler",
        changes={"timestep_spacing": "leading"},
        steps=3,
        sizes=TINY,
    ),
)
