"""An attention of the user's own: loaded, called with care, put in the place of torch's."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conformance.adapters.attention_modes import AttentionCalls
from conformance.errors import PortError, UnsupportedError, UsageError
from conformance.raised import where_raised
from conformance.report.text import one_line

Function = Callable[..., Any]


def load_attention(spec: str) -> Function:
    """Load the function that `file.py:fn` names.

    Raises:
        UsageError: There is none, it cannot be imported, or it takes other arguments.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not name:
        message = f"--attention {spec!r}: write file.py:function"
        raise UsageError(message)
    if not path.is_file():
        message = f"--attention: {path} does not exist"
        raise UsageError(message)
    module_spec = importlib.util.spec_from_file_location(f"sd1_attention_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        message = f"--attention: {path} cannot be imported"
        raise UsageError(message)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        message = (
            f"--attention: {path} cannot be imported: {type(error).__name__}: {one_line(error)}"
        )
        raise UsageError(message) from error
    function: Function | None = getattr(module, name, None)
    if not callable(function):
        message = f"--attention: {path} has no function {name!r}"
        raise UsageError(message)
    try:
        inspect.signature(function).bind(0, 0, 0, is_causal=True)
    except (TypeError, ValueError) as error:
        message = (
            f"--attention {spec}: {one_line(error)}; it is called with (query, key, value, "
            "is_causal=...), each (B, heads, N, size)"
        )
        raise UsageError(message) from error
    return function


def answer(
    function: Function, query: Tensor, key: Tensor, value: Tensor, *, causal: bool
) -> Tensor:
    """Call a user's attention and check what comes back.

    Raises:
        PortError: It raised, or returned what has another type, shape, dtype or device.
    """
    dtype = str(query.dtype).removeprefix("torch.")
    asked = f"for q {tuple(query.shape)}, k {tuple(key.shape)}, {dtype}"
    try:
        found = function(query, key, value, is_causal=causal)
    except Exception as error:
        message = (
            f"the attention raised {type(error).__name__} {asked}: {one_line(error)} "
            f"({where_raised(error)})"
        )
        raise PortError(message) from error
    if not isinstance(found, Tensor):
        message = f"the attention returned {type(found).__name__} {asked}, not a tensor"
        raise PortError(message)
    shape = (*query.shape[:-1], value.shape[-1])
    for what, own, wanted in (
        ("shape", tuple(found.shape), tuple(shape)),
        ("dtype", found.dtype, query.dtype),
        ("device", found.device, query.device),
    ):
        if own != wanted:
            message = f"the attention returned {what} {own} {asked}: expected {wanted}"
            raise PortError(message)
    return found


class Swapped(AttentionCalls):
    """Puts a user's attention in the place of torch's while the block runs."""

    def __init__(self, function: Function) -> None:
        super().__init__(self._attend)
        self.function = function

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float
    ) -> Tensor:
        """Call the user's attention as torch's was called.

        Raises:
            UnsupportedError: It has a mask that is not causal.
        """
        if added is not None and not _is_causal(added):
            message = "its attention has a mask that is not causal: nothing stands in for that"
            raise UnsupportedError(message)
        usual = query.shape[-1] ** -0.5
        query = query if scale == usual else query * (scale / usual)
        return answer(self.function, query, key, value, causal=added is not None)


def _is_causal(added: Tensor) -> bool:
    """Say whether what is added to the scores hides all that comes later, and nothing else."""
    seen = added == 0
    return bool(torch.equal(seen, torch.ones_like(seen).tril()))
