"""Honest evaluations of schedulers: lawful ways to compute the same few coefficients.

A step has one or two degrees of freedom, too few for the worst of a handful of evaluations to mean
much: so the coefficients are also moved by half ulps of float32, 16 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from conformance.adapters.diffusers_schedulers import MakeScheduler
from conformance.dispatch import Mode
from conformance.oracle import float64_scheduler
from conformance.recording.honest import HALF_ULP_RUNS, NARROW, PICTURES, SCHEDULER, Evaluation
from conformance.recording.modes import CoefficientUlp, RoundedCoefficients, TableUlp
from conformance.scenarios.schedulers import LONG
from conformance.tolerance import FLOATS, HALVES

_SINGLE = ("float32", *NARROW)

Change = Callable[[MakeScheduler], MakeScheduler]


@contextmanager
def made(change: Change, module: Any) -> Iterator[None]:
    """Let a component make its schedulers in another way, given the `module` that makes them."""
    plain = module.make
    module.make = change(plain)
    try:
        yield
    finally:
        module.make = plain


def _rounded_tables(plain: MakeScheduler) -> MakeScheduler:
    """Float64 tables, rounded to float32 once."""

    def make(algorithm: str, config: dict[str, Any]) -> Any:
        scheduler, exact = plain(algorithm, config), float64_scheduler(algorithm, config)
        for name, value in vars(exact).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(scheduler, name, value.float())
        return scheduler

    return make


def _float64_coefficients(_: MakeScheduler) -> MakeScheduler:
    """Float64 tables and coefficients; samples stay what they are."""
    return float64_scheduler


def _moved(seed: int, precision: torch.dtype, _: MakeScheduler) -> MakeScheduler:
    """Float64 tables and coefficients, each moved by up to half an ulp of a precision."""

    def make(algorithm: str, config: dict[str, Any]) -> Any:
        tables = TableUlp(seed, precision)
        with tables:
            scheduler = float64_scheduler(algorithm, config)
        for name in ("sigmas", "timesteps"):  # they went through NumPy
            table = getattr(scheduler, name, None)
            if table is not None and not bool((table == table.round()).all()):
                setattr(scheduler, name, tables.moved(table))
        moves = CoefficientUlp(seed, precision)
        _move_integrals(moves, scheduler)
        return _stepping_under(moves, scheduler)

    return make


def _move_integrals(moves: CoefficientUlp, scheduler: Any) -> None:
    """Move the coefficients of LMS, integrals of thousands of operations, once they are known."""
    plain = getattr(scheduler, "get_lms_coefficient", None)
    if plain is None:
        return

    def coefficient(*args: Any) -> float:
        with _disable_current_modes():
            exact = torch.tensor(plain(*args), dtype=torch.float64)
        return float(moves.moved(exact))

    scheduler.get_lms_coefficient = coefficient


def _rounded_coefficients(plain: MakeScheduler) -> MakeScheduler:
    """Coefficients rounded to the samples' half type before they meet them."""
    return lambda algorithm, config: _stepping_under(
        RoundedCoefficients(), plain(algorithm, config)
    )


def _stepping_under(mode: Mode, scheduler: Any) -> Any:
    """Let a scheduler scale its model inputs and take its steps under a dispatch mode."""

    def under(plain: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(plain)  # pipelines look at the signature of a step
        def method(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return plain(*args, **kwargs)

        return method

    for name in ("scale_model_input", "step"):
        setattr(scheduler, name, under(getattr(scheduler, name)))
    return scheduler


def _evaluation(
    name: str,
    change: Change,
    arithmetics: tuple[str, ...] = _SINGLE,
    components: tuple[str, ...] = (SCHEDULER,),
    most_calls: float = math.inf,
) -> Evaluation:
    return Evaluation(
        name,
        partial(made, change),
        arithmetics,
        components=components,
        at_full_size=_SINGLE,
        in_pipelines=(*FLOATS, *NARROW),  # no noise of a network stands for that of a step
        most_calls=most_calls,
    )


_FEW_DRAWS = 4


def _moves() -> Iterator[Evaluation]:
    """Yield 16 draws; 4 in float64, whose noise is float32's, scaled, where that is more.

    A run of a thousand steps is a thousand draws of its own: it is given 4.

    A pipeline, whose networks are noisier by far, is given the first two.
    """
    for precision, arithmetics, draws in (
        (torch.float32, _SINGLE, HALF_ULP_RUNS),
        (torch.float64, ("float64",), _FEW_DRAWS),
    ):
        for seed in range(draws):
            components = (SCHEDULER, PICTURES) if seed < 2 else (SCHEDULER,)  # noqa: PLR2004
            change = partial(_moved, seed, precision)
            name = f"coefficients moved by half ulps ({seed})"
            most_calls = math.inf if seed < _FEW_DRAWS else LONG
            yield _evaluation(name, change, arithmetics, components, most_calls)


SAMPLING_CALIBRATION = (
    Evaluation("as it is", lambda _: nullcontext(), components=(SCHEDULER,)),
    _evaluation("float64 tables rounded to float32", _rounded_tables),
    _evaluation("float64 coefficients", _float64_coefficients, components=(SCHEDULER, PICTURES)),
    _evaluation("coefficients rounded to the half type", _rounded_coefficients, HALVES),
    *_moves(),
)
"""The evaluations of schedulers; some of them for pipelines, besides those of their networks."""
