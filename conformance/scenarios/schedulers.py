"""Inputs of the schedulers: a configuration, a sample, and what the model says at every step."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from conformance.recipe import SEED, TensorRecipe
from conformance.sampling import (
    SCHEDULER_STEPS,
    TABLES,
    adds_noise,
    calls,
    config_array,
    kept_steps,
    settings,
    step_name,
)
from conformance.scenarios.scenario import BASE, Scenario, input_recipe
from conformance.variants import NO_VARIANT, Variant

SHAPE = (2, 4, 6, 7)
"""Batch, channels, height, width: no two alike, so that a mixed-up axis shows."""


@dataclass(frozen=True)
class SchedulerScenario(Scenario):
    """One run of a scheduler, open loop: the model's outputs are data.

    Attributes:
        algorithm: `ddpm`, `ddim` or `pndm`.
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
    def calls(self) -> int:
        """Return how often the model is asked."""
        return calls(self.algorithm, self.config)

    def terms(self) -> list[str]:
        """Return the tables, where they are kept, and the steps that are."""
        steps = kept_steps(self.calls)
        own = TABLES if self.tables else ()
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


@dataclass(frozen=True)
class _Row:
    """A scenario of several schedulers."""

    name: str
    hunts: str
    steps: int
    changes: dict[str, Any] = field(default_factory=dict)
    algorithms: tuple[str, ...] = ("ddpm", "ddim", "pndm")
    tables: bool = False
    refused: str = ""
    noise_shift: int = 0


_ROWS = (
    _Row(
        BASE,
        "linear betas, another range, a table in half precision, final alpha 1, steps_offset 0, "
        "coefficients of a neighbouring step",
        50,
        tables=True,
    ),
    _Row("steps1", "division by the number of steps less one", 1, algorithms=("ddpm", "ddim")),
    _Row("steps2", "first and last step mixed up; PLMS before it has a past", 2),
    _Row("steps3", "range() with a stride: four steps for three", 3),
    _Row("steps7", "range() with a stride: eight steps for seven", 7),
    _Row("steps30", "range() with a stride: 31 steps for 30", 30),
    _Row("steps999", "every timestep but 0: rounding that adds up, tables off by one", 999),
    _Row(
        "linear",
        "the schedule of another family baked in",
        7,
        {"beta_schedule": "linear"},
        tables=True,
    ),
    _Row(
        "pixels",
        "range of the betas, offset and final alpha baked in",
        10,
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "steps_offset": 0},
        tables=True,
    ),
    _Row("offset0", "steps_offset baked in; a table read at -1", 20, {"steps_offset": 0}),
    _Row(
        "alpha-one",
        "the final alpha baked in, or set and ignored",
        7,
        {"set_alpha_to_one": True},
        ("ddim", "pndm"),
        tables=True,
    ),
    _Row("velocity", "epsilon assumed", 7, {"prediction_type": "v_prediction"}),
    _Row("late", "a run that begins late steps from the wrong timestep", 20, {"begin_index": 5}),
    _Row("eta0.5", "eta ignored, squared, or used without its root", 7, {"eta": 0.5}, ("ddim",)),
    _Row("eta1", "noise added but the direction not shortened", 7, {"eta": 1.0}, ("ddim",)),
    _Row(
        "clip",
        "x0 not clipped, or epsilon derived anew from the clipped x0",
        7,
        {"clip_sample": True},
        ("ddpm", "ddim"),
    ),
    _Row(
        "large",
        "the posterior's variance whatever is asked for",
        7,
        {"variance_type": "fixed_large"},
        ("ddpm",),
    ),
    _Row(
        "loud-noise",
        "the deviation of the noise wrong in its fourth digit",
        7,
        {"begin_index": 3},
        algorithms=("ddpm",),
        noise_shift=8,
    ),
    _Row(
        "loud-last",
        "the least variance: the last step's noise is 1e-10 of the sample, here 1e-6",
        1,
        algorithms=("ddpm",),
        noise_shift=13,
    ),
    _Row(
        "steps1000",
        "numbers made up where there are none to compute",
        1000,
        refused=(
            "1000 steps with steps_offset 1 begin at timestep 1000: the reference reads past its "
            "table"
        ),
    ),
    _Row(
        "steps1",
        "numbers made up where there are none to compute",
        1,
        algorithms=("pndm",),
        refused=(
            "PLMS takes its first step twice, from a second prediction; with one timestep there is "
            "none, and the reference silently predicts once"
        ),
    ),
)


def scheduler_scenarios(algorithm: str) -> list[SchedulerScenario]:
    """Return the scenarios of one scheduler, `base` first.

    Args:
        algorithm: `ddpm`, `ddim` or `pndm`.
    """
    return [
        SchedulerScenario(
            row.name,
            row.hunts,
            sizes=(NO_VARIANT,),
            algorithm=algorithm,
            steps=row.steps,
            changes=row.changes,
            tables=row.tables,
            refused=row.refused,
            noise_shift=row.noise_shift,
        )
        for row in _ROWS
        if algorithm in row.algorithms
    ]
