"""The timestep embedding is judged entry by entry, beside its norm."""

from dataclasses import replace

import numpy as np
import pytest

from conformance.case import find_case
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.judge import ISLAND, TIME_PROJ, judge_probes, time_proj_values
from conformance.tolerance import LIMIT

CASES = ("unet/tiny/t999", "unet/odd/tsamples", "unet/sd1/t999", "unet/tiny/t0.55")


def exact(case_id: str) -> np.ndarray:
    """Return the embedding of a case by its formula, float64."""
    case = find_case(case_id)
    return time_proj_values(case, case.inputs())


def judged(case_id: str, value: np.ndarray, arithmetic: str, golden: Golden | None = None):
    """Judge an embedding alone."""
    golden = load_golden(find_case(case_id)) if golden is None else golden
    (record,) = judge_probes(golden, {TIME_PROJ: value}, arithmetic)
    return record


def slow_ones(embedding: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the slowest cosine."""
    wrong = embedding.copy()
    wrong[:, embedding.shape[1] // 2 - 1] *= factor
    return wrong


@pytest.mark.parametrize("case_id", CASES)
def test_the_formula_is_within_the_noise(case_id):
    """Goldens hold the embedding whole, and the rounded formula is honest at every entry."""
    golden = load_golden(find_case(case_id))
    assert np.allclose(golden.embedding, exact(case_id), rtol=0, atol=1e-12)
    assert golden.embedding_noise.shape == golden.embedding.shape
    assert judged(case_id, exact(case_id).astype(np.float32), "float32").ratio <= LIMIT / 2
    assert judged(case_id, exact(case_id), "float64").verdict == "pass"


@pytest.mark.parametrize("case_id", CASES)
def test_a_slow_sinusoid_is_seen(case_id):
    """An error of 1e-4 in one entry is named, though beside the fast ones the norm hardly moves."""
    value = slow_ones(exact(case_id), 1.0001).astype(np.float32)
    record = judged(case_id, value, "float32")
    assert record.verdict == "fail"
    assert record.note == f"entry {value.shape[1] // 2 - 1} of {value.shape[1]}"
    golden = replace(load_golden(find_case(case_id)), embedding=None)
    assert judged(case_id, value, "float32", golden).ratio < record.ratio


def test_a_float32_embedding_in_float64_is_a_warning():
    """Where every entry is within float32 noise; an entry beyond it is a fault."""
    island = exact("unet/tiny/t999").astype(np.float32).astype(np.float64)
    record = judged("unet/tiny/t999", island, "float64")
    assert (record.verdict, record.note) == ("warn", ISLAND)
    record = judged("unet/tiny/t999", slow_ones(island, 1.0001), "float64")
    assert record.verdict == "fail"
    assert record.note != ISLAND


def test_not_finite():
    """NaN in one entry fails."""
    value = exact("unet/tiny/t999").astype(np.float32)
    value[0, 3] = np.nan
    record = judged("unet/tiny/t999", value, "float32")
    assert record.verdict == "fail"
    assert "not finite" in record.note


def test_half_types_are_judged_by_the_norm():
    """What is rounded to a half type has no float32 entries to be judged by."""
    value = exact("unet/tiny/t999").astype(np.float16)
    assert judged("unet/tiny/t999", value, "float16").verdict == "pass"


def test_it_survives_the_file():
    """Values and noise are read back as they were written."""
    golden = load_golden(find_case("unet/tiny/t999"))
    again = Golden.from_bytes(golden.to_bytes(), "here")
    assert np.array_equal(again.embedding, golden.embedding)
    assert np.array_equal(again.embedding_noise, golden.embedding_noise)
