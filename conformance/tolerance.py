"""The one limit, in units of noise (docs/tolerance.md)."""

from __future__ import annotations

import math

LIMIT = 4.0
"""The single number that a ratio must not exceed: for every probe, arithmetic and device."""

ARITHMETICS = ("float64", "float32", "bfloat16", "float16")
"""Those in which everything is kept and computed in one dtype."""

FLOATS = ("float64", "float32")
HALVES = ("bfloat16", "float16")

OTHER_ARITHMETICS = ("tf32", "bf16-matmul")
"""float32, but for the operands of convolutions and matrix products: 10 or 7 fraction bits."""

POLICIES = ("policy:autocast", "policy:fp16-norm32", "policy:vae-upcast")
"""Mixtures of dtypes that are in use."""

EVERY_ARITHMETIC = (*ARITHMETICS, *OTHER_ARITHMETICS, *POLICIES)

ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "tf32": 2.0**-11,
    "bf16-matmul": 2.0**-8,
    "policy:autocast": 2.0**-8,
    "policy:fp16-norm32": 2.0**-11,
    "policy:vae-upcast": 2.0**-11,
}
"""Unit roundoff of each arithmetic: of the coarsest rounding in it."""

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
