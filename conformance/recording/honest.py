"""Honest evaluations: lawful ways to compute the same network in one arithmetic.

The worst of the *calibration* evaluations is the noise, the suite's unit of error. The *held-out*
evaluations never enter it; they show that the unit is fair to implementations it has not seen.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.case import Case
from conformance.determinism import thread_count
from conformance.oracle import plain_attention
from conformance.recording.modes import (
    Float32Sums,
    HalfUlp,
    MovedProducts,
    OnePass,
    Summation,
    blocked_matmul,
    blocked_total,
    sequential_matmul,
    sequential_total,
)
from conformance.tolerance import FLOATS, HALVES, OTHER_ARITHMETICS, POLICIES

Around = Callable[[nn.Module], AbstractContextManager[Any]]

NARROW = (*HALVES, *POLICIES)
"""Those that round what a sum makes: within it float32 is the contract."""

WIDE = (*FLOATS, *OTHER_ARITHMETICS)
"""Those that keep what a sum makes."""

EVERY = (*WIDE, *NARROW)

IMAGES = ("unet", "vae_encoder", "vae_decoder", "block")
TEXT = "text_encoder"
PICTURES = "pipeline"
SCHEDULER = "scheduler"
"""All of them; as there are all pipelines, and all blocks in `IMAGES`."""


@dataclass(frozen=True)
class Evaluation:
    """One way to evaluate the unmodified reference modules.

    Attributes:
        name: Short name, as in `docs/tolerance.md`.
        around: Makes the context in which the forward pass runs, given the network.
        arithmetics: Those for which it is honest.
        split: Evaluate the samples of a batch one by one.
        components: Networks for which it is another way at all.
        at_full_size: Those in which the 860M model is evaluated so too. A CPU without
            half-precision units takes minutes for what it does in seconds under `float32 sums`,
            and sequential float64 sums are stood for by float32's, scaled.
        in_pipelines: Those in which a whole pipeline is evaluated so too. In float64 one evaluation
            of its networks is enough: their noise is float32's, scaled.
        most_calls: Cases that ask the model more often are not evaluated so too.
    """

    name: str
    around: Around
    arithmetics: tuple[str, ...] = EVERY
    split: bool = False
    components: tuple[str, ...] = (*IMAGES, TEXT, PICTURES)
    at_full_size: tuple[str, ...] = (*FLOATS, *HALVES)
    in_pipelines: tuple[str, ...] = ("float32", *NARROW)
    most_calls: float = math.inf

    def applies(self, case: Case, arithmetic: str) -> bool:
        """Say whether this is another way to compute a case in an arithmetic, and affordable."""
        offered = set(self.arithmetics) if case.scenario.calls <= self.most_calls else set()
        if case.is_pipeline:
            offered &= set(self.in_pipelines)
        if case.full_size:
            offered &= set(self.at_full_size)
        return arithmetic in offered and case.component.partition("/")[0] in self.components


@contextmanager
def _channels_last(module: nn.Module) -> Iterator[None]:
    module.to(memory_format=torch.channels_last)

    def to_channels_last(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or args[0].dim() != _IMAGE_AXES:
            return args
        return (args[0].contiguous(memory_format=torch.channels_last), *args[1:])

    # The VAE's own forward is bypassed by encode and decode: its children see the images. Those of
    # a pipeline are one level further down.
    watched = [module, *module.children(), *(m for c in module.children() for m in c.children())]
    handles = [part.register_forward_pre_hook(to_channels_last) for part in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        module.to(memory_format=torch.contiguous_format)


_IMAGE_AXES = 4


@contextmanager
def summed_in_order(module: nn.Module, mode: type[Summation] = Summation) -> Iterator[None]:
    """Run every long sum that a mode replaces as one naive running sum."""
    with plain_attention(module), mode(sequential_matmul, sequential_total):
        yield


@contextmanager
def summed_in_blocks(
    module: nn.Module, seed: int, mode: type[Summation] = Summation
) -> Iterator[None]:
    """Run every long sum that a mode replaces in blocks of random length."""
    generator = np.random.default_rng(seed)
    with plain_attention(module), mode(blocked_matmul(generator), blocked_total(generator)):
        yield


def _float32_sums(around: Around) -> Around:
    @contextmanager
    def both(module: nn.Module) -> Iterator[None]:
        with around(module), Float32Sums():
            yield

    return both


@contextmanager
def _half_ulp(module: nn.Module, seed: int) -> Iterator[None]:
    """Run `time_proj` under `HalfUlp`."""
    mode = HalfUlp(seed)
    time_proj = time_proj_of(module)
    plain = time_proj.forward

    def moved(timesteps: Tensor) -> Tensor:
        with mode:
            return plain(timesteps)

    time_proj.forward = moved
    try:
        yield
    finally:
        time_proj.forward = plain


def time_proj_of(module: Any) -> Any:
    """Return the timestep embedding of a UNet, or of a pipeline's; None where there is none."""
    return getattr(getattr(module, "unet", module), "time_proj", None)


HALF_ULP_RUNS = 16


def _moved_products(seed: int) -> Evaluation:
    name = f"products moved by half ulps ({seed})"
    return Evaluation(name, lambda _: MovedProducts(seed), OTHER_ARITHMETICS)


MOVED_PRODUCTS = tuple(map(_moved_products, range(8)))
"""Draws of what another order of sums makes: where it turns the rounding of an operand over, the
difference is one of that rounding, and a few outliers may decide an output."""

CALIBRATION: tuple[Evaluation, ...] = (
    Evaluation(
        "two threads",
        lambda _: thread_count(2),
        at_full_size=FLOATS,
        in_pipelines=(*FLOATS, *NARROW),
    ),
    Evaluation("one thread", lambda _: thread_count(1), FLOATS, at_full_size=FLOATS),
    Evaluation(
        "channels last", _channels_last, components=(*IMAGES, PICTURES), at_full_size=FLOATS
    ),
    Evaluation("plain attention", plain_attention, at_full_size=FLOATS),
    Evaluation("batch split", lambda _: nullcontext(), split=True, at_full_size=FLOATS),
    Evaluation(
        "sequential sums",
        summed_in_order,
        FLOATS,
        at_full_size=("float32",),
    ),
    Evaluation("one-pass variance", lambda _: OnePass(), FLOATS, components=(TEXT, PICTURES)),
    Evaluation("float32 sums", lambda _: Float32Sums(), NARROW),
    Evaluation("float32 sums, plain attention", _float32_sums(plain_attention), NARROW),
    Evaluation(
        "float32 sums, channels last",
        _float32_sums(_channels_last),
        NARROW,
        components=(*IMAGES, PICTURES),
    ),
    Evaluation("float32 sums, batch split", lambda _: Float32Sums(), NARROW, split=True),
    *MOVED_PRODUCTS,
)


@contextmanager
def _without_onednn(_: nn.Module) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # of no GPU here
        with torch.backends.mkldnn.flags(enabled=False):
            yield


HELD_OUT: tuple[Evaluation, ...] = (
    Evaluation("oneDNN off", _without_onednn),
    Evaluation("random blocked sums 1", lambda m: summed_in_blocks(m, 1), WIDE),
    Evaluation("random blocked sums 2", lambda m: summed_in_blocks(m, 2), WIDE),
)


def half_ulp_evaluation(seed: int) -> Evaluation:
    """Return the evaluation whose timestep embedding is moved by half ulps, from that seed."""
    return Evaluation(
        f"embedding moved by half ulps ({seed})", lambda m: _half_ulp(m, seed), ("float32",)
    )
