"""What a benchmark asks of a device: when it is done, what it could do, what it holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from conformance.bench.interleave import Clock
from conformance.errors import UsageError

_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product shows what a device can do."""


class Device:
    """A device, in one dtype.

    Args:
        name: `cpu`, `cuda` or `cuda:1`.
        dtype: What is computed in.

    Raises:
        UsageError: There is no such device.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        try:
            self.device = torch.device(name)
        except RuntimeError as error:
            message = f"--device {name!r} is no device: write cpu, cuda or cuda:1"
            raise UsageError(message) from error
        if self.device.type not in _SIDE:
            message = f"--device {name}: only cpu and cuda are timed"
            raise UsageError(message)
        self.is_cuda = self.device.type == "cuda"
        if self.is_cuda and (self.device.index or 0) >= torch.cuda.device_count():
            message = f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here"
            raise UsageError(message)
        self.dtype = dtype

    def clock(self) -> Clock:
        """Return a clock that stops when the device is done."""
        if not self.is_cuda:
            return Clock()
        return Clock(wait=partial(torch.cuda.synchronize, self.device))

    def matmul(self) -> tuple[Callable[[], Tensor], int]:
        """Return a product of large matrices, and its floating-point operations.

        What it reaches is taken for the most that the device can do in this dtype.
        """
        n = _SIDE[self.device.type]
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(n, n, generator=generator).to(self.device, self.dtype) for _ in "ab")
        return partial(torch.mm, a, b, out=torch.empty_like(a)), 2 * n**3

    def peak(self, call: Callable[[], Any]) -> int | None:
        """Return the most bytes that a call held on top of what was there; None on a CPU."""
        if not self.is_cuda:
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device)) - before


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count two products of matrices, as torch's own counter does of the kernels of a GPU."""
    return int(sdpa_flop_count(query, key, value))


def counted(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return what an uncompiled call returns, and its floating-point operations.

    Products of matrices, convolutions and attention count; a multiplication and an addition are
    two. What goes through every value once does not.
    """
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # noqa: SLF001
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        output = call()
    return output, int(counter.get_total_flops())
