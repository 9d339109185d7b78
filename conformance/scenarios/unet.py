"""Inputs of the UNet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conformance.recipe import SEED, TensorRecipe
from conformance.regimes import REGIMES
from conformance.scenarios.scenario import BASE, SMALL, Scenario, input_recipe
from conformance.variants import Variant

T_LINSPACE = 976.888916015625
"""A timestep that linspace schedules hand to the UNet, as the nearest float32."""
T_KARRAS = 0.550000011920929
"""A fractional timestep that Karras schedules reach near the end, as the nearest float32."""


PUBLISHED = 64
"""Sides of the latents of a picture of 512 by 512."""


@dataclass(frozen=True)
class UNetScenario(Scenario):
    """One input of the UNet.

    Attributes:
        timestep: Values; one value is handed over 0-d, several as one per sample.
        batch: Number of samples.
        height: Latent height.
        width: Latent width.
        tokens: Rows of `encoder_hidden_states`.
        shift: Inputs are multiplied by 2**shift.
        float_timestep: Hand the timestep over as float32 although it is whole.
        louder: The sample alone is multiplied by 2**louder besides: unlike the text, whose scores
            would saturate, it goes through the network as a stream that is as loud at its end.
    """

    timestep: tuple[float, ...] = (10,)
    batch: int = 2
    height: int = 16
    width: int = 16
    tokens: int = 77
    shift: int = 0
    float_timestep: bool = False
    louder: int = 0

    @property
    def keeps_outputs(self) -> bool:
        """Whether it is small: of latents of the published size a golden keeps the border alone."""
        return max(self.height, self.width) < PUBLISHED

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs.

        Args:
            variant: Gives the channel counts; its regime `dense` makes dense inputs.
            seed: Seed of the recipe.

        Returns:
            `sample` (batch, in_channels, height, width) and `encoder_hidden_states`
            (batch, tokens, cross_attention_dim), float32; `timestep`, int64 or float32, shape ()
            or (batch,).
        """
        recipes = self.recipes(variant)
        arrays = {name: recipe.draw(np.float32, seed) for name, recipe in recipes.items()}
        return {
            "sample": arrays["sample"],
            "timestep": self.timestep_array(),
            "encoder_hidden_states": arrays["encoder_hidden_states"],
        }

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipes of the drawn inputs, by input name."""
        architecture = variant.architecture("unet")
        shapes = {
            "sample": (self.batch, architecture["in_channels"], self.height, self.width),
            "encoder_hidden_states": (
                self.batch,
                self.tokens,
                architecture["cross_attention_dim"],
            ),
        }
        shifts = {"sample": self.shift + self.louder, "encoder_hidden_states": self.shift}
        return {
            name: input_recipe("unet", self.name, name, shape, variant, shifts[name])
            for name, shape in shapes.items()
        }

    def timestep_array(self) -> np.ndarray:
        """Return the timestep as it crosses the border: int64, or float32 where fractional."""
        whole = all(float(t).is_integer() for t in self.timestep) and not self.float_timestep
        values = np.array(self.timestep, dtype=np.int64 if whole else np.float32)
        return values if len(self.timestep) > 1 else values.reshape(())


UNET_SCENARIOS: tuple[UNetScenario, ...] = (
    UNetScenario(
        BASE,
        "wrong wiring, layer, constant; eps (lowvar), cast (dense), softmax (sharp), "
        "variance (offset)",
        regimes=REGIMES,
    ),
    UNetScenario("t0", "sine and cosine exchanged: at t = 0 they are exactly 0 and 1", (0,)),
    UNetScenario("t1", "timestep off by one, embedding rounded to integers", (1,), sizes=SMALL),
    UNetScenario("t500", "embedding in half precision, frequency shift", (500,), sizes=SMALL),
    UNetScenario("t999", "frequency shift and half-precision embedding at their largest", (999,)),
    UNetScenario(
        "t1000",
        "a timestep past the trained range handled by table lookup",
        (1000,),
        sizes=SMALL,
    ),
    UNetScenario(
        "t976.8889", "fractional timesteps of linspace schedules truncated", (T_LINSPACE,)
    ),
    UNetScenario(
        "t0.55", "fractional timesteps of Karras schedules truncated", (T_KARRAS,), sizes=SMALL
    ),
    UNetScenario(
        "tfloat", "a whole timestep that arrives as float", float_timestep=True, sizes=SMALL
    ),
    UNetScenario(
        "tsamples", "one timestep used for the whole batch, no broadcast", (1, 250, 999), batch=3
    ),
    UNetScenario("quiet", "eps of the norms: inputs of tiny variance", shift=-6),
    UNetScenario("loud", "overflow, scores not scaled before the product", shift=3),
    UNetScenario(
        "brink",
        "overflow: the stream reaches 30,000, and half precision must still hold it",
        batch=1,
        louder=12,
        sizes=("tiny",),
    ),
    UNetScenario(
        "beyond",
        "a sample scaled down to be safe: the stream is past what half precision holds",
        batch=1,
        louder=14,
        sizes=("tiny",),
    ),
    UNetScenario(
        "nonsquare", "height and width exchanged, row padding", batch=1, height=24, width=40
    ),
    UNetScenario(
        "oddsize",
        "upsampling to twice the size instead of the skip's",
        batch=1,
        height=15,
        width=21,
    ),
    UNetScenario(
        "small", "a latent whose lowest level is one pixel", height=8, width=8, sizes=SMALL
    ),
    UNetScenario("batch1", "a batch of one squeezed or special-cased", batch=1),
    UNetScenario("batch3", "guidance pairing assumed, last slice dropped", batch=3, sizes=SMALL),
    UNetScenario("tokens7", "text length 77 baked in", tokens=7),
    UNetScenario(
        "latent64",
        "what only the published size shows: attention over 4,096 tokens, kernels chosen by size",
        height=PUBLISHED,
        width=PUBLISHED,
        sizes=("sd1",),
    ),
)
