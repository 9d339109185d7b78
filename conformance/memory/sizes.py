"""Sizes of memory, written and read."""

from __future__ import annotations

import re

from conformance.errors import UsageError

MIB = 2**20

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(iB|B|)", re.IGNORECASE)


def mib(size: float) -> str:
    """Write bytes as MiB, to three digits."""
    return f"{size / MIB:,.3f} MiB"


def read_size(text: str, option: str) -> int:
    """Read a size: `8GiB`, `512 MiB`, `8G`.

    Args:
        text: The size.
        option: What gave it, for the error.

    Returns:
        Bytes.

    Raises:
        UsageError: It is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        message = f"{option} {text!r} is no size: write 8GiB or 512MiB"
        raise UsageError(message)
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2].upper()) + 1))
