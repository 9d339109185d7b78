"""Does every weight matter? In a dead parameter or kernel tap bugs sleep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from conformance import oracle
from conformance.case import Case

DEAD = 1e-9
"""A gradient under this share of the median moves no output."""


def dead_parameters(cases: list[Case], say: Callable[[str], None]) -> list[str]:
    """Find weights that no case of a component and variant can see.

    The gradient of a random projection of the output is taken for every element of every
    parameter, in case after case, until each has moved the output in one of them.

    Args:
        cases: Cases of one component and variant.
        say: Told each case.

    Returns:
        One line per parameter with dead elements; empty where all are alive.
    """
    first = cases[0]
    dtype = torch.float32 if first.full_size else torch.float64
    weights = first.variant.weights(first.component)
    component = oracle.BUILDERS[first.component](first.variant, weights, dtype)
    module = component.module.requires_grad_(requires_grad=True)
    parameters = dict(module.named_parameters())
    sleeping = dict.fromkeys(parameters, "")
    strongest: dict[str, Tensor] = {}
    for case in cases:
        generator = torch.Generator().manual_seed(0)
        outputs = component.call(module, component.tensors(case.inputs()))
        projection = sum(
            (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)).sum()
            for out in outputs.values()
        )
        gradients = torch.autograd.grad(projection, [parameters[name] for name in sleeping])
        for name, gradient in zip(list(sleeping), gradients, strict=True):
            size = gradient.abs()
            strongest[name] = torch.maximum(strongest[name], size) if name in strongest else size
        del gradients
        typical = torch.stack([g.median() for g in strongest.values()]).median()
        for name in list(sleeping):
            threshold = DEAD * max(float(strongest[name].median()), DEAD * float(typical))
            dead = int((strongest[name] <= threshold).sum())
            if dead:
                sleeping[name] = f"{name}: {dead} of {strongest[name].numel()} elements are dead"
            else:
                del sleeping[name]
                strongest[name] = strongest[name].median().reshape(1)
        say(f"{case.id}: {len(sleeping)} of {len(parameters)} parameters still without effect")
        if not sleeping:
            break
    return [f"{first.component}/{first.variant.name}: {line}" for line in sleeping.values()]
