"""Inputs of the schedulers: a configuration, a sample, and what the model says at every step."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from conformance.recipe import SEED, TensorRecipe
from conformance.sampling import (
    SCHEDULER_STEPS,
    adds_noise,
    calls,
    config_array,
    kept_steps,
    refusal,
    settings,
    step_name,
    tables,
)
from conformance.scenarios.grid import Row, rows
from conformance.scenarios.scenario import Scenario, input_recipe
from conformance.variants import NO_VARIANT, Variant

SHAPE = (2, 4, 6, 7)
"""Batch, channels, height, width: no two alike, so that a mixed-up axis shows."""


LONG = 100
"""Calls beyond which a golden keeps no table of the run, and its noise is taken of fewer draws."""


@dataclass(frozen=True)
class SchedulerScenario(Scenario):
    """One run of a scheduler, open loop: the model's outputs are data.

    Attributes:
        algorithm: One of `sampling.ALGORITHMS`.
        steps: `num_inference_steps`.
        changes: Settings that differ from SD v1's.
        tables: Whether the golden holds the noise schedule too: those with the same schedule share.
        noise_shift: The noise that steps add is multiplied by 2**noise_shift.
    """

    _: KW_ONLY
    algorithm: str = "ddim"
    steps: int = 7
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    tables: bool = False
    noise_shift: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """Return the full configuration."""
        return settings(self.algorithm, self.steps, **self.changes)

    @property
    def asks(self) -> str:
        """Return the settings that differ from SD v1's, as `name value`."""
        return ", ".join(f"{name} {value}" for name, value in self.changes.items())

    @property
    def in_halves(self) -> bool:
        """Whether half-precision arithmetic is judged here too: other spacings add nothing."""
        return "timestep_spacing" not in self.changes and self.calls <= LONG

    @property
    def calls(self) -> int:
        """Return how often the model is asked."""
        return calls(self.algorithm, self.config)

    def terms(
        self,
        variant: Variant,  # noqa: ARG002 - none applies
    ) -> list[str]:
        """Return the tables, where they are kept, and the steps that are."""
        steps = kept_steps(self.calls)
        own = tables(self.algorithm, schedule=self.tables)
        if self.calls > LONG:
            own = tuple(name for name in own if name not in {"sigmas", "lambdas"})
        return [*own, *(step_name(term, k) for k in steps for term in SCHEDULER_STEPS)]

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:
        """Draw the inputs.

        Args:
            variant: None applies.
            seed: Seed of the recipe.

        Returns:
            `config`, JSON, shape (); `sample` (B, 4, H, W), `model_outputs` (calls, B, 4, H, W)
            and, where the steps add noise, `noise` of the same shape; float32.
        """
        return {"config": config_array(self.config), **super().inputs(variant, seed)}

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipes of the drawn inputs, by input name."""
        every = (self.calls, *SHAPE)
        shapes: dict[str, tuple[int, ...]] = {"sample": SHAPE, "model_outputs": every}
        if adds_noise(self.algorithm, self.config):
            shapes["noise"] = every
        component = f"scheduler/{self.algorithm}"
        return {
            name: input_recipe(
                component, self.name, name, shape, variant, self.noise_shift * (name == "noise")
            )
            for name, shape in shapes.items()
        }


def scheduler_scenarios(algorithm: str) -> list[SchedulerScenario]:
    """Return the scenarios of one scheduler, `base` first.

    Args:
        algorithm: One of `sampling.ALGORITHMS`.
    """
    return [_scenario(algorithm, row) for row in rows(algorithm)]


def _scenario(algorithm: str, row: Row) -> SchedulerScenario:
    return SchedulerScenario(
        row.name,
        row.hunts,
        sizes=(NO_VARIANT,),
        algorithm=algorithm,
        steps=row.steps,
        changes=row.changes,
        tables=row.tables,
        refused=refusal(algorithm, settings(algorithm, row.steps, **row.changes)),
        noise_shift=row.noise_shift,
    )
