"""Outputs too large to store whole: a sketch and the edges still see what is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from conformance.compare import judge_kept, judge_large
from conformance.golden import Golden
from conformance.judge import judge_outputs, watching
from conformance.large import EDGE, WHOLE_LIMIT, Large, edges
from conformance.recipe import digest
from conformance.sketch import sketch

SHAPE = (2, 77, 48)
NOISE = np.array([1e-6, 9.0, 5e-6])
"""Of the whole, of the worst channel (which is not judged) and of the worst element."""


@pytest.fixture
def truth() -> np.ndarray:
    """Return a truth."""
    return np.random.default_rng(0).standard_normal(SHAPE)


def judge(value: np.ndarray, truth: np.ndarray) -> SimpleNamespace:
    """Judge a large output in float32."""
    return judge_large("last_hidden_state", value, Large.of(truth), NOISE, "float32")


def test_edges_by_hand() -> None:
    """The first and last eight rows, and the first and last eight columns."""
    array = np.arange(20 * 30).reshape(1, 20, 30)
    rows, columns = edges(array)
    assert EDGE == 8
    assert rows.shape == (1, 16, 30)
    assert columns.shape == (1, 20, 16)
    assert rows[0, :, 0].tolist() == [30 * i for i in (*range(8), *range(12, 20))]
    assert columns[0, 0].tolist() == [*range(8), *range(22, 30)]


def test_edges_of_a_small_array() -> None:
    """Where there are fewer than sixteen, they overlap."""
    rows, columns = edges(np.arange(12).reshape(3, 4))
    assert rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 2
    assert columns.tolist() == [[4 * i + j for j in (0, 1, 2, 3) * 2] for i in range(3)]


def test_what_is_kept(truth: np.ndarray) -> None:
    """Shape, norm, sketch and edges, in float64 whatever came."""
    kept = Large.of(truth.astype(np.float16))
    assert (kept.shape, kept.rows.dtype, kept.columns.dtype) == (SHAPE, np.float64, np.float64)
    half = truth.astype(np.float16).astype(np.float64)
    assert kept.norm == np.linalg.norm(half)
    assert np.array_equal(kept.buckets, sketch(half))
    assert np.array_equal(kept.rows[:, :8], half[:, :8])
    assert np.array_equal(kept.columns[..., 8:], half[..., -8:])


def test_errors_by_hand() -> None:
    """The whole is measured by the norm, the worst element at the edges by the RMS."""
    truth = np.full((1, 20, 30), 2.0)
    value = truth.copy()
    value[0, 0, 15] += 3  # in a row at the edge
    value[0, 10, 29] -= 4  # in a column at the edge
    value[0, 10, 15] += 5  # in the middle: the sketch alone sees it
    whole, element = Large.of(truth).errors(Large.of(value))
    assert element == 4 / 2
    assert whole == pytest.approx(math.sqrt(3**2 + 4**2 + 5**2) / (2 * math.sqrt(600)), rel=0.5)


def test_right_output_passes(truth: np.ndarray) -> None:
    """The truth itself, rounded to float32, passes; its error is an estimate."""
    record = judge(truth.astype(np.float32), truth)
    assert (record.verdict, record.kind, record.note) == ("pass", "output", "")
    assert record.ratio < 0.1
    assert (record.shape, record.approximate) == (list(SHAPE), True)
    assert record.rms == pytest.approx(np.sqrt(np.mean(truth**2)))
    assert record.max_abs == pytest.approx(np.abs(truth).max())


def put(place: tuple[int, ...], value: float):
    """Add to one element."""

    def change(array):
        array = array.copy()
        array[place] += value
        return array

    return change


WRONG = {
    "permuted": lambda a: np.random.default_rng(1).permutation(a.reshape(-1)).reshape(a.shape),
    "rows-permuted": lambda a: np.random.default_rng(1).permutation(a, axis=1),
    "zero": np.zeros_like,
    "sign-flipped": np.negative,
    "batch-reversed": lambda a: a[::-1],
    "mirrored": lambda a: a[..., ::-1],
    "shifted": lambda a: np.roll(a, 1, axis=1),
    "constant": lambda a: np.full_like(a, a.mean()),
    "one-percent": lambda a: 1.01 * a,
    "corner": put((0, 0, 0), 1e-3),
    "last": put((-1, -1, -1), 1e-3),
    "first-row": put((1, 0, 20), 1e-3),
    "last-column": put((0, 40, 47), 1e-3),
    "middle": put((0, 40, 20), 1e-1),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_output_fails(truth: np.ndarray, change) -> None:
    """What keeps the norm, or changes one element, fails."""
    assert judge(change(truth), truth).verdict == "fail"


def test_one_element_at_the_edge(truth: np.ndarray) -> None:
    """An element that the whole does not see fails as the worst element, measured exactly."""
    record = judge(put((1, 3, 5), 3e-5)(truth), truth)
    rms = np.sqrt(np.mean(truth**2))
    assert (record.verdict, record.note, record.noise) == ("fail", "worst element", NOISE[2])
    assert record.err == pytest.approx(3e-5 / rms, rel=1e-6)
    assert not record.approximate


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 40, 20)], ids=["edge", "middle"])
def test_not_finite_fails(truth: np.ndarray, place: tuple[int, ...], bad: float) -> None:
    """A single NaN or infinity fails, and is counted."""
    record = judge(put(place, bad)(truth), truth)
    assert (record.verdict, record.note) == ("fail", "1 of 7392 values are not finite")
    assert not math.isfinite(record.ratio)


@pytest.mark.parametrize(
    ("times", "verdict"), [(1.9, "pass"), (2.1, "warn"), (3.9, "warn"), (4.1, "fail")]
)
def test_verdict_follows_error(truth: np.ndarray, times: float, verdict: str) -> None:
    """An error of so many times the noise gets the verdict that the limit says."""
    error = np.random.default_rng(1).standard_normal(SHAPE) * 1e-6
    one = judge(truth + error, truth).ratio
    record = judge_kept(
        "x", Large.of(truth + error * times / one), Large.of(truth), NOISE, "float32"
    )
    assert record.verdict == verdict
    assert record.ratio == pytest.approx(times)


@pytest.fixture
def kept(golden: Golden, truth: np.ndarray) -> Golden:
    """Return a golden with one whole and one large output, as the text encoder's have."""
    noise = {"last_hidden_state": NOISE, "pooler_output": NOISE}
    return replace(
        golden,
        outputs={"pooler_output": truth[:, 0]},
        large={"last_hidden_state": Large.of(truth)},
        output_names=["last_hidden_state", "pooler_output"],
        output_noise={"float32": noise},
    )


def test_round_trip(kept: Golden, truth: np.ndarray) -> None:
    """Every field of what is kept comes back, bit for bit, beside the whole outputs."""
    data = kept.to_bytes()
    after = Golden.from_bytes(data, "here")
    assert after.to_bytes() == data
    assert list(after.outputs) == ["pooler_output"]
    before, found = kept.large["last_hidden_state"], after.large["last_hidden_state"]
    assert (found.shape, found.norm) == (before.shape, before.norm)
    for part in ("buckets", "rows", "columns"):
        assert digest(getattr(found, part)) == digest(getattr(before, part)), part
    assert list(after.output_shapes.items()) == [
        ("last_hidden_state", SHAPE),
        ("pooler_output", (2, 48)),
    ]
    assert after.output_norm("last_hidden_state") == np.linalg.norm(truth)
    assert after.output_norm("pooler_output") == np.linalg.norm(truth[:, 0])


def test_a_golden_of_large_outputs_alone_is_not_exact(kept: Golden) -> None:
    """Exact are integers; a golden without any whole output is none."""
    assert not replace(kept, outputs={}, output_names=["last_hidden_state"]).exact
    assert not kept.exact


def test_each_output_is_judged_as_it_is_kept(kept: Golden, truth: np.ndarray) -> None:
    """Whole and large outputs are judged in the order in which they are computed."""
    value = truth.astype(np.float32)
    right = {"pooler_output": value[:, 0], "last_hidden_state": value}
    records = judge_outputs(kept, right, "float32")
    assert [(r.name, r.verdict, r.approximate) for r in records] == [
        ("last_hidden_state", "pass", True),
        ("pooler_output", "pass", False),
    ]
    wrong = right | {"last_hidden_state": value[:, :76]}
    notes = {r.name: r.note for r in judge_outputs(kept, wrong, "float32")}
    assert notes["last_hidden_state"] == "shape (2, 76, 48), expected (2, 77, 48)"


def test_watching_a_large_output(kept: Golden, truth: np.ndarray) -> None:
    """If observing changes a large output by more than noise, the result says so."""
    plain = {"last_hidden_state": truth}
    assert watching(plain, {"last_hidden_state": truth * (1 + 5e-7)}, kept, "float32") == ""
    seen = watching(plain, {"last_hidden_state": truth * (1 + 3e-6)}, kept, "float32")
    assert seen == (
        "watching, or the second call, changes output last_hidden_state by 3e-06, more than noise "
        "1e-06: `--mode repeat` tells which"
    )


def test_limit() -> None:
    """The published text encoder's last hidden state is large; the small sizes' is whole."""
    assert 77 * 768 > WHOLE_LIMIT > 3 * 77 * 72
