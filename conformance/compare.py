"""Comparing what a port computed with what a golden says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from conformance import tolerance
from conformance.headroom import NOT_FINITE
from conformance.large import Large
from conformance.layout import channels_first
from conformance.sketch import distance, sketch

METRICS = ("norm", "channel", "element")
"""How a whole tensor is judged: overall, by its worst channel, by its worst element."""


@dataclass
class Record:
    """The judgement of one probe or output.

    Attributes:
        name: Canonical name.
        kind: `probe` or `output`.
        shape: The golden's shape.
        err: Relative L2 error (of outputs: of the metric with the worst ratio).
        noise: The noise that it is measured by.
        ratio: err / noise.
        verdict: `pass`, `warn` or `fail`.
        approximate: Whether `err` was estimated from sketches.
        rms: Root mean square of the port's tensor.
        max_abs: Largest magnitude of the port's tensor.
        note: What a reader should know, such as a wrong shape.
        pcc: Correlation with the truth, where the golden holds that whole.
    """

    name: str
    kind: str
    shape: list[int]
    err: float
    noise: float
    ratio: float
    verdict: str
    approximate: bool
    rms: float = float("nan")
    max_abs: float = float("nan")
    note: str = ""
    pcc: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the record as it stands in results.jsonl, where most have no correlation."""
        record = asdict(self)
        if self.pcc is None:
            del record["pcc"]
        return record


def relative_error(difference: float, scale: float) -> float:
    """Divide an error by the truth's norm; against an exact zero any error is infinite."""
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / scale


def whole_errors(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Measure a tensor against its whole truth.

    Args:
        value: Any floating dtype.
        truth: float64, same shape, channels on axis 1.

    Returns:
        Three relative errors: of the whole (L2), of the worst channel (L2, over the RMS channel)
        and of the worst element (over the RMS).
    """
    with np.errstate(all="ignore"):
        difference = value.astype(np.float64) - truth
        norm = float(np.linalg.norm(truth))
        channels = truth.shape[1] if truth.ndim > 1 else 1
        by_channel = np.sqrt(
            np.sum(difference**2, axis=tuple(i for i in range(truth.ndim) if i != 1))
        )
        return np.array(
            [
                relative_error(float(np.linalg.norm(difference)), norm),
                relative_error(float(np.max(by_channel)), norm / np.sqrt(channels)),
                relative_error(float(np.max(np.abs(difference))), norm / np.sqrt(truth.size)),
            ]
        )


def correlation(value: np.ndarray, truth: np.ndarray) -> float | None:
    """Return Pearson's correlation of two tensors: 1 where one is the other, scaled and shifted.

    Args:
        value: Any floating dtype.
        truth: float64, same shape.

    Returns:
        -1 to 1; None where a value is not finite, or where all are equal.
    """
    with np.errstate(all="ignore"):
        own, other = (a.astype(np.float64).ravel() - float(a.mean()) for a in (value, truth))
        scale = float(np.linalg.norm(own)) * float(np.linalg.norm(other))
        found = float(own @ other) / scale if scale > 0 else float("nan")
    return max(-1.0, min(1.0, found)) if np.isfinite(found) else None


def judge_output(
    name: str, value: np.ndarray, truth: np.ndarray, noise: np.ndarray, arithmetic: str
) -> Record:
    """Judge an output that the golden stores whole, by the worst of three metrics.

    Args:
        name: Name of the output.
        value: What the port computed, in the golden's shape.
        truth: The oracle's float64 values.
        noise: Noise of the three `METRICS`.
        arithmetic: What the port computed in.

    Returns:
        The record of the metric with the worst ratio.
    """
    errors = whole_errors(value, truth)
    ratios = [
        tolerance.ratio(e, n, arithmetic)
        for e, n in zip(errors.tolist(), noise.tolist(), strict=True)
    ]
    worst = max(range(len(METRICS)), key=lambda i: tolerance.badness(ratios[i]))
    return Record(
        name,
        "output",
        list(truth.shape),
        float(errors[worst]),
        float(noise[worst]),
        ratios[worst],
        tolerance.verdict(ratios[worst]),
        approximate=False,
        rms=rms_of(value),
        max_abs=max_abs_of(value),
        note=_not_finite(value) or ("" if worst == 0 else f"worst {METRICS[worst]}"),
        pcc=correlation(value, truth),
    )


def judge_large(
    name: str, value: np.ndarray, truth: Large, noise: np.ndarray, arithmetic: str
) -> Record:
    """Judge an output of which the golden keeps a sketch and the edges.

    Args:
        name: Name of the output.
        value: What the port computed, in the golden's shape.
        truth: What the golden keeps.
        noise: Noise of the three `METRICS`.
        arithmetic: What the port computed in.

    Returns:
        The record of the worse of two errors: of the whole, estimated from sketches, and of the
        worst element at the edges.
    """
    record = judge_kept(name, Large.of(value, truth.edge), truth, noise, arithmetic)
    record.rms, record.max_abs = rms_of(value), max_abs_of(value)
    record.note = _not_finite(value) or record.note
    return record


def judge_kept(name: str, value: Large, truth: Large, noise: np.ndarray, arithmetic: str) -> Record:
    """Judge what is kept of a large output; see `judge_large`."""
    errors = truth.errors(value)
    units = (float(noise[0]), float(noise[2]))
    ratios = [tolerance.ratio(e, n, arithmetic) for e, n in zip(errors, units, strict=True)]
    worst = max((0, 1), key=lambda i: tolerance.badness(ratios[i]))
    return Record(
        name,
        "output",
        list(truth.shape),
        errors[worst],
        units[worst],
        ratios[worst],
        tolerance.verdict(ratios[worst]),
        approximate=worst == 0,
        note="" if worst == 0 else "worst element",
    )


def judge_exact(name: str, value: np.ndarray, truth: np.ndarray) -> Record:
    """Judge integers: all right, or wrong.

    Args:
        name: Name of the output.
        value: What the port computed, in the golden's shape.
        truth: The oracle's integers.

    Returns:
        The record: its error is the share of entries that differ, its ratio 0 or infinite.
    """
    wrong = int(np.count_nonzero(value != truth))
    return Record(
        name,
        "output",
        list(truth.shape),
        wrong / truth.size,
        0.0,
        float("inf") if wrong else 0.0,
        "fail" if wrong else "pass",
        approximate=False,
        note=_first_difference(value, truth) if wrong else "",
    )


def _first_difference(value: np.ndarray, truth: np.ndarray) -> str:
    """Say how many integers differ, and where the first one stands."""
    row, *place = np.argwhere(value != truth)[0].tolist()
    where = f"place {', '.join(map(str, place))} of row {row}" if place else f"place {row}"
    wrong = int(np.count_nonzero(value != truth))
    return f"{wrong} of {truth.size} differ, first at {where}"


def judge_probe(
    name: str,
    value: np.ndarray,
    truth_sketch: np.ndarray,
    truth_norm: float,
    noise: float,
    arithmetic: str,
    kind: str = "probe",
) -> Record:
    """Judge a probe by its sketch.

    Args:
        name: Canonical name.
        value: What the port computed, in the golden's shape.
        truth_sketch: The oracle's buckets.
        truth_norm: L2 norm of the oracle's tensor.
        noise: Noise at this probe.
        arithmetic: What the port computed in.
        kind: `probe`, or `output` where only sketches are kept of one.

    Returns:
        The record; its error is an estimate.
    """
    with np.errstate(all="ignore"):
        error = relative_error(distance(sketch(value, len(truth_sketch)), truth_sketch), truth_norm)
    ratio = tolerance.ratio(error, noise, arithmetic)
    return Record(
        name,
        kind,
        list(value.shape),
        error,
        noise,
        ratio,
        tolerance.verdict(ratio),
        approximate=True,
        rms=rms_of(value),
        max_abs=max_abs_of(value),
        note=_not_finite(value),
    )


def misshapen(name: str, kind: str, value: np.ndarray, shape: tuple[int, ...]) -> Record:
    """Return the failing record of a tensor whose shape is wrong."""
    note = f"shape {tuple(value.shape)}, expected {tuple(shape)}"
    if channels_first(name, value).shape == tuple(shape):
        note += "; channels last? let hello() say layout: NHWC"
    nan = float("nan")
    return Record(name, kind, list(shape), nan, nan, nan, "fail", approximate=False, note=note)


def _not_finite(value: np.ndarray) -> str:
    """Say how many values are NaN or infinite, if any."""
    count = int(np.count_nonzero(~np.isfinite(value)))
    return f"{count} of {value.size} {NOT_FINITE}" if count else ""


def rms_of(value: np.ndarray) -> float:
    """Return the root mean square of a tensor."""
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) if value.size else 0.0


def max_abs_of(value: np.ndarray) -> float:
    """Return the largest magnitude of a tensor of a signed type."""
    return float(max(-value.min(), value.max())) if value.size else 0.0
