"""Which evaluations are the noise of a case: those that apply, and the worst of some draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from conformance import oracle
from conformance.case import Case
from conformance.oracle import Component
from conformance.recording.honest import (
    CALIBRATION,
    HALF_ULP_RUNS,
    MOVED_PRODUCTS,
    Evaluation,
    half_ulp_evaluation,
    time_proj_of,
)
from conformance.recording.honest_sampling import SAMPLING_CALIBRATION
from conformance.recording.honest_training import (
    TRAINING_CALIBRATION,
    noised,
    schedule_evaluation,
)
from conformance.recording.noise import batch_size, steps_first
from conformance.sampling import first_timestep, read_config, steps_left_out
from conformance.tolerance import OTHER_ARITHMETICS

_CARRIED = 2
"""So many of the draws, the worst, are carried through the network."""


def calibrations(
    component: Component, case: Case, arithmetic: str, *, splice: bool = False
) -> list[Evaluation]:
    """Return the calibration evaluations of a case in an arithmetic.

    In splice mode operands are the oracle's: no order of sums turns their rounding over.

    The timestep embedding is drawn 16 times with half-ulp moves; the two draws that are furthest
    from the truth are carried through the network. Of a pipeline's many timesteps the first, the
    largest, decides: its embedding is the noisiest.
    """
    chosen = _applying(case, arithmetic, splice=splice)
    if _embeds(component, arithmetic):
        chosen += _worst_half_ulps(component, case)
        if case.is_training:
            chosen += _worst_schedules(component, case)
    return chosen


def calibration_count(
    component: Component, case: Case, arithmetic: str, *, splice: bool = False
) -> int:
    """Return how many `calibrations` there are, whatever arithmetic the component is built in."""
    drawn = _CARRIED * (1 + case.is_training) if _embeds(component, arithmetic) else 0
    return len(_applying(case, arithmetic, splice=splice)) + drawn


def _applying(case: Case, arithmetic: str, *, splice: bool) -> list[Evaluation]:
    """Return the evaluations that are no worst of some draws."""
    known = (*CALIBRATION, *SAMPLING_CALIBRATION, *TRAINING_CALIBRATION)
    chosen = [e for e in known if e.applies(case, arithmetic)]
    if not _can_be_split(case):
        chosen = [e for e in chosen if not e.split]
    return [e for e in chosen if e not in MOVED_PRODUCTS] if splice else chosen


def _embeds(component: Component, arithmetic: str) -> bool:
    """Say whether draws of the timestep embedding are evaluations too."""
    moved = arithmetic in {"float32", *OTHER_ARITHMETICS}
    return moved and time_proj_of(component.module) is not None


def _can_be_split(case: Case) -> bool:
    """Say whether there are several samples, each with its own rows of every input."""
    inputs = case.inputs()
    rows = {
        array.shape[1 if name in steps_first(case) else 0]
        for name, array in inputs.items()
        if array.ndim
    }
    return len(rows) == 1 and rows != {1}


def _worst_half_ulps(component: Component, case: Case) -> list[Evaluation]:
    draws = _embedding_errors(component, case)
    order = sorted(range(HALF_ULP_RUNS), key=lambda i: -float(draws[i].norm()))
    return [half_ulp_evaluation(seed) for seed in order[:_CARRIED]]


def _worst_schedules(component: Component, case: Case) -> list[Evaluation]:
    """Return the two draws of the noise schedule that move noisy latents the furthest."""
    plain = noised(component, case)
    errors = []
    for seed in range(HALF_ULP_RUNS):
        with schedule_evaluation(seed).around(component.module):
            errors.append(float((noised(component, case) - plain).norm()))
    order = sorted(range(HALF_ULP_RUNS), key=lambda i: -errors[i])
    return [schedule_evaluation(seed) for seed in order[:_CARRIED]]


def _embedding_errors(component: Component, case: Case) -> list[Tensor]:
    """Return the error of each draw of the timestep embedding, float64 (timesteps, width)."""
    inputs = case.inputs()
    first = _first_timestep(inputs) if case.is_pipeline else None
    own = inputs["timesteps" if case.is_training else "timestep"] if first is None else first
    timestep = torch.tensor(own).reshape(-1)
    time_proj = time_proj_of(component.module)
    exact = oracle.float64_time_proj(time_proj)(timestep.double())
    errors = []
    for seed in range(HALF_ULP_RUNS):
        with half_ulp_evaluation(seed).around(component.module), torch.no_grad():
            errors.append(time_proj(timestep).double() - exact)
    return errors


def _first_timestep(inputs: dict[str, np.ndarray]) -> float:
    """Return the first timestep of a pipeline's run."""
    config = read_config(inputs["config"])
    algorithm, steps = config["scheduler"], config["num_inference_steps"]
    strength = float(inputs.get("strength", 1))
    late = {"begin_index": steps_left_out(algorithm, steps, strength)}
    return first_timestep(algorithm, config | late)


_FREQUENCIES_ALIKE = 2


def embedding_noise(component: Component, case: Case) -> np.ndarray:
    """Return the float32 noise of each entry of a UNet case's timestep embedding.

    Args:
        component: The unmodified reference in float32.
        case: A case of the UNet.

    Returns:
        Absolute, (batch, width): the worst of 16 draws with half-ulp moves, and of the two
        neighbouring frequencies on either side.
    """
    draws = torch.stack(_embedding_errors(component, case)).abs().amax(0)
    halves = draws.reshape(len(draws), 2, -1).numpy()  # cosines, sines
    window = 2 * _FREQUENCIES_ALIKE + 1
    padded = np.pad(halves, [(0, 0), (0, 0), (_FREQUENCIES_ALIKE,) * 2], mode="edge")
    worst = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1).max(axis=-1)
    return np.broadcast_to(
        worst.reshape(len(draws), -1), (batch_size(case.inputs()), draws.shape[1])
    )
