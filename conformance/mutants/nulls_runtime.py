"""Null mutants of the stability modes: lawful, and alike whenever and wherever they run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conformance.golden import TRACE
from conformance.mutants.mutant import Mutant, NotRun
from conformance.mutants.runtime import BATCH, REPEAT, STATE, THREADS, apart
from conformance.mutants.unet_tools import replaced


def _samples_one_by_one(layer: nn.Conv2d, hidden: Tensor) -> Tensor:
    return torch.cat([nn.Conv2d.forward(layer, sample) for sample in hidden.split(1)])


def _channels_last(module: nn.Module) -> None:
    last = torch.channels_last
    module.to(memory_format=last)
    module.register_forward_pre_hook(lambda _, args: (args[0].to(memory_format=last), *args[1:]))


_WAYS = (
    (
        "another-order",
        "channels of a convolution are added up in two halves, in every call alike",
        replaced(nn.Conv2d, lambda layer, hidden: apart(layer, hidden, layer.in_channels // 2)),
    ),
    (
        "samples-apart",
        "convolutions are given one sample after the other",
        replaced(nn.Conv2d, _samples_one_by_one),
    ),
    ("channels-last", "weights and maps have their channels last", _channels_last),
)

MUTANTS: tuple[Mutant, ...] = tuple(
    Mutant(
        id=f"null-rt-{name}",
        component="unet",
        wrong=f"Nothing: {way}",
        evidence="null",
        size="none",
        cases=("tiny/base",),
        module=module,
        modes=(TRACE, REPEAT, STATE, THREADS, BATCH),
    )
    for name, way, module in _WAYS
)
"""Not asked of new processes: what a network does alike here it does alike there."""

NOT_RUN: tuple[NotRun, ...] = ()
