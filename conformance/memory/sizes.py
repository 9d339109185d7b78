"""Sizes of memory, written and read."""

from __future__ import annotations

MIB = 2**20


def mib(size: float) -> str:
    """Write bytes as MiB, to the three digits that tell most differences apart."""
    return f"{size / MIB:,.3f} MiB"
