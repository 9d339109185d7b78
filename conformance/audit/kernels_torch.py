"""What rounds numbers in torch: its switches, and the kernels that one call really ran."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from conformance.port import Component

_STDERR = 2

_SWITCHES = (
    "cuda.matmul.allow_tf32",
    "cuda.matmul.allow_fp16_accumulation",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuda.matmul.fp32_precision",
    "cudnn.allow_tf32",
    "cudnn.conv.fp32_precision",
    "mkldnn.enabled",
    "mkldnn.allow_tf32",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
)
"""Under `torch.backends`."""

_OF_GPUS = ("cuda.", "cudnn.")

_KINDS = {
    "convolution": ("conv",),
    "attention": ("attention", "sdpa", "flash", "fmha", "softmax"),
    "matrix product": ("gemm", "mm", "linear", "matmul"),
    "norm": ("norm",),
}
_WRAPPERS = frozenset(
    f"aten::{name}"
    for name in (
        "conv2d",
        "convolution",
        "_convolution",
        "scaled_dot_product_attention",
        "linear",
        "matmul",
        "group_norm",
        "layer_norm",
        "softmax",
    )
)
"""Operations that only hand on to another."""


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep what the profiler's own library writes to the error stream from the user."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
            yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def switches(device: str) -> dict[str, str]:
    """Return torch's switches that let it round more than was asked for on a device."""
    found = {}
    for name in _SWITCHES:
        if device == "cpu" and name.startswith(_OF_GPUS):
            continue
        value: Any = torch.backends
        try:
            for part in name.split("."):
                value = getattr(value, part)
        except Exception:  # noqa: BLE001, S112 - another version of torch lacks it
            continue
        found[name] = str(value() if callable(value) else value)
    return found


def kernels(component: Component, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Run a component once and count the kernels of its convolutions, products and attentions.

    Args:
        component: Of torch, in this process.
        inputs: Of a case.

    Returns:
        `kind`, `name` and `count`, the most frequent of a kind first.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with _without_chatter(), profile(activities=activities) as seen:
        component.run(inputs)
    counts: dict[tuple[str, str], int] = {}
    for event in seen.key_averages():
        name = str(event.key)
        kind = next((k for k, words in _KINDS.items() if any(w in name.lower() for w in words)), "")
        if kind and name not in _WRAPPERS and not name.startswith("cu"):
            counts[kind, name] = counts.get((kind, name), 0) + int(event.count)
    order = list(_KINDS)
    rows = sorted(counts.items(), key=lambda row: (order.index(row[0][0]), -row[1]))
    return [{"kind": kind, "name": name, "count": count} for (kind, name), count in rows]
