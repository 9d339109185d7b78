"""The grid of configurations that schedulers are judged on: what each is there to expose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from conformance.sampling import OWN, PUBLISHED, SIGMA_FAMILY, settings
from conformance.scenarios.scenario import BASE

STEPS = (1, 2, 3, 7, 20, 30, 50, 999, 1000)
SPACINGS = ("leading", "trailing", "linspace")

_FEW = 7
_SOME = 20
_LONG = 999

_NO_X0 = ("pndm", "euler_ancestral")
"""Whose reference has no prediction type `sample`."""


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        name: Of the scenario.
        hunts: The bugs that it is there to expose, in one line.
        steps: `num_inference_steps`.
        changes: Settings that differ from SD v1's.
        tables: Whether the golden holds the noise schedule too.
        noise_shift: The noise that steps add is multiplied by 2**noise_shift.
    """

    name: str
    hunts: str
    steps: int = _FEW
    changes: dict[str, Any] = field(default_factory=dict)
    tables: bool = False
    noise_shift: int = 0


def rows(algorithm: str) -> list[Row]:
    """Return the configurations of a scheduler, `base` first.

    Args:
        algorithm: One of `sampling.ALGORITHMS`.
    """
    known = settings(algorithm, _FEW).keys()
    return [
        *_published(algorithm),
        *_other_schedules(algorithm),
        *_spacings(algorithm),
        *_predictions(algorithm),
        *_late(algorithm),
        *(row for row in _OPTIONS if row.changes.keys() <= known),
        *_particular(algorithm),
    ]


def _own(algorithm: str) -> str:
    """Return the spacing that a scheduler has with SD v1."""
    return str(OWN[algorithm].get("timestep_spacing", PUBLISHED["timestep_spacing"]))


_COUNTS = {
    1: "division by the number of steps less one",
    2: "first and last step mixed up; a multistep method before it has a past",
    3: "range() with a stride: four steps for three",
    7: "range() with a stride: eight steps for seven",
    20: "coefficients of a neighbouring step",
    30: "range() with a stride: 31 steps for 30",
    999: "every timestep but one: rounding that adds up, tables off by one",
    1000: "numbers made up where there are none to compute; timesteps that fall together",
}


def _published(algorithm: str) -> Iterator[Row]:
    """Yield every number of steps, otherwise as with SD v1."""
    hunts = "coefficients of a neighbouring step, linear betas, another range, half tables"
    own = (
        "fractions cut off the timesteps, sigmas in the wrong order, the last sigma"
        if algorithm in SIGMA_FAMILY
        else "final alpha 1, steps_offset 0"
    )
    yield Row(BASE, f"{hunts}, {own}", 50, tables=True)
    for steps, text in _COUNTS.items():
        if not _too_slow(algorithm, steps):
            yield Row(f"steps{steps}", text, steps)


def _too_slow(algorithm: str, steps: int) -> bool:
    """Say whether the reference takes minutes: it integrates LMS's polynomials numerically."""
    return algorithm == "lms" and steps >= _LONG


def _other_schedules(algorithm: str) -> Iterator[Row]:
    """Yield what schedules of other families ask for."""
    pixels = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "steps_offset": 0}
    yield Row(
        "linear",
        "the schedule of another family baked in",
        changes={"beta_schedule": "linear"},
        tables=algorithm not in SIGMA_FAMILY,
    )
    if algorithm not in SIGMA_FAMILY:
        yield Row("pixels", "range of the betas, offset and final alpha baked in", 10, pixels)
    leading = {"timestep_spacing": "leading"} if algorithm in SIGMA_FAMILY else {}
    yield Row(
        "offset0",
        "steps_offset baked in; a table read at -1",
        _SOME,
        leading | {"steps_offset": 0},
    )


_SPACED = {
    "leading": "the spacing baked in; the offset missing, or added to other spacings",
    "trailing": "the spacing baked in; rounding of a stride that is no whole number, timestep -1",
    "linspace": "the spacing baked in; a fixed stride where timesteps are not a stride apart",
}


def _spacings(algorithm: str) -> Iterator[Row]:
    """Yield every number of steps in the other spacings."""
    for spacing, hunts in _SPACED.items():
        if spacing == _own(algorithm):
            continue
        for steps in STEPS:
            if not _too_slow(algorithm, steps):
                yield Row(f"{spacing}{steps}", hunts, steps, {"timestep_spacing": spacing})


def _predictions(algorithm: str) -> Iterator[Row]:
    """Yield what models say that do not predict the noise."""
    kinds = {"velocity": "v_prediction", "x0": "sample"}
    for name, kind in kinds.items():
        if kind == "sample" and algorithm in _NO_X0:
            continue
        for spacing in (_own(algorithm), *(s for s in SPACINGS if s != _own(algorithm))):
            own = spacing == _own(algorithm)
            changes = {"prediction_type": kind} | ({} if own else {"timestep_spacing": spacing})
            hunts = "epsilon assumed" if own else "epsilon assumed, in another spacing"
            yield Row(name if own else f"{name}-{spacing}", hunts, changes=changes)


def _late(algorithm: str) -> Iterator[Row]:
    """Yield runs that begin late, as image to image does."""
    hunts = "a run that begins late steps from the wrong timestep"
    begin = {"begin_index": 6 if algorithm == "heun" else 5}  # Heun's steps have two calls each
    yield Row("late", hunts, _SOME, begin)
    for spacing in SPACINGS:
        if spacing != _own(algorithm):
            yield Row(f"late-{spacing}", hunts, _SOME, begin | {"timestep_spacing": spacing})


def _particular(algorithm: str) -> Iterator[Row]:
    """Yield what is tried with one scheduler alone, though others have the settings too."""
    if algorithm == "ddpm":
        yield Row(
            "loud-noise",
            "the deviation of the noise wrong in its fourth digit",
            changes={"begin_index": 3},
            noise_shift=8,
        )
        yield Row(
            "loud-last",
            "the least variance: the last step's noise is 1e-10 of the sample, here 1e-6",
            1,
            noise_shift=13,
        )
    if algorithm == "dpmpp_2m":
        hunts = "the order of the last step: below 15 steps the first"
        for steps in (14, 15):
            yield Row(f"sigma-min{steps}", hunts, steps, {"final_sigmas_type": "sigma_min"})


def _karras() -> Iterator[Row]:
    on = {"use_karras_sigmas": True}
    hunts = "range of Karras' sigmas baked in, their exponent, timesteps not looked up by sigma"
    for steps in (2, 3, _FEW, _SOME, 50):
        yield Row(f"karras{steps}", hunts, steps, on)
    for spacing in ("leading", "trailing"):
        yield Row(f"karras-{spacing}", hunts, changes=on | {"timestep_spacing": spacing})
    yield Row(
        "karras-velocity",
        "a velocity scaled by the sigma of the timestep, not of the step",
        changes=on | {"prediction_type": "v_prediction"},
    )
    yield Row(
        "karras-late",
        "a step looked up by its timestep, where several share one",
        _SOME,
        on | {"begin_index": 6},
    )


def _final_sigmas() -> Iterator[Row]:
    ends = {"final_sigmas_type": "sigma_min"}
    hunts = "the last step goes to a clean sample, or nowhere"
    for steps in (1, 2, _FEW, _SOME):
        yield Row(f"sigma-min{steps}", hunts, steps, ends)
    yield Row("sigma-min-karras", hunts, changes=ends | {"use_karras_sigmas": True})
    hunts = "the order of the last step"
    higher = {"lower_order_final": False}
    yield Row("second-order-final", hunts, changes=ends | higher)
    yield Row("second-order-to-zero", hunts, changes=higher)
    yield Row("euler-at-final", hunts, _SOME, ends | {"euler_at_final": True})
    yield Row("euler-at-final-to-zero", hunts, _SOME, {"euler_at_final": True})


def _runge_kutta() -> Iterator[Row]:
    warm = {"skip_prk_steps": False}
    hunts = "the four predictions of a Runge-Kutta step: their timesteps, weights and order"
    for steps in (4, _FEW, 50):
        yield Row(f"warm-up{steps}", hunts, steps, warm)
    for spacing in ("trailing", "linspace"):
        yield Row(f"warm-up-{spacing}", hunts, changes=warm | {"timestep_spacing": spacing})
    yield Row("warm-up-velocity", hunts, changes=warm | {"prediction_type": "v_prediction"})


def _etas() -> Iterator[Row]:
    half, whole = (
        "eta ignored, squared, or used without its root",
        "noise added but the direction not shortened",
    )
    for eta, hunts in ((0.5, half), (1.0, whole)):
        name = f"eta{eta:g}"
        yield Row(name, hunts, changes={"eta": eta})
        yield Row(f"{name}-steps20", hunts, _SOME, {"eta": eta})
        for spacing in ("trailing", "linspace"):
            changes = {"eta": eta, "timestep_spacing": spacing}
            yield Row(f"{name}-{spacing}", hunts, changes=changes)
    yield Row(
        "eta1-velocity",
        "epsilon of a velocity, where noise is added",
        changes={"eta": 1.0, "prediction_type": "v_prediction"},
    )


_OPTIONS: tuple[Row, ...] = (
    Row(
        "alpha-one",
        "the final alpha baked in, or set and ignored",
        changes={"set_alpha_to_one": True},
    ),
    Row(
        "alpha-one-trailing",
        "the final alpha baked in, or set and ignored",
        changes={"set_alpha_to_one": True, "timestep_spacing": "trailing"},
    ),
    *_etas(),
    Row(
        "clip",
        "x0 not clipped, or epsilon derived anew from the clipped x0",
        changes={"clip_sample": True},
    ),
    Row(
        "clip0.5",
        "the range that x0 is clipped to baked in",
        changes={"clip_sample": True, "clip_sample_range": 0.5},
    ),
    Row(
        "large",
        "the posterior's variance whatever is asked for",
        changes={"variance_type": "fixed_large"},
    ),
    Row(
        "small-log",
        "the variance taken for a deviation, or for its logarithm",
        changes={"variance_type": "fixed_small_log"},
    ),
    *_runge_kutta(),
    *_karras(),
    *_final_sigmas(),
)
"""Options that some schedulers have: each is tried with those that know all of its settings."""
