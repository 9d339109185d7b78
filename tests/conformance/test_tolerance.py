"""The one limit: units, floors and verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conformance.tolerance import ARITHMETICS, LIMIT, ROUNDOFF, badness, floor, ratio, verdict


def test_limit() -> None:
    """The limit is the 4 of docs/tolerance.md."""
    assert LIMIT == 4


@pytest.mark.parametrize(
    ("arithmetic", "fraction_bits"),
    [("float64", 52), ("float32", 23), ("float16", 10), ("bfloat16", 7)],
)
def test_roundoff(arithmetic: str, fraction_bits: int) -> None:
    """The unit roundoff is half the spacing after 1, and the floor half of that."""
    assert ROUNDOFF[arithmetic] == 2.0 ** -(fraction_bits + 1)
    assert floor(arithmetic) == 2.0 ** -(fraction_bits + 2)
    if arithmetic != "bfloat16":
        assert ROUNDOFF[arithmetic] == np.finfo(arithmetic).eps / 2


def test_arithmetics() -> None:
    """These four arithmetics can be asked for."""
    assert set(ARITHMETICS) == {"float64", "float32", "float16", "bfloat16"}


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_ratio(arithmetic: str) -> None:
    """A ratio is the error over the noise, or over the floor where the noise is below it."""
    least = floor(arithmetic)
    assert ratio(6 * least, 2 * least, arithmetic) == 3
    assert ratio(6 * least, least / 2, arithmetic) == 6
    assert ratio(6 * least, 0.0, arithmetic) == 6
    assert ratio(0.0, 0.0, arithmetic) == 0


@pytest.mark.parametrize(
    ("error", "noise"),
    [(math.nan, 1e-6), (1e-9, math.nan), (math.inf, 1e-6)],
    ids=["error-nan", "noise-nan", "error-inf"],
)
def test_ratio_that_is_no_number_fails(error: float, noise: float) -> None:
    """Neither a port's NaN nor a golden's can pass."""
    assert verdict(ratio(error, noise, "float32")) == "fail"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "pass"),
        (1.0, "pass"),
        (math.nextafter(LIMIT / 2, 0), "pass"),
        (LIMIT / 2, "warn"),
        (math.nextafter(LIMIT / 2, LIMIT), "warn"),
        (LIMIT, "warn"),
        (math.nextafter(LIMIT, math.inf), "fail"),
        (math.inf, "fail"),
        (math.nan, "fail"),
    ],
    ids=["0", "1", "under-half", "half", "over-half", "limit", "over-limit", "inf", "nan"],
)
def test_verdict(value: float, expected: str) -> None:
    """Half the limit warns, the limit itself is allowed, more fails, NaN fails."""
    assert verdict(value) == expected


def test_nan_is_worst() -> None:
    """Among ratios, NaN counts as infinite."""
    assert math.isnan(max([1.0, math.nan, 1e30], key=badness))
    assert math.isnan(max([math.nan, 1.0], key=badness))
