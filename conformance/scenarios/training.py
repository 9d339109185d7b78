"""Inputs of training: latents or an image, noise, timesteps, and what the loss is made of."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from conformance import spec
from conformance.recipe import SEED, TensorRecipe
from conformance.regimes import UNIT
from conformance.sampling import config_array
from conformance.scenarios.scenario import BASE, SMALL, Scenario, input_recipe
from conformance.scenarios.vae import FACTOR
from conformance.training import (
    SCHEDULE,
    TERMS,
    TEXT_TRAINING,
    TRAINING,
    VAE_TRAINING,
)
from conformance.variants import Variant

_TOKENS = 77
_IMAGE_SHIFT = -1
"""Images lie in -1..1: drawn values, which lie in -2..2, times 2**-1."""


@dataclass(frozen=True)
class TrainingScenario(Scenario):
    """What all trainings have in common.

    Attributes:
        component: One of `training.TRAININGS`.
    """

    _: KW_ONLY
    component: str
    sizes: tuple[str, ...] = SMALL

    @property
    def in_halves(self) -> bool:
        """Say no: gradients in half precision need a scaled loss, which is a port's own affair."""
        return False

    @property
    def config(self) -> dict[str, Any]:
        """Return the settings of the loss."""
        raise NotImplementedError

    def terms(self, variant: Variant) -> list[str]:
        """Return what the loss is computed from, then the gradients of all parameters."""
        return [*TERMS[self.component], *spec.gradient_shapes(self.component, variant.size)]

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs; `config` is JSON, shape ()."""
        return {"config": config_array(self.config), **super().inputs(variant, seed)}


@dataclass(frozen=True)
class DenoisingScenario(TrainingScenario):
    """One batch of the UNet's training, or of the text encoder's through the UNet.

    Attributes:
        timesteps: One for each sample.
        height: Of the latents.
        width: Of the latents.
        prediction_type: What the UNet predicts.
    """

    component: str = TRAINING
    timesteps: tuple[int, ...] = (2, 87)
    height: int = 16
    width: int = 8
    prediction_type: str = "epsilon"

    @property
    def asks(self) -> str:
        """Return the setting that differs from SD v1's, in words."""
        own = self.prediction_type
        return "" if own == SCHEDULE["prediction_type"] else f"prediction_type {own}"

    @property
    def config(self) -> dict[str, Any]:
        """Return the noise schedule and what is predicted."""
        return SCHEDULE | {"prediction_type": self.prediction_type}

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw `latents`, `noise` (B, 4, h, w) and the prompt; `timesteps` are data, int64 (B,).

        The prompt is `encoder_hidden_states` (B, 77, width), drawn, or `input_ids` (B, 77).
        """
        drawn = super().inputs(variant, seed)
        drawn["timesteps"] = np.array(self.timesteps, np.int64)
        if self.component == TEXT_TRAINING:
            ids = np.array(spec.golden_prompts()["batch3"]["input_ids"], np.int64)
            drawn["input_ids"] = ids[: len(self.timesteps)]
        return drawn

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipes of the drawn inputs, by input name."""
        unet = variant.architecture("unet")
        batch = len(self.timesteps)
        latents = (batch, unet["out_channels"], self.height, self.width)
        shapes: dict[str, tuple[int, ...]] = {"latents": latents, "noise": latents}
        if self.component == TRAINING:
            shapes["encoder_hidden_states"] = (batch, _TOKENS, unet["cross_attention_dim"])
        return {
            name: input_recipe(self.component, self.name, name, shape, variant)
            for name, shape in shapes.items()
        }


@dataclass(frozen=True)
class AutoencodingScenario(TrainingScenario):
    """One batch of the VAE's training.

    Attributes:
        height: Of the image.
        width: Of the image.
        batch: Number of images.
        kl_weight: Weight of the KL divergence.
    """

    component: str = VAE_TRAINING
    height: int = 32
    width: int = 40
    batch: int = 2
    kl_weight: float = 2.0**-8

    @property
    def config(self) -> dict[str, Any]:
        """Return the weight of the KL divergence."""
        return {"kl_weight": self.kl_weight}

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return `image` (B, 3, H, W) in -1..1 and `noise` (B, 4, H // 8, W // 8)."""
        vae = variant.architecture("vae_encoder")
        image = (self.batch, vae["in_channels"], self.height, self.width)
        noise = (
            self.batch,
            vae["latent_channels"],
            self.height // FACTOR,
            self.width // FACTOR,
        )
        return {
            "image": input_recipe(self.component, self.name, "image", image, variant, _IMAGE_SHIFT),
            "noise": input_recipe(self.component, self.name, "noise", noise, variant),
        }


TRAINING_SCENARIOS: dict[str, tuple[TrainingScenario, ...]] = {
    TRAINING: (
        DenoisingScenario(
            BASE,
            "a wrong target, loss or reduction; one timestep for the batch; a gradient cut off, "
            "doubled, not summed",
        ),
        DenoisingScenario(
            "v_prediction",
            "velocity with its coefficients, or its sign, exchanged",
            timesteps=(60, 250),
            prediction_type="v_prediction",
            sizes=("tiny",),
        ),
        DenoisingScenario(
            "batch1",
            "a batch of one squeezed; sizes that halve to odd ones",
            timesteps=(41,),
            height=10,
            width=24,
            sizes=("tiny",),
        ),
        DenoisingScenario(
            "late",
            "the last timesteps left out, or read past the table",
            timesteps=(999, 960),
            sizes=("tiny",),
        ),
    ),
    TEXT_TRAINING: (
        DenoisingScenario(
            BASE,
            "the prompt's gradient cut off or wrong; rows of one token not added up",
            component=TEXT_TRAINING,
        ),
    ),
    VAE_TRAINING: (
        AutoencodingScenario(
            BASE,
            "noise that is no part of the graph; KL of another sign, weight or reduction; a "
            "gradient that passes the log-variance's clamp (outlier)",
            regimes=(UNIT, "outlier"),
        ),
    ),
}
