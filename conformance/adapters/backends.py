"""Backends: other ways to evaluate the same network, which change nothing but rounding.

A component is built as ever and then made to compute in one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from conformance.adapters.attention_modes import AttentionCalls, plain, sliced
from conformance.errors import UnsupportedError
from conformance.execution import BACKENDS, SDPA
from conformance.port import Arrays, Component
from conformance.tolerance import OTHER_ARITHMETICS

_, FLASH, EFFICIENT, MATH, PLAIN, SLICED, CHANNELS_LAST, PACKED, COMPILE = BACKENDS

Switch = Callable[[nn.Module, str], int]
"""Lets the attentions of a network be `plain` or `sliced`; returns how many it changed."""

_KERNELS = {
    FLASH: SDPBackend.FLASH_ATTENTION,
    EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    MATH: SDPBackend.MATH,
}
_STAND_INS = {PLAIN: plain, SLICED: sliced}
_NO_KERNEL = "No viable backend"
"""How torch begins to say so."""

_NO_COMPILER = "InvalidCxxCompiler"
"""torch's error of that name; importing it costs every run a second."""

_IMAGE_AXES = 4


def backends_here() -> tuple[str, ...]:
    """Return the backends that torch has on this machine: the efficient kernel is CUDA's alone."""
    others = {PACKED} if torch.cuda.is_available() else {EFFICIENT, PACKED}
    return tuple(name for name in BACKENDS if name not in others)


def require_compilable(arithmetic: str, device: str, backend: str) -> None:
    """Check that a backend can evaluate in an arithmetic.

    Raises:
        UnsupportedError: To be compiled is what a CPU imitates operation by operation.
    """
    if backend == COMPILE and arithmetic in OTHER_ARITHMETICS and device == "cpu":
        message = f"{arithmetic} is imitated on a CPU, operation by operation: nothing to compile"
        raise UnsupportedError(message)


def evaluating_by(backend: str, component: Any, switch: Switch | None = None) -> Any:
    """Make a component compute by a backend.

    Args:
        backend: One of `BACKENDS`.
        component: A `TorchComponent` or `PipelineComponent`, before `computing_in` changes it.
        switch: The network's own way to `plain` and `sliced` attention; None for torch's kernel
            to be replaced from outside.

    Returns:
        The component itself, changed.

    Raises:
        UnsupportedError: The backend is another way to compute nothing in it.
    """
    if backend == SDPA:
        return component
    if not (hasattr(component, "call") or _is_pipeline(component)):
        message = f"a {type(component).__name__} is evaluated in one way: no backend {backend}"
        raise UnsupportedError(message)
    if backend in _KERNELS:
        _wrap(component, _kernel(backend))
    elif backend in _STAND_INS and switch is not None:
        parts = component.module.children() if _is_pipeline(component) else [component.module]
        if not sum(switch(part, backend) for part in parts):
            message = f"there is no attention that could be {backend}"
            raise UnsupportedError(message)
    elif backend in _STAND_INS:
        _wrap(component, lambda: AttentionCalls(_STAND_INS[backend]))
    elif backend == CHANNELS_LAST:
        _to_channels_last(component)
    elif backend == COMPILE:
        _compile(component)
    else:
        message = f"no backend {backend}"
        raise UnsupportedError(message)
    return component


def _is_pipeline(component: Any) -> bool:
    return hasattr(component, "draw")


def _entrance(component: Any) -> str:
    """Name the attribute that holds the function by which a component computes."""
    return "draw" if _is_pipeline(component) else "call"


def _wrap(component: Any, around: Callable[[], Any]) -> None:
    """Let a component compute in a context."""
    name = _entrance(component)
    function = getattr(component, name)

    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with around():
            return function(*args, **kwargs)

    setattr(component, name, inside)


def _kernel(backend: str) -> Callable[[], Any]:
    """Return what allows torch one attention kernel only."""

    @contextmanager
    def only() -> Iterator[None]:
        try:
            with AttentionCalls(), sdpa_kernel(_KERNELS[backend]):
                yield
        except RuntimeError as error:
            if not str(error).startswith(_NO_KERNEL):
                raise
            message = f"torch has no {backend} attention for this device, dtype and shape"
            raise UnsupportedError(message) from error

    return only


def _to_channels_last(component: Any) -> None:
    """Lay out weights and maps with the channels innermost."""
    if all(weight.dim() != _IMAGE_AXES for weight in component.module.parameters()):
        message = "there is no convolution: channels last is another layout of nothing"
        raise UnsupportedError(message)
    component.module.to(memory_format=torch.channels_last)
    name = _entrance(component)
    function = getattr(component, name)
    place = 0 if _is_pipeline(component) else 1

    @wraps(function)
    def inside(*args: Any) -> Any:
        given = {key: _laid_out(value) for key, value in args[place].items()}
        return function(*args[:place], given, *args[place + 1 :])

    setattr(component, name, inside)


def _laid_out(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == _IMAGE_AXES and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _compile(component: Any) -> None:
    """Compile a network, or those of a pipeline, for the shapes that come."""
    torch.compiler.reset()  # after a few networks it would go on without compiling, and say nothing
    if not _is_pipeline(component):
        component.call = torch.compile(component.call, dynamic=False)
        return
    for network in component.module.children():
        # Encoding and decoding go by the forward pass of the halves alone.
        halves = [half for name, half in network.named_children() if name in {"encoder", "decoder"}]
        for part in halves or [network]:
            part.compile(dynamic=False)


@dataclass(frozen=True)
class Compiled:
    """A compiled component: one piece, into which no hook looks."""

    component: Component

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),  # noqa: ARG002 - it has none
        replace: Mapping[str, np.ndarray] | None = None,  # noqa: ARG002
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`.

        Raises:
            UnsupportedError: torch finds no C++ compiler.
        """
        try:
            return self.component.run(inputs)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and type(cause).__name__ != _NO_COMPILER:
                cause = getattr(cause, "inner_exception", None) or cause.__cause__
            if cause is None:
                raise
            message = "torch.compile needs a C++ compiler, and finds none ($CXX)"
            raise UnsupportedError(message) from error
