"""What the comparisons of the networks with their references share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn


@contextmanager
def _calls(model: nn.Module) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    record: list[tuple[str, Tensor, Tensor]] = []

    def hook(path: str) -> Callable:
        def note(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            out = output if isinstance(output, Tensor) else output[0]
            record.append((path, first.clone(), out.clone()))

        return note

    handles = [
        module.register_forward_hook(hook(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path and (path == "time_proj" or any(True for _ in module.parameters()))
    ]
    yield record
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="session")
def calls() -> Callable:
    """Collect (path, first input, first output) of modules with parameters and `time_proj`."""
    return _calls


@pytest.fixture(scope="session")
def randomise() -> Callable:
    """Move every parameter of a model at random, far enough to matter everywhere."""

    def move(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise.to(parameter.dtype))
        return model

    return move
