"""What a report shows of a wrong tensor: slices, a map, the worst element, and words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conformance import tolerance
from conformance.case import Case
from conformance.compare import Record, correlation, rms_of
from conformance.evidence.captions import caption
from conformance.evidence.error_map import Errors
from conformance.evidence.error_places import Probe
from conformance.evidence.tensor_axes import axes_of, groups_of, heads_of
from conformance.golden import Golden
from conformance.judge import TIME_PROJ
from conformance.layout import PIXELS
from conformance.sampling import TIMESTEPS
from conformance.tables import table_arithmetic


def unit_of(golden: Golden, record: Record, truth: np.ndarray, arithmetic: str) -> np.ndarray:
    """Return the absolute error that has ratio 1: of the whole, or of each entry of a table.

    Args:
        golden: What the port was judged by.
        record: Its judgement.
        truth: What is right, whole.
        arithmetic: What the port computed in.

    Returns:
        float64, a number or an array of the truth's shape.
    """
    if record.name == PIXELS:
        return np.array(record.noise)
    size: Any = rms_of(truth)
    noise: Any = record.noise
    own = table_arithmetic(arithmetic)
    if record.name in golden.table_noise.get(own, {}):
        noise, arithmetic = golden.table_noise[own][record.name], own
        size = np.maximum(np.abs(truth), 1) if record.name == TIMESTEPS else np.abs(truth)
        size = np.where(size > 0, size, np.max(size))
    elif record.name == TIME_PROJ and golden.embedding_noise is not None and not record.approximate:
        exact = arithmetic == "float64"
        noise = golden.embedding_noise * (tolerance.FLOAT64_FROM_FLOAT32 if exact else 1)
        size = 1.0  # of sines and cosines
    unit = np.maximum(noise, tolerance.floor(arithmetic)) * size
    return np.where(unit > 0, unit, 1.0)


def tensor_facts(
    case: Case, record: Record, got: np.ndarray, truth: np.ndarray, unit: np.ndarray
) -> dict[str, Any]:
    """Return what a report shows of a wrong tensor, as docs/report.md says.

    Args:
        case: The case.
        record: The judgement of the tensor.
        got: What the port computed.
        truth: What is right, of the same shape.
        unit: From `unit_of`.

    Returns:
        Strict JSON: numbers have four digits, NaN and infinities are strings.
    """
    wide = got.astype(np.float64)
    with np.errstate(all="ignore"):
        distance = np.nan_to_num(np.abs(wide - truth), nan=np.inf)
        axes = axes_of(record.name, truth.shape)
        errors = Errors(wide / unit, truth / unit, axes)
    heads = heads_of(case, record.name, truth.shape[-1] if truth.ndim else 1)
    groups = groups_of(case, record.name, axes)
    probe = Probe(record.name, heads, groups, weighted=case.is_network)
    worst = np.unravel_index(int(np.argmax(distance)), truth.shape)
    return _strict(
        {
            "probe": record.name,
            "kind": record.kind,
            "shape": list(truth.shape),
            "axes": list(axes),
            "err": record.err,
            "noise": record.noise,
            "ratio": record.ratio,
            "pcc": correlation(got, truth),
            "slices": errors.slices(heads),
            "map": errors.map(),
            "caption": caption(errors, probe),
            "worst": {
                "index": [int(i) for i in worst],
                "got": float(wide[worst]),
                "expected": float(truth[worst]),
            },
        }
    )


_DIGITS = {"pcc": 12, "got": 9, "expected": 9}
"""Of numbers that are compared with each other; 4 of all others."""


def _strict(value: Any, digits: int = 4) -> Any:
    """Make a value short, strict JSON."""
    if isinstance(value, dict):
        return {key: _strict(item, _DIGITS.get(key, digits)) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else f"{value}"
    return value
