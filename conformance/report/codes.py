"""Numbers as one byte each, so that a page can hold a million of them.

heat.js reads these bytes again; what it needs for that, `scale` says.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance.report.layers import ABSENT

MISSING = 0
"""Of a cell whose case has no such probe."""

UNMEASURED = 1
"""Of a cell whose case was skipped or broke, or that has no ratio."""

_LOWEST, _HIGHEST = 2, 251
INFINITE, NOT_A_NUMBER = 252, 253
"""After all numbers, so that of two codes the greater is the worse."""

_AT_LIMIT = 102
"""The code of ratios up to the limit: the next one is beyond it, whatever a step is."""

_STEP = 0.05
"""Decades between two codes: numbers are right within 6 %."""

_EXACT, _NOISE_DECADE = 1, -11.0
"""The code of a noise of 0, and the decade that the codes of others begin at."""


def ratio_codes(ratios: np.ndarray, limit: float) -> np.ndarray:
    """Write ratios as bytes.

    Args:
        ratios: float64, from 0; infinite, not a number or `ABSENT`.
        limit: The run's limit; no ratio within it shares a code with one beyond it.

    Returns:
        uint8, the same shape.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.ceil(np.log10(np.abs(ratios) / limit) / _STEP)
    beyond = ratios > limit  # rounding of the logarithm must not move a ratio over the limit
    steps = np.where(beyond, np.maximum(steps, 1), np.minimum(steps, 0))
    codes = np.clip(_AT_LIMIT + np.nan_to_num(steps), _LOWEST, _HIGHEST)
    codes[np.isposinf(ratios)] = INFINITE
    codes[np.isnan(ratios)] = NOT_A_NUMBER
    codes[ratios == ABSENT] = UNMEASURED
    return codes.astype(np.uint8)


def noise_codes(noises: np.ndarray) -> np.ndarray:
    """Write noises as bytes: 0 for none, 1 for 0, then steps on a log scale."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.round((np.log10(np.abs(noises)) - _NOISE_DECADE) / _STEP)
    codes = np.clip(_LOWEST + np.nan_to_num(steps, posinf=255), _LOWEST, 255)
    codes[noises == 0] = _EXACT
    codes[(noises == ABSENT) | np.isnan(noises)] = MISSING
    return codes.astype(np.uint8)


def scale(limit: float) -> dict[str, Any]:
    """Return what turns codes into numbers again, by the names that heat.js reads."""
    return {
        "limit": limit,
        "step": _STEP,
        "atLimit": _AT_LIMIT,
        "lowest": _LOWEST,
        "highest": _HIGHEST,
        "unmeasured": UNMEASURED,
        "infinite": INFINITE,
        "notANumber": NOT_A_NUMBER,
        "exact": _EXACT,
        "noiseDecade": _NOISE_DECADE,
    }


def usable_limit(value: float | None, otherwise: float) -> float:
    """Return a limit as recorded, where it can be one."""
    return value if value is not None and 0 < value < math.inf else otherwise
