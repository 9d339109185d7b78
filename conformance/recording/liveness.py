"""Does every weight matter? In a dead parameter or kernel tap bugs sleep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from conformance import oracle
from conformance.adapters.torch_component import TorchComponent
from conformance.case import Case

DEAD = 1e-9
"""A gradient under this share of the median moves no output."""

STRUCTURALLY_ZERO = re.compile(r".*\.(k_proj|to_k)\.bias")
"""Key biases: they add the same to every score of a query, which softmax takes away again."""

TOKEN_EMBEDDING = "token_embedding.weight"  # noqa: S105 - CLIP's tokens
"""Of its 49,408 rows only those of the ids in use can move anything."""

Say = Callable[[str], None]


def dead_parameters(cases: list[Case], say: Say) -> list[str]:
    """Find weights that no case of a component and variant can see.

    The gradient of a random projection of the output is taken for every element of every
    parameter, in case after case, until each has moved the output in one of them.

    Args:
        cases: Cases of one network and variant.
        say: Told each case.

    Returns:
        One line per parameter with dead elements, or that is said to be structurally zero and is
        not; empty where all is well.
    """
    first = cases[0]
    dtype = torch.float32 if first.full_size else torch.float64
    weights = first.variant.weights(first.component)
    component = oracle.network(first.component, first.variant, weights, dtype)
    module = component.module.requires_grad_(requires_grad=True)
    parameters = dict(module.named_parameters())
    sleeping = dict.fromkeys(parameters, "")
    strongest: dict[str, Tensor] = {}
    for case in cases:
        watched = {name: parameters[name] for name in sleeping}
        for name, size in _gradient_sizes(component, case, watched):
            strongest[name] = torch.maximum(strongest[name], size) if name in strongest else size
        typical = float(torch.stack([g.median() for g in strongest.values()]).median())
        for name in list(sleeping):
            sleeping[name] = _complaint(name, strongest[name], typical, cases, dtype)
            if not sleeping[name]:
                del sleeping[name]
                strongest[name] = strongest[name].median().reshape(1)
        say(f"{case.id}: {len(sleeping)} of {len(parameters)} parameters still without effect")
        if not sleeping:
            break
    return [f"{first.component}/{first.variant.name}: {line}" for line in sleeping.values()]


def _gradient_sizes(
    component: TorchComponent, case: Case, parameters: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the magnitudes of the gradients of a random projection of a case's outputs."""
    generator = torch.Generator().manual_seed(0)
    outputs = component.call(component.module, component.tensors(case.inputs()))
    projection = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)).sum()
        for out in outputs.values()
    )
    gradients = torch.autograd.grad(projection, list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        yield name, gradient.abs()


def _complaint(
    name: str, strongest: Tensor, typical: float, cases: list[Case], dtype: torch.dtype
) -> str:
    """Say what is wrong with a parameter's gradients, or nothing."""
    if STRUCTURALLY_ZERO.fullmatch(name):
        alive = dtype is torch.float64 and float(strongest.max()) > DEAD * typical
        return f"{name}: listed as structurally zero, but it moves the output" if alive else ""
    if name.endswith(TOKEN_EMBEDDING):
        strongest = strongest[_ids_in_use(cases)]
    median = float(strongest.median())
    threshold = DEAD * max(median, DEAD * typical)
    if dtype is torch.float64 and median <= DEAD * typical:
        threshold = DEAD * typical  # at least half of it moves nothing but the last digits
    dead = int((strongest <= threshold).sum())
    return f"{name}: {dead} of {strongest.numel()} elements are dead" if dead else ""


def _ids_in_use(cases: list[Case]) -> Tensor:
    """Return the token ids that any case reads."""
    ids = [torch.tensor(case.inputs()["input_ids"]).reshape(-1) for case in cases]
    return torch.cat(ids).unique()
