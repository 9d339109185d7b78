"""Tables of a noise schedule, judged entry by entry."""

from __future__ import annotations

import numpy as np

from conformance import tolerance
from conformance.compare import Record, max_abs_of, rms_of
from conformance.sampling import TIMESTEPS
from conformance.tolerance import FLOATS


def entry_errors(name: str, value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the relative error of each entry; against an exact zero any error is infinite.

    Timesteps end near 0, but below one of the training their unit is that one.
    """
    scale = np.maximum(np.abs(truth), 1) if name == TIMESTEPS else np.abs(truth)
    with np.errstate(all="ignore"):
        difference = np.abs(value.astype(np.float64) - truth)
        return np.where(difference == 0, 0.0, difference / scale)


def table_arithmetic(arithmetic: str) -> str:
    """Return what tables are computed in: float32 also where the model is in half precision."""
    return arithmetic if arithmetic in FLOATS else "float32"


def judge_table(
    name: str,
    value: np.ndarray,
    truth: np.ndarray,
    noise: np.ndarray,
    arithmetic: str,
    kind: str = "probe",
) -> Record:
    """Judge a table by its worst entry.

    Args:
        name: Its name.
        value: What the port computed, in the golden's shape.
        truth: The oracle's float64 entries.
        noise: Relative noise of each entry.
        arithmetic: What the port computed in; tables of half-precision models are float32.
        kind: `probe` or `output`.

    Returns:
        The record of the entry with the worst ratio.
    """
    errors = entry_errors(name, value, truth)
    ratios = errors / np.maximum(noise, tolerance.floor(table_arithmetic(arithmetic)))
    worst = int(np.argmax(np.where(np.isnan(ratios), np.inf, ratios)))
    ratio = float(ratios[worst])
    verdict = tolerance.verdict(ratio)
    note = f"entry {worst} is {value[worst]:.9g}, expected {truth[worst]:.9g}"
    return Record(
        name,
        kind,
        list(truth.shape),
        float(errors[worst]),
        float(noise[worst]),
        ratio,
        verdict,
        approximate=False,
        rms=rms_of(value),
        max_abs=max_abs_of(value),
        note=note if verdict == "fail" else "",
    )
