"""How `sd1_impl` and diffusers load the UNet of a checkpoint: what `bench load` compares.

A process of its own, `python -m conformance.adapters.loaders NAME PATH CONFIG DTYPE`, loads once
and prints what that took as JSON. Both map files into memory. `sd1_impl` looks at every value while
it loads, and so reads the file; what does not has it to read when the weights are first used, so
that is done here and counted.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def load_with_sd1_impl(path: Path, config: Path, dtype: torch.dtype) -> Any:
    """Load in the dtype of the files."""
    from sd1_impl.checkpoint import load_network

    del config, dtype  # both are found in the files
    return lambda: load_network("unet", path, dtype=None)


def load_with_diffusers(path: Path, config: Path, dtype: torch.dtype) -> Any:
    """Load in the dtype of the files, as a user of diffusers would.

    Args:
        path: A single file, or a folder.
        config: Folder with `unet/config.json`, which a single file lacks.
        dtype: That of the files: diffusers would widen them.
    """
    from diffusers import UNet2DConditionModel

    options = {"subfolder": "unet", "local_files_only": True, "torch_dtype": dtype}
    if path.is_dir():
        return lambda: UNet2DConditionModel.from_pretrained(path, **options)
    return lambda: UNet2DConditionModel.from_single_file(path, config=str(config), **options)


LOOKS = ("sd1_impl",)
"""Those that have read every weight when they return."""

LOADERS: dict[str, Callable[[Path, Path, torch.dtype], Any]] = {
    "sd1_impl": load_with_sd1_impl,
    "diffusers": load_with_diffusers,
}
"""By name: import what is needed, and return what loads."""


def measured(name: str, path: Path, config: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load once in this process.

    Returns:
        Seconds of the call, and until every weight was read once; the highest resident memory of
        the process and its growth in bytes, dtype and number of the parameters.
    """
    load = LOADERS[name](path, config, dtype)
    gc.collect()  # what the imports left is no part of loading
    before = _resident()
    start = time.perf_counter()
    network = load()
    loaded = time.perf_counter()
    for parameter in network.parameters() if name not in LOOKS else ():
        torch.aminmax(parameter.detach())
    ready = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "loader": name,
        "call": loaded - start,
        "ready": ready - start,
        "peak": peak,
        "growth": peak - before,
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def _resident() -> int:
    """Return the memory that this process holds now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    name, path, config, dtype = sys.argv[1:]
    print(json.dumps(measured(name, Path(path), Path(config), getattr(torch, dtype))))  # noqa: T201 - the answer
