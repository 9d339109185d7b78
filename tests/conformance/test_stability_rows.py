"""Rows of two runs, compared: bits, units in the last place, units of noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conformance.case import find_case
from conformance.golden_files import load_golden
from conformance.stability_rows import Ruler, Unit, differing, rows_of, ulps, units_of

ONE = np.float32(1)
UP = np.nextafter(ONE, np.float32(2))


def ruler(*, exact: bool, arithmetic: str = "float32") -> Ruler:
    """Return a ruler for a probe `p` of norm 2 and noise 1e-6."""
    unit = Unit(norm=2.0, size=4, noise=1e-6)
    return Ruler({"p": unit}, arithmetic, frozenset({"out", "timesteps"}), exact=exact)


def row(*values: float, dtype: str = "f4") -> dict[str, np.ndarray]:
    """Return a probe `p`."""
    return {"p": np.array(values, dtype)}


@pytest.mark.parametrize(
    ("own", "other", "arithmetic", "text"),
    [
        ((1, 2), (UP, 2), "float32", "1 ulp"),
        ((-1e-45, 2), (1e-45, 2), "float32", "2 ulps"),
        ((0.0, 2), (-0.0, 2), "float32", "0 ulps"),
        ((1, 2), (1 + 2**-7, 2 + 2**-5), "bfloat16", "2 ulps"),
        ((1, 2), (math.nan, 2), "float32", "values that are not finite"),
    ],
)
def test_units_in_the_last_place(own, other, arithmetic, text) -> None:
    """They are counted through zero, and in the steps of the arithmetic."""
    own, other = np.array(own, "f4"), np.array(other, "f4")
    assert ulps(own, other, arithmetic) == text


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_units_of_other_dtypes(dtype) -> None:
    """Half and double are counted in their own steps, from end to end."""
    one = np.ones(1, dtype)
    assert ulps(one, np.nextafter(one, one + one), "float16") == "1 ulp"
    largest = np.full(1, np.finfo(dtype).max, dtype)
    assert int(ulps(-largest, largest, "float64").split()[0].replace(",", "")) > 2**15


def test_bits() -> None:
    """NaN equals itself, and zero is not minus zero."""
    a = np.array([np.nan, 0.0, 1.0])
    assert differing(a, a.copy()).tolist() == [False, False, False]
    assert differing(a, np.array([np.nan, -0.0, 1.0])).tolist() == [False, True, False]
    assert differing(np.array(["a", "b"]), np.array(["a", "c"])).tolist() == [False, True]


def test_exact_rows() -> None:
    """What has other bits fails, and says how many, by how much and in units of noise."""
    (record,) = ruler(exact=True).compare(row(1, 1, 1, 1), row(1, 1, 1, 1))
    assert (record.verdict, record.ratio) == ("pass", 0.0)
    (record,) = ruler(exact=True).compare(row(1, 1, 1, 1), row(1, UP, 1, 1))
    assert (record.verdict, record.ratio) == ("fail", math.inf)
    assert record.note == "1 of 4 elements differ, by up to 1 ulp; error 0.06 times the noise"


def test_noisy_rows() -> None:
    """A difference is divided by the oracle's norm and its noise: the limit is as ever."""
    before = row(1, 1, 1, 1, dtype="f8")
    for error, verdict in ((2e-6, "pass"), (2 * 3e-6, "warn"), (2 * 5e-6, "fail")):
        after = row(1 + error, 1, 1, 1, dtype="f8")
        (record,) = ruler(exact=False).compare(before, after)
        assert (record.verdict, record.ratio) == (verdict, pytest.approx(error / 2 / 1e-6))
    assert record.note == "1 of 4 elements differ"


def test_a_part_has_its_share_of_the_norm() -> None:
    """Of one sample of four the norm is half the whole one's."""
    (record,) = ruler(exact=False).compare(row(1, dtype="f8"), row(1 + 1e-6, dtype="f8"))
    assert record.ratio == pytest.approx(1.0)


@pytest.mark.parametrize("exact", [True, False])
def test_what_cannot_be_compared(exact) -> None:
    """A row that is gone, or has another shape, is wrong in any mode."""
    (gone,) = ruler(exact=exact).compare(row(1, 2), {})
    (other,) = ruler(exact=exact).compare(row(1, 2), row(1, 2, 3))
    assert (gone.verdict, gone.note) == ("fail", "it is not shown")
    assert (other.verdict, other.note) == ("fail", "shape (3,), expected (2,)")


def test_integers_are_exact_in_every_mode() -> None:
    """Timesteps and ids have no noise; what nothing is known of is not judged."""
    rows = {"timesteps": np.array([981, 961]), "table": np.ones(2)}
    later = {"timesteps": np.array([981, 960]), "table": np.zeros(2)}
    (record,) = ruler(exact=False).compare(rows, later)
    assert (record.name, record.kind, record.verdict) == ("timesteps", "output", "fail")


def test_steps_are_rows() -> None:
    """Outputs that hold every step are taken apart, and stand in execution order."""
    case = find_case("scheduler/ddim/-/base")
    golden = load_golden(case)
    steps, *shape = golden.output_shapes["samples"]
    outputs = {name: np.zeros((steps, *shape), "f4") for name in ("samples", "model_inputs")}
    rows = rows_of(case, golden, outputs | {"timesteps": np.arange(steps)}, {})
    assert list(rows)[:3] == ["timesteps", "model_inputs#0", "samples#0"]
    assert len(rows) == 1 + 2 * steps
    assert rows["samples#0"].shape == tuple(shape)


def test_units() -> None:
    """Probes and outputs have the golden's norm and noise; a half type its own."""
    golden = load_golden(find_case("unet/tiny/base"))
    units = units_of(golden, "bfloat16")
    assert units["conv_in"].noise == pytest.approx(
        golden.noise["bfloat16"][golden.probes.index("conv_in")]
    )
    assert units["sample"].norm == pytest.approx(np.linalg.norm(golden.outputs["sample"]))
    assert set(golden.probes) < set(units)
