"""One tensor: its bits, its values, its rounding to other dtypes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd1_weights.errors import CheckpointError
from sd1_weights.stored import DTYPES, Stored, bfloat16, finite, widened

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.float32}


def tensor(values, dtype="F32") -> Stored:
    """Return a tensor of some values."""
    wide = np.array(values, FLOATS[dtype])
    bits = bfloat16(wide) if dtype == "BF16" else wide
    return Stored("key", dtype, bits.shape, lambda: bits, "file")


@pytest.mark.parametrize("dtype", FLOATS)
@given(values=st.lists(st.floats(width=16), max_size=5))
def test_finite(dtype, values):
    """What is no number is found from the bits, whatever its sign, and nothing else is."""
    bits = tensor(values, dtype).bits()
    assert finite(bits, dtype) == bool(np.isfinite(np.array(values, np.float64)).all())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "value", [np.nan, -np.nan, np.inf, -np.inf], ids=["nan", "-nan", "inf", "-inf"]
)
def test_where_it_is_no_number(dtype, value):
    """The message says how many, and where the first is."""
    with pytest.raises(CheckpointError, match=r"^file: key holds 1 values .* first at \(1, 0\)$"):
        tensor([[1.0, -2.0], [value, 0.0]], dtype).check_finite()


def test_extremes_are_numbers():
    """The largest of each dtype, of either sign, and the smallest."""
    for dtype in ("F64", "F32", "F16"):
        facts = np.finfo(FLOATS[dtype])
        tensor([facts.max, facts.min, facts.smallest_subnormal, -0.0], dtype).check_finite()
    largest = float(widened(np.array(0x7F7F, "<u2")))
    tensor([largest, -largest], "BF16").check_finite()


def test_integers_are_no_weights():
    """They are always numbers, and never weights."""
    ids = Stored("ids", "I64", (2,), lambda: np.array([0, -1]))
    assert not ids.is_weight
    ids.check_finite()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_widening_is_exact(dtype):
    """A value of a narrow type comes back from float32."""
    values = [0.5, -1.75, 2.0**-14]
    assert tensor(values, dtype).float32().tolist() == values
    assert tensor(values).cast(dtype).float32().tolist() == values


def test_cast_rounds_to_nearest_even():
    """Half way between two values the even one is taken, in bfloat16 too."""
    assert tensor([1 + 2**-9, 1 + 3 * 2**-9]).cast("BF16").float32().tolist() == [1.0, 1 + 2**-7]
    assert tensor([1 + 2**-11]).cast("F16").bits().tolist() == [1.0]


@pytest.mark.parametrize(("dtype", "value"), [("F16", 65_520.0), ("BF16", 3.4e38)])
def test_a_value_that_does_not_fit(dtype, value):
    """It is refused, not made infinite."""
    with pytest.raises(CheckpointError, match=f"file: key has values up to .* {dtype} cannot hold"):
        tensor([1.0, -value]).cast(dtype).bits()


def test_what_was_no_number_before_is_not_blamed_on_the_cast():
    """A NaN goes through a cast: whether it may be there is another question."""
    assert not np.isfinite(tensor([np.nan, 1.0]).cast("F16").bits()).all()


def test_sizes():
    """Elements and bytes are those of shape and dtype, before anything is read."""
    for dtype, code in DTYPES.items():
        stored = Stored("key", dtype, (3, 2), lambda: pytest.fail("read"))
        assert (stored.size, stored.nbytes) == (6, 6 * np.dtype(code).itemsize)
