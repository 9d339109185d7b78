"""What it takes to load the UNet of a checkpoint, beside diffusers: each time a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.bench.record import Reference, Row
from conformance.errors import SuiteError

OURS, THEIRS = LOADERS = ("sd1_impl", "diffusers")

_FIGURES = {"call": "s", "ready": "s", "peak": "bytes", "growth": "bytes"}
"""By figure of `conformance.adapters.loaders.measured`: its unit."""

Runs = Sequence[Mapping[str, Any]]


def measured(name: str, path: Path, config: Path, dtype: str) -> dict[str, Any]:
    """Load once in a fresh process.

    Args:
        name: One of `LOADERS`.
        path: The checkpoint.
        config: Folder with `unet/config.json`.
        dtype: That of the files.

    Raises:
        SuiteError: It could not be loaded.
    """
    words = [name, str(path), str(config), dtype]
    start = [sys.executable, "-m", "conformance.adapters.loaders"]
    done = subprocess.run([*start, *words], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        message = f"{name} could not load {path}: {last}"
        raise SuiteError(message)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def rows(runs: Runs, size: str) -> dict[str, Row]:
    """Return the rows of the file, by figure.

    Args:
        runs: What `measured` returned, of both loaders in turns.
        size: Of the UNet.
    """
    dtype = runs[0]["dtype"]
    found = {}
    for figure, unit in _FIGURES.items():
        own, other = (
            tuple(float(run[figure]) for run in runs if run["loader"] == name) for name in LOADERS
        )
        name = f"unet/{size}[{dtype}]:{figure}"
        found[figure] = Row.measured(name, unit, own, reference=Reference(THEIRS, other))
    return found
