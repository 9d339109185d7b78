"""Running the tokenizer's cases: ids are right or wrong, whatever arithmetic is asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from conformance.case import Case, find_case
from conformance.execution import Execution, items
from conformance.golden_files import load_golden
from conformance.runner import Runner


@pytest.fixture
def plain() -> Case:
    """Return a case of the tokenizer."""
    return find_case("tokenizer/-/plain")


def token_ids(change, dtype=np.int64):
    """Answer with a changed copy of the right ids of `plain`."""
    stored = load_golden(find_case("tokenizer/-/plain")).outputs["input_ids"]
    return lambda *_: ({"input_ids": change(stored.copy()).astype(dtype)}, {})


def wrong_cat(ids):
    """Take another animal."""
    ids[0, 5] = 1929
    return ids


def test_one_wrong_id_fails(judge, plain: Case) -> None:
    """One wrong id fails, by an infinite ratio; both token lists stand side by side."""
    result = judge(token_ids(wrong_cat), plain)
    (record,) = result.records
    assert (result.verdict, record.ratio) == ("fail", math.inf)
    assert result.message == (
        "first wrong at input_ids, ratio inf, limit 4: 1 of 77 differ, first at place 5 of row 0; "
        f"this text hunts: {plain.scenario.hunts}"
    )
    assert result.first_divergence["case"] == "tokenizer/-/plain[int64-cpu]"
    assert result.first_divergence["kind"] == "fault"
    assert result.detail.splitlines() == [
        "text 0, 'a photo of a cat': 1 of 77 ids differ",
        "  place  expected                       got",
        "      3     539 of</w>                     539 of</w>",
        "      4     320 a</w>                      320 a</w>",
        ">     5    2368 cat</w>                   1929 dog</w>",
    ]
    assert result.as_json()["detail"] == result.detail


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda ids: ids[:, :-1], "shape (1, 76), expected (1, 77)"),
        (np.ravel, "shape (77,), expected (1, 77)"),
        (lambda ids: np.repeat(ids, 2, axis=0), "shape (2, 77), expected (1, 77)"),
    ],
    ids=["short", "flat", "twice"],
)
def test_ids_of_wrong_shape_fail(judge, plain: Case, change, note: str) -> None:
    """Rows that are not 77 long, or too many, are a shape failure; nothing stands side by side."""
    result = judge(token_ids(change), plain)
    assert (result.verdict, result.records[0].note, result.detail) == ("fail", note, "")
    assert note in result.message


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint64])
def test_ids_of_wrong_dtype_are_an_error(judge, plain: Case, dtype: type) -> None:
    """Ids are int64 by contract, however right they are."""
    result = judge(token_ids(np.copy, dtype), plain)
    assert result.verdict == "error"
    told = f"input_ids is {dtype.__name__}, expected int64: return it as int64: .astype(np.int64)"
    assert told in result.message


def test_texts_changed_in_place_are_an_error(judge, plain: Case) -> None:
    """The texts are the suite's as all inputs are."""

    def answer(inputs, *_):
        inputs["text"][0] = "dogs"
        return token_ids(np.copy)()

    result = judge(answer, plain)
    assert (result.verdict, "in place" in result.message) == ("error", True)


def test_tokenizer_has_neither_weights_nor_probes(fake, judge, plain: Case) -> None:
    """It is loaded once without weights and runs once: there is nothing to watch or supply."""
    port = fake()
    port.offers = replace(port.offers, probes=True, arithmetics=("float16",), devices=("cuda",))
    assert judge(port, plain, dtype="float64", device="cuda").verdict == "pass"
    ((component, variant, dtype, device, weights),) = port.loads
    assert (component, variant, dtype, device) == ("tokenizer", "-", "int64", "cpu")
    assert len(weights) == weights.parameter_count() == 0
    ((inputs, probes, replaced),) = port.runs
    assert (inputs["text"].tolist(), probes, replaced) == (["a photo of a cat"], (), None)


def test_tokenizer_runs_once_whatever_is_asked(fake, plain: Case, case: Case) -> None:
    """Two arithmetics are two runs of a network and one of the tokenizer."""
    runs = [Execution("float64"), Execution("float32")]
    runner = Runner(fake())
    seen = [runner.run(c, run).item_id for c, run in items([plain, case], runs)]
    assert seen == [
        "tokenizer/-/plain[int64-cpu]",
        "unet/tiny/base[float64-cpu-sdpa-trace]",
        "unet/tiny/base[float32-cpu-sdpa-trace]",
    ]
