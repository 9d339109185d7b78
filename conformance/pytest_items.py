"""The matrix as parameters of tests: what `sd1_item` and its like are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from conformance.blocks import block_names
from conformance.case import Case, select_cases
from conformance.choice import asks_memory, default_modes, executions
from conformance.cli_common import split
from conformance.errors import SuiteError
from conformance.execution import COMPILE, FRESH, MEMORY, SDPA, STABILITY, Execution, items
from conformance.golden import SPLICE
from conformance.matrix import CPU, CUDA, axis_items
from conformance.memory.cases import is_in_full, memory_cases
from conformance.memory_choice import Wanted
from conformance.port import BUILTIN, Port, close, greet, resolve
from conformance.requirements import adding
from conformance.scenarios import BASE
from conformance.traces import no_splice

DEFAULT_DTYPES = "float32,float64"
CUDA_DTYPES = ("float32", "bfloat16", "float16")

TINY = "tiny"
AXES = ("--sd1-dtype", "--sd1-device", "--sd1-backend", "--sd1-mode")
"""Options that choose how cases are run, in place of the axes of the default matrix."""

_PORT = pytest.StashKey[Port]()


def port_of(config: pytest.Config) -> Port:
    """Return the port under test, made once."""
    if _PORT not in config.stash:
        config.stash[_PORT] = resolve(config.getoption("--sd1-port"))
    return config.stash[_PORT]


def selection(config: pytest.Config) -> tuple[list[Case], list[Execution]]:
    """Return the cases and executions that the options choose."""
    cases, hello, packs = _cases(config), greet(port_of(config)), packs_of(config)
    defaults = (DEFAULT_DTYPES, CPU, SDPA, default_modes(hello, packs))
    dtype, device, backend, mode = (
        config.getoption(axis) or own for axis, own in zip(AXES, defaults, strict=True)
    )
    return cases, executions(dtype, device, backend, mode, hello, packs)


def _cases(config: pytest.Config) -> list[Case]:
    return select_cases(variants=split(config.getoption("--sd1-variant")))


def close_port(config: pytest.Config) -> None:
    """End what the port has started."""
    if _PORT in config.stash:
        close(config.stash[_PORT])


def packs_of(config: pytest.Config) -> Path | None:
    """Return the folder of trace packs, or None."""
    folder = config.getoption("--sd1-traces")
    return Path(folder) if folder else None


def parameters(config: pytest.Config, make: Callable[..., list[Any]]) -> list[Any]:
    """Make the parameters of a fixture; one skipped parameter where there cannot be any."""
    port = config.getoption("--sd1-port")
    if port in BUILTIN and importlib.util.find_spec("torch") is None:
        return [_skipped(f"port {port} needs torch: {adding(['torch'])}")]
    try:
        return make(config)
    except SuiteError as error:
        raise pytest.UsageError(str(error)) from error


def _skipped(reason: str) -> Any:
    return pytest.param(None, id="not-here", marks=pytest.mark.skip(reason))


def _items(config: pytest.Config) -> list[Any]:
    chosen = items(*selection(config))
    return [_item(case, run) for case, run in chosen if run.mode != SPLICE]


def _blocks(config: pytest.Config) -> list[Any]:
    chosen = [(case, run) for case, run in items(*selection(config)) if run.mode == SPLICE]
    if not chosen:
        return [_skipped(f"splice mode is not among the modes, or impossible: {no_splice()}")]
    return [
        pytest.param(
            (case, run, block), id=f"{run.item_id(case)}::{block}", marks=_marks(case, run)
        )
        for case, run in chosen
        for block in block_names(case)
    ]


def _axes(config: pytest.Config) -> list[Any]:
    given = [option for option in AXES if config.getoption(option)]
    if given:
        return [_skipped(f"{', '.join(given)} chose: test_layers and test_golden run that")]
    return [_item(*item) for item in axis_items(_cases(config), greet(port_of(config)))]


def _memory_items(config: pytest.Config) -> list[Any]:
    return _held(config, CPU)


def _cuda_memory_items(config: pytest.Config) -> list[Any]:
    if given := [option for option in AXES if config.getoption(option)]:
        return [_skipped(f"{', '.join(given)} chose: test_memory runs that")]
    if CUDA not in greet(port_of(config)).devices:
        return [_no_cuda()]
    return _held(config, CUDA)


def _held(config: pytest.Config, device: str) -> list[Any]:
    """Make an item of every memory configuration that the options leave."""
    dtype, chosen, backend, mode = map(config.getoption, AXES)
    given = [option for option in AXES if config.getoption(option)]
    if given and not asks_memory(mode):
        return [_skipped(f"{', '.join(given)} chose, and mode {MEMORY} is not among the modes")]
    variants = split(config.getoption("--sd1-variant")) or ["*"]
    known = {case.variant.name for case in memory_cases()}
    fitting = [glob for glob in variants if any(fnmatchcase(name, glob) for name in known)]
    if not fitting:
        return [_skipped(f"mode {MEMORY} knows none of the variants: {', '.join(sorted(known))}")]
    wanted = Wanted(None, fitting, None, None, dtype, chosen or device, backend, alone=False)
    return [_item(*item) for item in wanted.items(greet(port_of(config)))]


def _no_cuda() -> Any:
    return _skipped("no CUDA device is visible to the port")


def _cuda_items(config: pytest.Config) -> list[Any]:
    cases, hello = _cases(config), greet(port_of(config))
    if CUDA not in hello.devices:
        return [_no_cuda()]
    runs = [Execution(dtype, CUDA) for dtype in CUDA_DTYPES]
    chosen = [*items(cases, runs), *axis_items(cases, hello, CUDA)]
    return [_item(case, run) for case, run in dict.fromkeys(chosen) if not case.exact]


def _item(case: Case, run: Execution) -> Any:
    return pytest.param((case, run), id=run.item_id(case), marks=_marks(case, run))


def _live_cases(config: pytest.Config) -> list[Any]:
    cases = [case for case in _cases(config) if not case.refused]
    return [
        pytest.param(c, id=c.id, marks=[_group(c), *([pytest.mark.full] if _is_long(c) else [])])
        for c in cases
    ]


JUDGED = ("sd1_block", "sd1_item", "sd1_axis", "sd1_cuda_item", "sd1_memory", "sd1_cuda_memory")
"""Fixtures whose parameters are items of the matrix."""

PARAMETERS: dict[str, Callable[[pytest.Config], list[Any]]] = {
    "sd1_block": _blocks,
    "sd1_item": _items,
    "sd1_axis": _axes,
    "sd1_cuda_item": _cuda_items,
    "sd1_memory": _memory_items,
    "sd1_cuda_memory": _cuda_memory_items,
    "sd1_case": _live_cases,
}
"""By fixture, what makes its parameters."""


_FEW_CALLS = 10


def _marks(case: Case, run: Execution) -> list[pytest.MarkDecorator]:
    """Return the marks of an item: its group, and `full` where others show the same in less time.

    Pipelines differ from their base in what they do, which float32 shows; what float64 adds,
    constants and casts, is the same in all of them and costs as much as all else together. A
    pipeline compared with itself is its networks many times over. The steps of a long run are
    those of a short one once each is set right; that they add up to no more is the trace's affair.
    """
    exact = run.dtype == "float64" and (case.scenario.name, case.variant.size) != (BASE, TINY)
    long = exact or run.mode in STABILITY or (run.mode == SPLICE and _is_long(case))
    # New processes serve all components: there is one pair of them, on one worker.
    group = pytest.mark.xdist_group(FRESH) if run.mode == FRESH else _group(case)
    held = run.mode == MEMORY and is_in_full(case, run)
    return [
        group,
        *([pytest.mark.full] if held or (case.is_pipeline and long) else []),
        *([pytest.mark.compile] if run.backend == COMPILE else []),
    ]


def _is_long(case: Case) -> bool:
    """Say whether the oracle takes seconds to compute a pipeline whole."""
    return case.is_pipeline and case.scenario.calls > _FEW_CALLS


def _group(case: Case) -> pytest.MarkDecorator:
    """Keep one component and variant on one worker, so that its networks are built once."""
    return pytest.mark.xdist_group(f"{case.component}/{case.variant.name}")
