"""Honest evaluations of training: those of the networks, forwards and backwards.

What a schedule contributes is a coefficient or two of each sample: so its tables are moved by half
ulps too, 16 times, and the two worst draws are carried through the network. A loss is one number,
and many gradients are small: so the results of all layers are moved by half ulps as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from conformance.adapters.diffusers_schedulers import MakeScheduler
from conformance.case import Case
from conformance.oracle import float64_scheduler
from conformance.recording.honest import (
    CALIBRATION,
    HELD_OUT,
    Around,
    Evaluation,
    summed_in_blocks,
    summed_in_order,
)
from conformance.recording.honest_sampling import made
from conformance.recording.modes import MovedProducts, TableUlp
from conformance.recording.modes_training import TrainingSummation
from conformance.tolerance import FLOATS
from conformance.training import scale_name

COMPONENTS = ("training",)


_IN_DOUBLE = ("plain attention", "batch split", "oneDNN off")
"""Evaluations in double precision too, where noise is that of single, scaled."""

_SUMS: dict[str, Around] = {
    "sequential sums": partial(summed_in_order, mode=TrainingSummation),
    "random blocked sums 1": partial(summed_in_blocks, seed=1, mode=TrainingSummation),
    "random blocked sums 2": partial(summed_in_blocks, seed=2, mode=TrainingSummation),
}


def _of_training(evaluations: tuple[Evaluation, ...]) -> Iterator[Evaluation]:
    """Yield evaluations of networks for training: in single and double precision."""
    for evaluation in evaluations:
        single = evaluation.name not in _IN_DOUBLE
        arithmetics = tuple(a for a in evaluation.arithmetics if a in FLOATS[single:])
        if arithmetics and evaluation.name != "one thread":
            around = _SUMS.get(evaluation.name, evaluation.around)
            yield replace(evaluation, around=around, arithmetics=arithmetics, components=COMPONENTS)


def _moved(seed: int, precision: torch.dtype, _: MakeScheduler) -> MakeScheduler:
    """Float64 tables, each entry moved by half ulps of a precision where it is computed."""

    def make(algorithm: str, config: dict[str, Any]) -> Any:
        with TableUlp(seed, precision):
            return float64_scheduler(algorithm, config)

    return make


def schedule_evaluation(seed: int) -> Evaluation:
    """Return the evaluation whose noise schedule is moved by half ulps, from that seed."""
    around = partial(made, partial(_moved, seed, torch.float32))
    return _single(f"schedule moved by half ulps ({seed})", around)


def _single(name: str, around: Around) -> Evaluation:
    """Return a way to train in single precision; the noise of double is that, scaled."""
    return Evaluation(name, around, ("float32",), components=COMPONENTS)


def noised(component: Any, case: Case) -> Tensor:
    """Return the noisy latents of a case, float64, without asking the network."""
    tensors = component.tensors(case.inputs())
    scheduler = component.module.make("ddpm", tensors["config"] | {"num_inference_steps": 1})
    noisy: Tensor = scheduler.add_noise(tensors["latents"], tensors["noise"], tensors["timesteps"])
    return noisy.double()


@contextmanager
def _layers_moved(_: nn.Module, seed: int) -> Iterator[None]:
    with MovedProducts(seed):
        yield


_DRAWS = 4


def pooled(probes: dict[str, float]) -> dict[str, float]:
    """Give gradients of few elements the worst noise of those alike.

    A bias, or a norm's weight, has one gradient a channel, too few to take a worst of: it is given
    the worst of all layers of its kind. What is zero by structure is judged by its query's.

    Args:
        probes: Noise by probe.
    """
    worst: dict[str, float] = {}
    for name, noise in probes.items():
        kind = _kind(name)
        worst[kind] = max(worst.get(kind, 0.0), noise)
    return {name: max(worst[_kind(name)], worst[_kind(scale_name(name))]) for name in probes}


def _kind(name: str) -> str:
    """Return what layers alike share: the name without numbers; a matrix is alone."""
    return re.sub(r"\d+", "*", name) if _VECTOR.search(name) else name


_VECTOR = re.compile(r"^grad\..*(bias|norm\w*\.weight)$")

TRAINING_CALIBRATION = (
    *_of_training(CALIBRATION),
    _single("float64 tables", partial(made, lambda _: float64_scheduler)),
    *(
        _single(f"layers moved by half ulps ({seed})", partial(_layers_moved, seed=seed))
        for seed in range(_DRAWS)
    ),
)
TRAINING_HELD_OUT = tuple(_of_training(HELD_OUT))
