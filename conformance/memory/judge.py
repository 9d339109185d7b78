"""Judging how much a port holds.

Three numbers are asked for: what is *predicted* on shapes alone, what *tensors* hold as they are
computed, and, on a CUDA device, what its *allocator* gave out.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from conformance.errors import UnsupportedError
from conformance.memory.budgets import RECORD, REFERENCE, budgets, torch_version
from conformance.memory.cases import config_id
from conformance.memory.footprint import Footprint
from conformance.memory.sizes import mib
from conformance.port import EXEC, resolve
from conformance.result import Result

if TYPE_CHECKING:
    from conformance.case import Case
    from conformance.execution import Execution
    from conformance.runner import Runner

MEMORY_FAULT = "memory"
"""The kind of first divergence that this module finds."""

PEAK = "peak"
"""Stands for the whole network where no single block holds too much."""

WEIGHTS = "weights"
"""Stands for parameters and buffers, which the ceiling leaves to the port."""

_CPU = "cpu"
_predictors: WeakKeyDictionary[Runner, Any] = WeakKeyDictionary()


def judge(runner: Runner, case: Case, execution: Execution) -> Result:
    """Judge what a port holds in one configuration.

    Args:
        runner: Holds the port.
        case: One of `cases.memory_cases`.
        execution: Its mode is `memory`. On the CPU tensors are counted where the network is small;
            on a CUDA device they and the allocator are, whatever the size.

    Returns:
        The result, `memory` filled in.

    Raises:
        UnsupportedError: Nothing can be said of this port or configuration; says why.
    """
    adapter = _adapter(runner.port_spec)
    if runner not in _predictors:
        _predictors[runner] = adapter.Predictor(runner.port)
    predictor = _predictors[runner]
    found: Footprint = predictor.predict(case, execution)
    key = config_id(case, execution)
    budget, ceiling = budgets().of(key, predictor.port.name), reference(case, execution)
    if budget is None and ceiling is None:
        message = f"nothing is recorded of {key} for torch {torch_version()}: {RECORD}"
        raise UnsupportedError(message)
    result = Result(case, execution, "pass", memory=_facts(found, budget, ceiling))
    divergence = exceeded(found, budget, ceiling)
    if divergence is None:
        divergence = _as_run(adapter, runner, case, execution, found, result)
    if divergence is not None:
        result.verdict = "fail"
        result.first_divergence = {"case": result.item_id, **divergence}
        result.message = f"{divergence['probe']}: {divergence['hint']}"
    elif not budgets().knows():
        result.message = f"not compared to the byte: torch {torch_version()} is not recorded"
    return result


def _adapter(port_spec: str) -> Any:
    """Import the torch side.

    Raises:
        UnsupportedError: There is no torch here, or the port runs in another process.
    """
    if port_spec.startswith(EXEC):
        raise UnsupportedError("what another process holds cannot be seen from here")
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("memory is predicted with torch, which is not installed")
    return importlib.import_module("conformance.adapters.memory")


def reference(case: Case, execution: Execution) -> Footprint | None:
    """Return what the reference holds: recorded, or else predicted where it is installed.

    Returns:
        None where it cannot be asked, or has no such way to compute.
    """
    recorded = budgets().of(config_id(case, execution), REFERENCE)
    if recorded is not None or budgets().knows() or not importlib.util.find_spec("diffusers"):
        return recorded
    adapter = importlib.import_module("conformance.adapters.memory")
    try:
        own: Footprint = adapter.footprint_of(resolve(REFERENCE), case, execution)
    except UnsupportedError:
        return None
    return own


def exceeded(
    found: Footprint, budget: Footprint | None, ceiling: Footprint | None
) -> dict[str, Any] | None:
    """Say where a port holds what it should not.

    Args:
        found: What it holds.
        budget: What it held when it was recorded, which it must meet to the byte.
        ceiling: What the reference holds, which it must not exceed.

    Returns:
        Of a recorded port the first block in execution order that holds more than its budget, else
        the first that holds less, else the peak, else the weights. Of others the first block in
        which more is held than the reference ever holds: what it does otherwise below that is its
        own affair. None where all is as it should be.
    """
    above = ceiling is not None and found.peak > ceiling.peak
    if budget is not None and (found.peak, found.blocks) != (budget.peak, budget.blocks):
        name = _differing(found, budget)
        held, allowed = _at(found, name), _at(budget, name)
        how = "more" if held > allowed else "less"
        hint = (
            f"{mib(held)}, {abs(held - allowed):,} bytes {how} than recorded; the peak is "
            f"{mib(found.peak)}, at {found.place}"
        )
        hint += "" if above else f"; if that is meant, `{RECORD}`"
    elif budget is not None and found.weights != budget.weights:
        name, held, allowed = WEIGHTS, found.weights, budget.weights
        hint = (
            f"parameters and buffers take {mib(held)}, recorded were {mib(allowed)}; if that is "
            f"meant, `{RECORD}`"
        )
    elif ceiling is not None and above:
        name = next((n for n, size in found.blocks.items() if size > ceiling.peak), PEAK)
        held, allowed = _at(found, name), ceiling.peak
        hint = (
            f"{mib(held)}, where {REFERENCE} holds {mib(ceiling.blocks.get(name, allowed))} and "
            f"never more than {mib(allowed)}; the peak is {mib(found.peak)}, at {found.place}"
        )
    else:
        return None
    return _divergence(found, name, held, allowed, hint)


def _differing(found: Footprint, budget: Footprint) -> str:
    """Return the first block that holds more than its budget, else less, else the peak."""
    more = [name for name, size in found.blocks.items() if size > budget.blocks.get(name, size)]
    less = [name for name, size in found.blocks.items() if size < budget.blocks.get(name, size)]
    if more:
        return more[0]
    return less[0] if less and found.peak <= budget.peak else PEAK


def _at(found: Footprint, name: str) -> int:
    return found.blocks.get(name, found.peak)


def _divergence(found: Footprint, name: str, held: int, allowed: int, hint: str) -> dict[str, Any]:
    blocks = list(found.blocks)
    before = blocks[: blocks.index(name)] if name in blocks else blocks
    return {
        "probe": name,
        "after": before[-1] if before else None,
        "ratio": held / allowed if allowed else float("inf"),
        "limit": 1.0,
        "kind": MEMORY_FAULT,
        "hint": hint,
    }


def _as_run(
    adapter: Any,
    runner: Runner,
    case: Case,
    execution: Execution,
    found: Footprint,
    result: Result,
) -> dict[str, Any] | None:
    """Hold a prediction against the port as it runs; None where it is right."""
    on_cpu = execution.device == _CPU
    if on_cpu and case.full_size:
        return None
    component = runner.load(case, execution)
    adapter.require_traceable(component)
    counted: Footprint = adapter.footprint(component, case, case.inputs())
    result.memory["tensors"] = counted.peak
    if on_cpu:
        if counted.peak == found.peak:
            return None
        hint = (
            f"tensors hold {mib(counted.peak)} at {counted.place}, predicted were "
            f"{mib(found.peak)}, {abs(counted.peak - found.peak):,} bytes apart"
        )
        return _divergence(found, PEAK, counted.peak, found.peak, hint)
    return _on_cuda(adapter, component, case, execution, found, result)


def _on_cuda(
    adapter: Any,
    component: Any,
    case: Case,
    execution: Execution,
    found: Footprint,
    result: Result,
) -> dict[str, Any] | None:
    """Hold the allocator's peak against the prediction and the allowance of the device."""
    peak = adapter.allocated(component, case, case.inputs(), execution.device)
    result.memory["allocator"] = peak
    name = adapter.device_class(execution.device)
    allowance = budgets().allowances.get(torch_version(), {}).get(name)
    if allowance is None:
        message = (
            f"the allocator's peak is {mib(peak)}, predicted {mib(found.peak)}: no allowance is "
            f"recorded for {name} and torch {torch_version()}: {RECORD} --device {execution.device}"
        )
        raise UnsupportedError(message)
    if peak <= found.peak + allowance:
        return None
    hint = (
        f"the allocator gave out {mib(peak)}, {mib(peak - found.peak)} more than predicted; "
        f"{mib(allowance)} are allowed on {name}"
    )
    return _divergence(found, PEAK, peak, found.peak + allowance, hint)


def _facts(found: Footprint, budget: Footprint | None, ceiling: Footprint | None) -> dict[str, Any]:
    """Return what a case line tells."""
    return found.as_json() | {
        "ceiling": ceiling.peak if ceiling else None,
        "budget": replace(budget, blocks=_differing_blocks(found, budget)).as_json()
        if budget
        else None,
    }


def _differing_blocks(found: Footprint, budget: Footprint) -> dict[str, int]:
    """Return what the budget allows the blocks that hold something else."""
    return {name: size for name, size in budget.blocks.items() if size != found.blocks.get(name)}
