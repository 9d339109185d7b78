"""Where values are kept that take long to compute."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "SD1_CACHE"
TRACES, GOLDENS = "sd1-traces", "sd1-goldens"
"""Folders in it: the oracle's whole values; goldens of the user's own weights."""


def cache_folder(kind: str = TRACES) -> Path | None:
    """Return a folder of cached values, which holds nothing else.

    Args:
        kind: Its name: `TRACES` or `GOLDENS`.

    Returns:
        The folder in `$SD1_CACHE` (empty for no cache, then None) or in the user's cache folder.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen) / kind if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sd1-conformance" / kind
