"""Executions: how a case is run, and that each item is there once."""

from __future__ import annotations

import pytest

from conformance.case import find_case, select_cases
from conformance.execution import EXACT, Execution, items

UNET = find_case("unet/tiny/base")
TOKENIZER = find_case("tokenizer/-/plain")


@pytest.mark.parametrize(
    ("execution", "item_id"),
    [
        (Execution(), "unet/tiny/base[float32-cpu-sdpa-trace]"),
        (Execution("bfloat16", "cuda:0"), "unet/tiny/base[bfloat16-cuda:0-sdpa-trace]"),
        (EXACT, "unet/tiny/base[int64-cpu]"),
        (Execution("bf16-matmul", "cpu", "channels_last", "batch"),
         "unet/tiny/base[bf16-matmul-cpu-channels_last-batch]"),
        (Execution("policy:fp16-norm32", "cuda:1", "", "repeat"),
         "unet/tiny/base[policy:fp16-norm32-cuda:1-repeat]"),
        (Execution("float16", "cpu", "by_sample", "memory"),
         "unet/tiny/base[float16-cpu-by_sample-memory]"),
    ],
    ids=["default", "chosen", "exact", "hyphen", "no-backend", "saving"],
)  # fmt: skip
def test_item_id(execution: Execution, item_id: str) -> None:
    """An id names the case and how it is run, and can be read back; what is empty is left out."""
    assert execution.item_id(UNET) == item_id
    assert find_case(item_id) == UNET
    assert Execution.of_item(item_id) == Execution.of_item(f"{item_id}::conv_in") == execution


def test_exact_cases_know_one_way() -> None:
    """Whatever is asked for, the tokenizer runs in int64; networks run as asked."""
    asked = Execution("float16", "cuda")
    assert asked.for_case(TOKENIZER) == EXACT
    assert asked.for_case(UNET) is asked


def test_schedulers_have_an_arithmetic_and_a_device() -> None:
    """Attention and modes do not concern a scheduler: they are not in its items' ids."""
    case = find_case("scheduler/ddim/-/base")
    asked = Execution("float64", "cuda", "math", "trace").for_case(case)
    assert asked.item_id(case) == "scheduler/ddim/-/base[float64-cuda]"


def test_what_compares_a_port_with_itself() -> None:
    """Stability modes concern whatever computes; there a scheduler's id names its mode."""
    asked = Execution("float32", "cpu", "math", "repeat")
    for case_id, item_id in (
        ("scheduler/ddim/-/base", "scheduler/ddim/-/base[float32-cpu-repeat]"),
        ("tokenizer/-/plain", "tokenizer/-/plain[int64-cpu-repeat]"),
        ("unet/tiny/base", "unet/tiny/base[float32-cpu-math-repeat]"),
    ):
        case = find_case(case_id)
        assert asked.for_case(case).item_id(case) == item_id


def test_every_item_once() -> None:
    """Every network has an item per execution, the tokenizer one; the cases keep their order."""
    runs = [Execution("float64"), Execution("float32"), Execution("float64")]
    ids = [run.item_id(case) for case, run in items([TOKENIZER, UNET], runs)]
    assert ids == [
        "tokenizer/-/plain[int64-cpu]",
        "unet/tiny/base[float64-cpu-sdpa-trace]",
        "unet/tiny/base[float32-cpu-sdpa-trace]",
    ]


def test_a_network_is_run_in_one_go() -> None:
    """Its cases come together, one arithmetic after the other, however they were given."""
    quiet, inpaint = find_case("unet/tiny/quiet"), find_case("unet/tiny-inpaint/base")
    runs = iter([Execution("float64"), Execution("float32")])
    found = [(c.id, e.dtype) for c, e in items(iter([UNET, inpaint, quiet]), runs)]
    assert found == [
        ("unet/tiny/base", "float64"),
        ("unet/tiny/quiet", "float64"),
        ("unet/tiny/base", "float32"),
        ("unet/tiny/quiet", "float32"),
        ("unet/tiny-inpaint/base", "float64"),
        ("unet/tiny-inpaint/base", "float32"),
    ]


def test_items_of_the_default_matrix() -> None:
    """No item of the default matrix is there twice."""
    cases = select_cases()
    runs = [Execution("float32"), Execution("float64")]
    ids = [run.item_id(case) for case, run in items(cases, runs)]
    exact = sum(case.exact for case in cases)
    assert len(ids) == len(set(ids)) == 2 * len(cases) - exact
