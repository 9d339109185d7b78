"""The one limit, in units of noise (docs/tolerance.md)."""

from __future__ import annotations

import math

LIMIT = 4.0
"""The single number that a ratio must not exceed: for every probe, arithmetic and device."""

ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
"""Unit roundoff of each arithmetic."""

ARITHMETICS = tuple(ROUNDOFF)
HALVES = ("bfloat16", "float16")

FLOAT64_FROM_FLOAT32 = 2.0**-29
"""Ratio of the unit roundoffs: float32 noise times this bounds float64 noise from below."""


def floor(arithmetic: str) -> float:
    """Return the least noise that counts, against exact or lucky zeros: half a unit roundoff."""
    return ROUNDOFF[arithmetic] / 2


def ratio(error: float, noise: float, arithmetic: str) -> float:
    """Return an error in units of noise.

    Args:
        error: Relative error at a probe; NaN where the port is not finite.
        noise: The reference's own noise at that probe in the same arithmetic.
        arithmetic: Gives the floor.

    Returns:
        The ratio; NaN stays NaN.
    """
    return error / max(noise, floor(arithmetic))


def verdict(value: float) -> str:
    """Return `pass`, `warn` (from half the limit) or `fail` for a ratio; NaN fails."""
    if not value <= LIMIT:
        return "fail"
    return "warn" if value >= LIMIT / 2 else "pass"


def badness(value: float) -> float:
    """Return a key that orders ratios with NaN worst."""
    return math.inf if math.isnan(value) else value
