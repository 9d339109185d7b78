"""Comparison: three metrics for whole tensors, sketches for probes; what is not finite fails."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from conformance.compare import (
    METRICS,
    Record,
    judge_exact,
    judge_output,
    judge_probe,
    misshapen,
    relative_error,
    whole_errors,
)
from conformance.sketch import sketch
from conformance.tolerance import LIMIT, floor

NOISE = np.array([1e-6, 1.1e-6, 5e-6])
SHAPE = (2, 64, 8, 8)


@pytest.fixture
def truth() -> np.ndarray:
    """Return a tensor of 64 channels."""
    return np.random.default_rng(0).standard_normal(SHAPE)


@pytest.fixture
def error() -> np.ndarray:
    """Return a dense error of relative norm 1e-6."""
    noise = np.random.default_rng(1).standard_normal(SHAPE)
    scale = np.linalg.norm(np.random.default_rng(0).standard_normal(SHAPE))
    return noise * 1e-6 * scale / np.linalg.norm(noise)


def judge(value: np.ndarray, truth: np.ndarray) -> Record:
    """Judge an output in float32."""
    return judge_output("sample", value, truth, NOISE, "float32")


def probe(value: np.ndarray, truth: np.ndarray, noise: float = 1e-6) -> Record:
    """Judge a probe in float32."""
    norm = float(np.linalg.norm(truth))
    return judge_probe("conv_in", value, sketch(truth), norm, noise, "float32")


@pytest.mark.parametrize(
    ("difference", "scale", "expected"),
    [(0.0, 0.0, 0.0), (1e-300, 0.0, math.inf), (math.nan, 0.0, math.inf), (3.0, 2.0, 1.5)],
    ids=["zero-of-zero", "some-of-zero", "nan-of-zero", "plain"],
)
def test_relative_error(difference: float, scale: float, expected: float) -> None:
    """Against an exact zero any error is infinite."""
    assert relative_error(difference, scale) == expected


def test_whole_errors_by_hand() -> None:
    """The three metrics on numbers that can be checked by hand."""
    truth = np.full((1, 2, 2, 2), 2.0)  # norm sqrt(32), a channel's RMS norm 4, RMS 2
    value = truth.copy()
    value[0, 1] += [[3.0, 0.0], [0.0, -4.0]]
    assert METRICS == ("norm", "channel", "element")
    assert whole_errors(value, truth) == pytest.approx([5 / math.sqrt(32), 5 / 4, 4 / 2])


@pytest.mark.parametrize(
    "shape", [(), (5,), (3, 1), (2, 3, 4)], ids=["scalar", "vector", "column", "three-axes"]
)
def test_whole_errors_any_rank(shape: tuple[int, ...]) -> None:
    """A tensor of any rank has three errors; a uniform one has the same in norm and element."""
    errors = whole_errors(np.full(shape, 1.5), np.full(shape, 1.0))
    assert errors[[0, 2]] == pytest.approx([0.5, 0.5])
    assert np.isfinite(errors).all()


def test_right_output_passes(truth: np.ndarray) -> None:
    """The truth itself, rounded to float32, passes with its size measured."""
    record = judge(truth.astype(np.float32), truth)
    assert (record.verdict, record.kind, record.approximate) == ("pass", "output", False)
    assert record.ratio < 0.1
    assert record.rms == pytest.approx(np.sqrt(np.mean(truth**2)))
    assert record.max_abs == pytest.approx(np.abs(truth).max())


@pytest.mark.parametrize(
    ("times", "verdict"),
    [(1.0, "pass"), (1.9, "pass"), (2.1, "warn"), (3.9, "warn"), (4.1, "fail")],
)
@pytest.mark.parametrize("how", [judge, probe], ids=["output", "probe"])
def test_verdict_follows_error(truth, error, how, times: float, verdict: str) -> None:
    """An error of so many times the noise gets the verdict that the limit says."""
    if how is probe:  # the estimate of this very error, so that the limit is met exactly
        times *= 1e-6 / probe(truth + error, truth).err
    else:
        times *= 1 / judge(truth + error, truth).ratio
    assert how(truth + times * error, truth).verdict == verdict


def test_ratio_is_error_over_noise(truth: np.ndarray, error: np.ndarray) -> None:
    """A record's ratio is its err over its noise, of the metric that is worst."""
    record = judge(truth + error, truth)
    assert record.ratio == record.err / record.noise
    assert record.ratio == pytest.approx(np.max(whole_errors(truth + error, truth) / NOISE))


@pytest.mark.parametrize("noise", [0.0, 1e-12], ids=["zero", "tiny"])
def test_floor_bounds_noise(truth: np.ndarray, error: np.ndarray, noise: float) -> None:
    """Lucky noise below the floor does not make rounding a fault."""
    record = probe(truth + error, truth, noise)
    assert record.ratio == record.err / floor("float32")


def test_one_channel(truth: np.ndarray) -> None:
    """An error in one of 64 channels that the norm does not see fails as `worst channel`."""
    value = truth.copy()
    value[:, 5] *= 1 + 6e-6
    record = judge(value, truth)
    assert whole_errors(value, truth)[0] / NOISE[0] < 1
    assert (record.verdict, record.note, record.noise) == ("fail", "worst channel", NOISE[1])


def test_one_element(truth: np.ndarray) -> None:
    """An error in one of 8192 elements that norm and channel do not see fails."""
    value = truth.copy()
    value[1, 7, 3, 2] += 3e-5
    record = judge(value, truth)
    errors = whole_errors(value, truth)
    assert errors[0] / NOISE[0] < 1
    assert errors[1] / NOISE[1] < LIMIT
    assert (record.verdict, record.note, record.noise) == ("fail", "worst element", NOISE[2])


def test_probe_sees_one_element(truth: np.ndarray) -> None:
    """A sketch sees one wrong element as well."""
    value = truth.copy()
    value[1, 7, 3, 2] += 1e-3
    assert probe(value, truth).verdict == "fail"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("how", [judge, probe], ids=["output", "probe"])
def test_not_finite_fails(truth: np.ndarray, how, place: int, bad: float) -> None:
    """A single NaN or infinity fails, wherever it is."""
    value = truth.astype(np.float32)
    value.reshape(-1)[place] = bad
    record = how(value, truth)
    assert record.verdict == "fail"
    assert not math.isfinite(record.ratio)


@pytest.mark.parametrize("how", [judge, probe], ids=["output", "probe"])
@pytest.mark.parametrize(
    "wrong",
    [np.zeros_like, np.negative, lambda t: t[::-1], lambda t: t.swapaxes(2, 3), np.ones_like],
    ids=["zero", "negated", "batch-reversed", "transposed", "ones"],
)
def test_degenerate_fails(truth: np.ndarray, how, wrong) -> None:
    """What keeps the norm, or has none, fails by many orders of magnitude."""
    assert how(wrong(truth), truth).ratio > 1e5


def test_zero_truth() -> None:
    """Where the truth is exactly zero, only exact zeros pass."""
    zero = np.zeros(SHAPE)
    assert judge(zero, zero).verdict == probe(zero, zero).verdict == "pass"
    almost = zero.copy()
    almost[0, 0, 0, 0] = 1e-30
    assert judge(almost, zero).verdict == probe(almost, zero).verdict == "fail"


def test_probe_estimate(truth: np.ndarray, error: np.ndarray) -> None:
    """A probe's error is an estimate of the true one, within a factor of 2, and says so."""
    record = probe(truth + error, truth)
    assert record.approximate
    assert 0.5e-6 < record.err < 2e-6
    assert record.shape == list(SHAPE)


@pytest.mark.parametrize("how", [judge, probe], ids=["output", "probe"])
def test_half_precision_size(truth: np.ndarray, how) -> None:
    """The RMS of a half-precision tensor is added up in float64: large values do not overflow."""
    value = (truth * 1e4).clip(-6e4, 6e4).astype(np.float16)
    record = how(value, value.astype(np.float64))
    assert record.verdict == "pass"
    assert record.rms == pytest.approx(1e4, rel=0.05)


def ids(**wrong: int) -> np.ndarray:
    """Return two rows of five ids, some of them wrong by that much."""
    rows = np.arange(10, dtype=np.int64).reshape(2, 5)
    for place, change in wrong.items():
        rows.reshape(-1)[int(place.removeprefix("at"))] += change
    return rows


@pytest.mark.parametrize(
    ("value", "err", "note"),
    [
        (ids(at0=1), 0.1, "1 of 10 differ, first at place 0 of row 0"),
        (ids(at9=-1), 0.1, "1 of 10 differ, first at place 4 of row 1"),
        (ids(at3=2**40, at7=1), 0.2, "2 of 10 differ, first at place 3 of row 0"),
        (ids()[::-1], 1.0, "10 of 10 differ, first at place 0 of row 0"),
    ],
    ids=["first", "last", "two", "rows-exchanged"],
)
def test_exact_fails(value: np.ndarray, err: float, note: str) -> None:
    """One wrong integer is as wrong as all: how many differ, and where the first is, is said."""
    record = judge_exact("input_ids", value, ids())
    assert (record.verdict, record.ratio, record.err) == ("fail", math.inf, err)
    assert record.note == note


def test_exact_passes() -> None:
    """Equal integers have no error, nothing is estimated, and there is no noise."""
    record = judge_exact("input_ids", ids(), ids())
    assert (record.verdict, record.ratio, record.err, record.noise) == ("pass", 0, 0, 0)
    assert (record.kind, record.shape, record.approximate) == ("output", [2, 5], False)
    assert record.note == ""


def test_misshapen() -> None:
    """A wrong shape fails, with both shapes in its note and no number."""
    record = misshapen("sample", "output", np.zeros((2, 3)), (2, 4))
    assert (record.verdict, record.note) == ("fail", "shape (2, 3), expected (2, 4)")
    assert math.isnan(record.ratio)
    assert record.shape == [2, 4]


def test_record_as_json(truth: np.ndarray) -> None:
    """A record keeps every field in results.jsonl."""
    line = judge(truth, truth).as_json()
    assert list(line) == [field.name for field in fields(Record)]
