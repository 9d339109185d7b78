"""The sketch: what it sees, how well it estimates, and that it is what the recipe says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conformance import sketch as sketches
from conformance.recipe import words
from conformance.sketch import BUCKETS, distance, sketch

LENGTH = 3000


def plain_sketch(values: list[float]) -> list[float]:
    """Sketch with a loop and correctly rounded sums, from the generator's words."""
    length = len(values)
    drawn = words(1, f"sketch/{length}", length // 8 + 1).tolist()
    stream = b"".join(word.to_bytes(8, "little") for word in drawn)
    buckets: list[list[float]] = [[] for _ in range(64)]
    for value, byte in zip(values, stream, strict=False):
        buckets[byte % 64].append(-value if byte // 64 % 2 else value)
    return [math.fsum(bucket) for bucket in buckets]


@pytest.fixture
def tensor() -> np.ndarray:
    """Return a tensor with a mean, as activations have."""
    return np.random.default_rng(0).standard_normal(LENGTH) + 0.5


def seen(before: np.ndarray, after: np.ndarray) -> float:
    """Return the estimated over the true distance."""
    return distance(sketch(before), sketch(after)) / float(np.linalg.norm(before - after))


@pytest.mark.parametrize("length", [0, 1, 5, 63, 200])
def test_plain_loop(length: int) -> None:
    """Buckets and signs are those of a plain loop over the generator's bytes."""
    values = np.arange(1.0, length + 1)
    assert sketch(values).tolist() == plain_sketch(values.tolist())


def test_vector() -> None:
    """The sketch of 1..200 is written down, for readers of docs/recipe.md."""
    first = sketch(np.arange(1.0, 201.0))[:8]
    assert first.tolist() == [140, 269, 97, -146, 471, -296, 34, 0]


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64], ids=["float16", "float32", "float64"]
)
def test_sums_in_float64(tensor: np.ndarray, dtype: type) -> None:
    """Sums run in float64 whatever the dtype, and lose less than 3 units in the last place."""
    values = (tensor * 100).astype(dtype)
    exact = np.array(plain_sketch(values.astype(np.float64).tolist()))
    assert sketch(values).dtype == np.float64
    error = np.linalg.norm(sketch(values) - exact) / np.linalg.norm(values.astype(np.float64))
    assert error < 3 * 2.0**-53


def test_long_sums_stay_exact() -> None:
    """A hundred thousand elements cost no more: sums are pairwise, not a running total."""
    values = np.random.default_rng(1).standard_normal(100_000) + 1
    exact = np.array(plain_sketch(values.tolist()))
    assert np.linalg.norm(sketch(values) - exact) / np.linalg.norm(values) < 4 * 2.0**-53


def test_no_overflow_in_half() -> None:
    """Large half-precision values are added in float64."""
    assert np.isfinite(sketch(np.full(LENGTH, 65504, np.float16))).all()


@pytest.mark.parametrize("factor", [1.0, -2.0, 2.0**-20], ids=["plus", "minus-two", "tiny"])
def test_linear(tensor: np.ndarray, factor: float) -> None:
    """The sketch of a sum is the sum of the sketches."""
    other = np.random.default_rng(2).standard_normal(LENGTH)
    combined = sketch(tensor + factor * other)
    assert np.allclose(combined, sketch(tensor) + factor * sketch(other), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "error",
    [
        lambda g: g.standard_normal(LENGTH),
        lambda g: g.standard_normal(LENGTH) + 5,
        lambda g: g.standard_cauchy(LENGTH).clip(-30, 30),
        lambda g: g.choice([-1.0, 1.0], LENGTH),
        lambda g: g.standard_normal(LENGTH) * (np.arange(LENGTH) % 8 == 0),
    ],
    ids=["normal", "biased", "heavy-tailed", "signs", "every-eighth"],
)
def test_estimate_within_factor_two(error) -> None:
    """Of 400 random errors, every one is estimated within a factor of 2, without bias."""
    generator = np.random.default_rng(3)
    zero = np.zeros(LENGTH)
    found = np.array([seen(zero, error(generator)) for _ in range(400)])
    assert found.min() > 0.5
    assert found.max() < 2
    assert np.mean(found**2) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.random.default_rng(4).permutation(x),
        lambda x: x[::-1],
        lambda x: np.roll(x, 1),
        lambda x: x.reshape(50, 60).T.reshape(-1),
        lambda x: -x,
        lambda x: np.where(np.arange(x.size) % 2, x, -x),
        np.zeros_like,
        lambda x: np.full_like(x, x.mean()),
    ],
    ids=["shuffle", "reverse", "roll", "transpose", "negate", "alternate", "zero", "constant"],
)
def test_sees_structure(tensor: np.ndarray, change) -> None:
    """What keeps sums and norms still shows, at its true size within a factor of 2."""
    assert 0.5 < seen(tensor, change(tensor)) < 2


@pytest.mark.parametrize("index", [0, 1, LENGTH // 2, LENGTH - 1])
def test_sees_one_element(tensor: np.ndarray, index: int) -> None:
    """A change of a single element is measured exactly."""
    changed = tensor.copy()
    changed[index] += 1e-3
    assert seen(tensor, changed) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
def test_not_finite_stays_so(tensor: np.ndarray, bad: float) -> None:
    """One NaN or infinity makes the distance NaN or infinite."""
    changed = tensor.copy()
    changed[7] = bad
    assert not np.isfinite(distance(sketch(tensor), sketch(changed)))


def test_reads_in_c_order(tensor: np.ndarray) -> None:
    """Memory layout does not matter, only the order of the indices."""
    matrix = tensor.reshape(50, 60)
    assert np.array_equal(sketch(np.asfortranarray(matrix)), sketch(matrix))
    assert np.array_equal(sketch(matrix), sketch(tensor))


def test_lengths_have_their_own_tables() -> None:
    """Tensors of different length do not share buckets and signs."""
    assert not np.array_equal(sketch(np.ones(LENGTH)), sketch(np.ones(LENGTH + 1)))
    assert sketch(np.ones(LENGTH)).shape == (BUCKETS,)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e250], ids="{:g}".format)
def test_float64_is_rounded_once(scale: float) -> None:
    """Of any size, sums of float64 that nearly cancel are those of exact addition."""
    generator = np.random.default_rng(5)
    values = (generator.standard_normal(LENGTH) + 1e6 * generator.choice([-1, 1], LENGTH)) * scale
    exact = np.array(plain_sketch(values.tolist()))
    assert np.all(np.abs(sketch(values) - exact) <= np.spacing(np.abs(exact)))


def test_largest_values_do_not_overflow(tensor: np.ndarray) -> None:
    """Values that are too large to be split are added as they are."""
    assert np.allclose(sketch(tensor * 2.0**1000) * 2.0**-1000, sketch(tensor), atol=1e-12)


def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch, tensor: np.ndarray) -> None:
    """A tensor is summed the same whatever is taken at a time."""
    whole = sketch(tensor)
    monkeypatch.setattr(sketches, "_CHUNK", 7)
    assert np.array_equal(sketch(tensor), whole)
    assert np.allclose(sketch(tensor.astype(np.float32)), whole, rtol=0, atol=1e-5)


def test_fewer_buckets_are_folded(tensor: np.ndarray) -> None:
    """A bucket of 32 holds what two of 64 hold."""
    folded = sketch(tensor)[:32] + sketch(tensor)[32:]
    assert np.allclose(sketch(tensor, 32), folded, rtol=0, atol=1e-12)
