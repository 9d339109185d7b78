"""What all scenarios have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass

import numpy as np

from conformance.recipe import SEED, Kind, TensorRecipe
from conformance.regimes import UNIT
from conformance.variants import Variant

BASE = "base"

EVERY = ("tiny", "odd", "sd1")
SMALL = ("tiny", "odd")


@dataclass(frozen=True)
class Scenario(ABC):
    """A named input, chosen to expose a class of bugs.

    Attributes:
        name: Last segment of the case id.
        hunts: The bugs that this input is there to expose, in one line.
        regimes: Regimes of the weights in which it is recorded.
        sizes: Sizes that run it; those for inpainting run what their plain size runs.
        refused: Why nothing can be computed here: the reference raises or degenerates. Empty where
            it does not.
    """

    name: str
    hunts: str
    _: KW_ONLY
    regimes: tuple[str, ...] = (UNIT,)
    sizes: tuple[str, ...] = EVERY
    refused: str = ""

    @property
    def asks(self) -> str:
        """Return the settings that differ from SD v1's, in words; empty where none does."""
        return ""

    @property
    def in_halves(self) -> bool:
        """Whether half-precision arithmetic is judged here too, where the weights allow it."""
        return True

    @property
    def keeps_outputs(self) -> bool:
        """Whether a golden keeps outputs whole where they are small enough."""
        return True

    @property
    def keeps_pixels(self) -> bool:
        """Whether a golden keeps the oracle's 8-bit picture, for PSNR and SSIM."""
        return False

    @property
    def calls(self) -> int:
        """Return how often the model is asked: once, but by schedulers and pipelines."""
        return 1

    def terms(
        self,
        variant: Variant,  # noqa: ARG002 - of pipelines it matters
    ) -> list[str]:
        """Return what a scheduler or a pipeline is watched at, in the order of execution."""
        return []

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs, in the order of docs/contract.md.

        Args:
            variant: Gives the channel counts; its regime `dense` makes dense inputs.
            seed: Seed of the recipe.

        Returns:
            Arrays by input name; floating ones are float32.
        """
        recipes = self.recipes(variant)
        return {name: recipe.draw(np.float32, seed) for name, recipe in recipes.items()}

    @abstractmethod
    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipes of the drawn inputs, by input name."""


def input_recipe(
    component: str,
    scenario: str,
    name: str,
    shape: tuple[int, ...],
    variant: Variant,
    shift: int = 0,
) -> TensorRecipe:
    """Return the recipe of one input: 24-bit where the weights are `dense`."""
    return TensorRecipe(
        f"inputs/{component}/{scenario}/{name}",
        shape,
        Kind.INPUT,
        dense=variant.regime == "dense",
        shift=shift,
    )
