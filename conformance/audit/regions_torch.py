"""Which arithmetic the layer that is running computes in, and the borders between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from conformance.adapters.arithmetics import FRACTION_BITS
from conformance.adapters.torch_module import DTYPES
from conformance.operands import RoundedOperands

STORED = {**DTYPES, **dict.fromkeys(FRACTION_BITS, torch.float32)}
"""By arithmetic of a layer, the dtype of its weights."""


class Regions(RoundedOperands):
    """Knows which arithmetic the innermost layer that is running computes in."""

    def __init__(self, outermost: str) -> None:
        super().__init__(0)
        self.current = outermost
        self.bits = FRACTION_BITS.get(outermost, 0)

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Round the operands where the layer's arithmetic asks for it."""
        return super().operation(func, args, kwargs) if self.bits else func(*args, **kwargs)

    @contextmanager
    def inside(self, arithmetic: str) -> Iterator[None]:
        """Compute in the arithmetic of one layer or block."""
        before = self.current, self.bits
        self.current, self.bits = arithmetic, FRACTION_BITS.get(arithmetic, 0)
        try:
            yield
        finally:
            self.current, self.bits = before

    def bordered(
        self, forward: Callable[..., Any], own: str, weigh: Callable[[str], None]
    ) -> Callable[..., Any]:
        """Return a forward pass in an arithmetic of its own.

        Args:
            forward: The module's.
            own: Its arithmetic.
            weigh: Gives the module its weights in an arithmetic.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            around = self.current
            if own == around:
                return forward(*args, **kwargs)
            weigh(own)
            try:
                with self.inside(own):
                    args, kwargs = cast((args, kwargs), STORED[own])
                    result = forward(*args, **kwargs)
            finally:
                weigh(around)  # a network asks its weights which dtype its inputs should have
            return cast(result, STORED[around])

        return run


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Cast every floating tensor among arguments or results."""
    return tree_map(
        lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, values
    )
