"""Null mutants of mixed arithmetics: other lawful roundings of the same operands."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance import operands
from conformance.mutants.mutant import Mutant, NotRun, replaced
from conformance.mutants.unet_tools import other_attention
from conformance.mutants.unet_tools import replaced as replaced_layers

AUTOCAST = "policy:autocast"


def _scaled_first(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scale queries before the product, which rounds other numbers."""
    weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1)
    return weights @ value


def _ties_away(tensor: Tensor, bits: int) -> Tensor:
    """Round to fraction bits, ties away from zero, as the instruction of NVIDIA's GPUs does."""
    mantissa, exponent = torch.frexp(tensor)
    scaled = mantissa * 2 ** (bits + 1)
    return torch.ldexp(torch.trunc(scaled + 0.5 * scaled.sign()), exponent - (bits + 1))


def _wide_norm(norm: Any, hidden: Tensor) -> Tensor:
    """A norm that hands on float32, as autocast has it on CUDA."""
    wide = hidden.float()
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(wide, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _wide_norms(module: Any) -> None:
    for kind in (nn.GroupNorm, nn.LayerNorm):
        replaced_layers(kind, _wide_norm)(module)


_null = partial(
    Mutant,
    component="unet",
    cases=("tiny/base", "tiny-sharp/base", "odd/base"),
    evidence="null",
    size="none",
)

MUTANTS: tuple[Mutant, ...] = (
    _null(
        id="null-tf32-ties-away",
        wrong="Nothing: operands are rounded with ties away from zero",
        dtype="tf32",
        patch=replaced(operands, "rounded_to", _ties_away),
    ),
    _null(
        id="null-tf32-scaled-queries",
        wrong="Nothing: queries are scaled before the product",
        dtype="tf32",
        module=other_attention(_scaled_first),
    ),
    _null(
        id="null-autocast-wide-norms",
        wrong="Nothing: norms hand on float32, as autocast has it on CUDA",
        cases=("tiny/base", "odd/base"),
        dtype=AUTOCAST,
        module=_wide_norms,
    ),
)

NOT_RUN: tuple[NotRun, ...] = ()
