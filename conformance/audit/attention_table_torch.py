"""An attention alone against float64: by regime, head size and length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.attention_modes import attend, upcast
from conformance.adapters.torch_module import DTYPES
from conformance.audit.attention_torch import Function, answer
from conformance.errors import PortError
from conformance.tolerance import floor, verdict

SIZES, LENGTHS = (40, 80, 160), (77, 64, 256, 1024, 4096)
REGIMES = ("unit", "sharp", "outlier")
_QUERIES, _HEADS, _TEXT_SIZE, _TEXT = 256, 2, 64, 77
_SHARPEST = 120.0
"""Largest logit in `sharp`: float32's exp overflows past 88."""


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        regime: Of the inputs.
        size: Head size.
        length: Keys.
        causal: Whether later keys are hidden, as in the text encoder.
        err: Relative L2 error against float64; None where there is no answer.
        sdpa: The same of torch's own attention.
        noise: The worse of that and the upcast attention's, which the goldens count as honest too.
        ratio: `err` over noise.
        verdict: By the limit; `fail` where there is no answer.
        message: Why there is none.
    """

    regime: str
    size: int
    length: int
    causal: bool
    err: float | None
    sdpa: float
    noise: float
    ratio: float | None
    verdict: str
    message: str = ""


def drawn(regime: str, size: int, length: int, *, causal: bool, device: str) -> list[Tensor]:
    """Draw query, key and value, float64 (1, heads, N, size).

    Args:
        regime: `unit`: deviation 1; `sharp`: the largest logit is 120; `outlier`: two channels of
            key and value are 64 times as large.
        size: Head size.
        length: Keys.
        causal: As many queries as keys; otherwise 256.
        device: Where they go.
    """
    generator = np.random.Generator(np.random.Philox([size, length]))
    shapes = [length if causal else _QUERIES, length, length]
    query, key, value = (
        torch.from_numpy(generator.standard_normal((1, _HEADS, n, size))) for n in shapes
    )
    if regime == "outlier":
        channels = [3, size // 2 + 1]
        key[..., channels] *= 2.0**6
        value[..., channels] *= 2.0**6
    if regime == "sharp":
        logits = query @ key.transpose(-2, -1) * size**-0.5
        query *= _SHARPEST / float(logits.abs().max())
    return [tensor.to(device) for tensor in (query, key, value)]


def table(function: Function, arithmetic: str, device: str) -> Iterator[Cell]:
    """Measure an attention alone, over head sizes, lengths and regimes.

    Args:
        function: The user's.
        arithmetic: A dtype.
        device: Where.
    """
    places = [(size, length, False) for size in SIZES for length in LENGTHS]
    for regime in REGIMES:
        for size, length, causal in [*places, (_TEXT_SIZE, _TEXT, True)]:
            exact = drawn(regime, size, length, causal=causal, device=device)
            given = [tensor.to(DTYPES[arithmetic]) for tensor in exact]
            yield _cell(function, given, regime, length, causal=causal, arithmetic=arithmetic)


def _cell(
    function: Function,
    given: list[Tensor],
    regime: str,
    length: int,
    *,
    causal: bool,
    arithmetic: str,
) -> Cell:
    query, key, value = given
    size = query.shape[-1]
    truth = attend(upcast, query.double(), key.double(), value.double(), is_causal=causal)
    own = _error(F.scaled_dot_product_attention(query, key, value, is_causal=causal), truth)
    other = _error(attend(upcast, query, key, value, is_causal=causal), truth)
    noise = max(own, other, floor(arithmetic))
    make = partial(Cell, regime, size, length, causal)
    try:
        err = _error(answer(function, query, key, value, causal=causal), truth)
    except PortError as error:
        return make(None, own, noise, None, "fail", str(error))
    ratio = err / noise
    return make(err, own, noise, ratio, verdict(ratio))


def _error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())
