"""The default matrix: every axis has items, and no two items check the same numbers."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("torch")

from conformance.case import Case, select_cases
from conformance.choice import default_modes, executions
from conformance.execution import (
    BACKENDS,
    COMPILE,
    MEMORY,
    SDPA,
    STABILITY,
    Execution,
    items,
)
from conformance.golden import SPLICE, TRACE
from conformance.golden_files import load_golden
from conformance.matrix import CPU, CUDA, EFFICIENT, FLASH, axis_items
from conformance.memory.cases import configurations
from conformance.port import Hello, greet, resolve
from conformance.pytest_items import CUDA_DTYPES, DEFAULT_DTYPES
from conformance.tolerance import EVERY_ARITHMETIC

CASES = select_cases()
PORT = greet(resolve("sd1_impl"))
ON_AXES = axis_items(CASES, PORT)


def numbers_of(case: Case, run: Execution) -> tuple[str, ...]:
    """Name the numbers that an item checks: on a CPU torch's own attention is its flash kernel."""
    backend = SDPA if run.backend == FLASH and run.device == CPU else run.backend
    return (case.id, run.dtype, run.device, backend, run.mode)


def test_no_two_items_check_the_same_numbers() -> None:
    """Neither among the axes nor beside what every case is judged in."""
    runs = executions(DEFAULT_DTYPES, "cpu", "sdpa", default_modes(PORT), PORT)
    held = configurations()
    computed = Counter(numbers_of(*item) for item in [*items(CASES, runs), *ON_AXES, *held])
    assert [key for key, count in computed.items() if count > 1] == []


def test_no_two_items_on_cuda_check_the_same_numbers() -> None:
    """The same where the device has kernels of its own."""
    runs = [Execution(dtype, CUDA) for dtype in CUDA_DTYPES]
    on_cuda = axis_items(CASES, Hello("any", "1", (), EVERY_ARITHMETIC, backends=BACKENDS), CUDA)
    chosen = dict.fromkeys([*items(CASES, runs), *on_cuda])
    computed = Counter(numbers_of(*item) for item in chosen)
    assert [key for key, count in computed.items() if count > 1] == []
    assert EFFICIENT in {run.backend for _, run in on_cuda}


def test_every_axis_has_items() -> None:
    """Every arithmetic, mode and backend; the efficient kernel is CUDA's."""
    runs = [run for _, run in ON_AXES]
    assert {run.dtype for run in runs} >= set(EVERY_ARITHMETIC)
    assert {run.mode for run in runs} >= {SPLICE, TRACE, *STABILITY}
    assert MEMORY not in {run.mode for run in runs}
    assert {run.backend for run in runs} - {""} == set(PORT.backends)
    assert set(BACKENDS) - set(PORT.backends) <= {EFFICIENT}


def test_no_item_is_skipped_by_its_golden() -> None:
    """What the reference cannot judge is no item of the matrix."""
    skipped = []
    for case, run in ON_AXES:
        if case.exact:
            continue
        golden = load_golden(case)
        unspliced = run.mode == SPLICE and run.dtype not in golden.splice_noise
        reason = golden.why_not_offered(run.dtype)
        if unspliced or reason:
            skipped.append(f"{run.item_id(case)}: {reason or 'no noise of splicing'}")
    assert skipped == []


def test_a_port_has_items_of_what_it_offers() -> None:
    """A port of one arithmetic and backend, without `replace`, is compared with itself alone."""
    small = Hello("small", "1", ("unet",), replace=False)
    runs = {run for case, run in axis_items(CASES, small) if case.component == "unet"}
    assert runs == {Execution(mode=mode) for mode in STABILITY}


def test_compiled_items_are_few() -> None:
    """A network takes minutes to compile."""
    assert 0 < sum(run.backend == COMPILE for _, run in ON_AXES) <= 10
