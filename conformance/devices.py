"""Spreading worker processes over the GPUs of a machine, before anything imports torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"

_DRIVER = Path("/proc/driver/nvidia/gpus")
_LISTER = "nvidia-smi"
_PATIENCE = 30
"""Seconds that a driver may take to list its devices."""

_NAME = re.compile(r"\d+|(GPU|MIG)-[\w./-]+")
_UUID = re.compile(r"\(UUID: ((?:GPU|MIG)-[\w./-]+)\)")


def visible_devices() -> list[str]:
    """Return the GPUs that a process may use, each as `CUDA_VISIBLE_DEVICES` names it.

    Returns:
        What that variable lists up to the first name that is none, as CUDA reads it; where it is
        not set, what the driver lists: parts of a divided GPU (MIG) instead of the whole.
    """
    asked = os.environ.get(VISIBLE)
    if asked is None:
        return _listed() or _in_driver()
    found: dict[str, None] = {}
    for name in asked.split(","):
        if not _NAME.fullmatch(name.strip()):
            break
        found[name.strip()] = None
    return list(found)


def _listed() -> list[str]:
    """Ask `nvidia-smi -L`, which lists the parts of a GPU below it."""
    program = shutil.which(_LISTER)
    if program is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own tool
            [program, "-L"], capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    found: list[str] = []
    whole = False
    for name in _UUID.findall(done.stdout):
        is_part = name.startswith("MIG-")
        if is_part and whole:
            found.pop()
        found.append(name)
        whole = not is_part
    return found


def _in_driver() -> list[str]:
    return [str(i) for i, _ in enumerate(_DRIVER.iterdir())] if _DRIVER.is_dir() else []


def device_of(worker: int, devices: list[str]) -> dict[str, str]:
    """Return the variables that give a worker a GPU of its own, in turn.

    Args:
        worker: Its number, from 0.
        devices: `visible_devices()`.

    Returns:
        `CUDA_VISIBLE_DEVICES`, or nothing where there is nothing to spread over.
    """
    return {VISIBLE: devices[worker % len(devices)]} if len(devices) > 1 else {}
