"""Where values are kept that take long to compute, or much memory in each process."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "SD1_CACHE"
TRACES, GOLDENS, WEIGHTS = "sd1-traces", "sd1-goldens", "sd1-weights"
"""Folders in it: the oracle's whole values; goldens of the user's own weights; drawn weights."""

CACHE_BYTES = 4 * 2**30
"""Bytes of the oracle's whole values; above them the oldest are deleted."""

_HOUR = 3600
"""Seconds after which a file that was never finished is nobody's."""


def cache_folder(kind: str = TRACES) -> Path | None:
    """Return a folder of cached values, which holds nothing else.

    Args:
        kind: Its name: `TRACES`, `GOLDENS` or `WEIGHTS`.

    Returns:
        The folder in `$SD1_CACHE` (empty for no cache, then None) or in the user's cache folder.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen) / kind if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sd1-conformance" / kind


def beside(path: Path) -> Path:
    """Return where this process writes a file before it takes its name: whole or not at all."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def shrink(folder: Path, most: int) -> None:
    """Delete the files that were not used for longest until a folder has its size.

    Other processes may read, write and delete there meanwhile: what one of them has deleted is
    gone, what it has mapped stays with it. What a process was killed over is deleted after an hour.

    Args:
        folder: One of the cache's.
        most: Bytes that it may hold.

    Raises:
        OSError: A file cannot be deleted.
    """
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            facts = path.lstat()
            if path.name.startswith(".") and facts.st_mtime < time.time() - _HOUR:
                path.unlink()
            elif not path.is_dir():
                found.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
