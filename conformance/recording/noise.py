"""Noise: what the honest evaluations of the reference differ from the truth by."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance import oracle
from conformance.adapters.torch_module import Callback, to_numpy
from conformance.case import Case
from conformance.compare import METRICS, relative_error, whole_errors
from conformance.errors import GoldenError
from conformance.oracle import Component
from conformance.recording.honest import Evaluation
from conformance.recording.honest_training import pooled
from conformance.sampling import SCHEDULER_STEPS, TABLES, TIMESTEPS
from conformance.tables import entry_errors, table_arithmetic
from conformance.tolerance import FLOAT64_FROM_FLOAT32, badness, floor, ratio
from conformance.training import LOSS, is_gradient, scale_name


@dataclass
class Errors:
    """Errors of one evaluation.

    Attributes:
        probes: Relative L2 error by probe, outputs that are sketched among them.
        outputs: By whole output, those of the three metrics.
        tables: By table, the relative error of each entry.
    """

    probes: dict[str, float]
    outputs: dict[str, np.ndarray]
    tables: dict[str, np.ndarray] = field(default_factory=dict)


def measure(
    component: Component,
    case: Case,
    truth: oracle.Truth,
    evaluation: Evaluation,
    *,
    splice: bool = False,
) -> Errors:
    """Evaluate the reference once and measure it against the truth.

    Args:
        component: The unmodified reference in some arithmetic.
        case: The case.
        truth: What the oracle computed.
        evaluation: How to compute.
        splice: Overwrite each probe with the truth once it was measured: errors do not add up.

    Returns:
        Relative errors; not finite where the evaluation is not.
    """
    errors = Errors({}, {})
    pieces: dict[str, list[Tensor]] = {}
    collected: dict[str, list[Tensor]] = {}

    def note(name: str, tensor: Tensor) -> None:
        if evaluation.split:
            pieces.setdefault(name, []).append(tensor.clone())
        else:
            _enter_probe(errors, name, tensor, truth)

    def replacing(rows: slice) -> Callback:
        def replace(name: str, tensor: Tensor) -> Tensor:
            note(name, tensor)
            wanted = truth.probes[name]
            return (wanted[rows] if wanted.ndim else wanted).to(tensor.dtype)

        return replace

    guard = oracle.Float64Guard() if component.dtype is torch.float64 else nullcontext()
    batches = _batches(component, case, evaluation)
    with torch.no_grad(), guard, evaluation.around(component.module):
        for i, tensors in enumerate(batches):
            rows = slice(i, i + 1) if evaluation.split else slice(None)
            callback = replacing(rows) if splice else note
            outputs = component.traced(tensors, list(truth.probes), callback)
            for name, tensor in outputs.items():
                collected.setdefault(name, []).append(tensor)
    for name, parts in pieces.items():
        _enter_probe(errors, name, _joined(case, name, parts), truth)
    for name, parts in collected.items():
        value, wanted = to_numpy(_joined(case, name, parts)), to_numpy(truth.outputs[name])
        _enter_output(errors, name, value, wanted)
    return errors


def _batches(component: Component, case: Case, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the inputs of a case as tensors: all together, or sample by sample."""
    inputs = case.inputs()
    batches = _split(case, inputs) if evaluation.split else [inputs]
    return [component.tensors(batch) for batch in batches]


def _joined(case: Case, name: str, parts: list[Tensor]) -> Tensor:
    """Put the samples of a batch together again; what has no axis is the same in all.

    A loss is a mean over the batch, and so are its gradients.
    """
    if case.is_training and (name == LOSS or is_gradient(name)):
        return torch.stack(parts).mean(0)
    return torch.cat(parts) if parts[0].ndim else parts[0]


def _enter_probe(errors: Errors, name: str, tensor: Tensor, truth: oracle.Truth) -> None:
    wanted = truth.probes[name]
    if name in TABLES:
        errors.tables[name] = entry_errors(name, to_numpy(tensor), to_numpy(wanted))
        return
    difference = float((tensor.to(torch.float64) - wanted).norm())
    scale = truth.probes[scale_name(name)].to(torch.float64)
    errors.probes[name] = relative_error(difference, float(scale.norm()))


def _enter_output(errors: Errors, name: str, value: np.ndarray, wanted: np.ndarray) -> None:
    """Enter the errors of an output; of timesteps entry by entry, where they have fractions.

    Raises:
        GoldenError: Whole timesteps are others in an honest evaluation: no port could be judged.
    """
    if name == TIMESTEPS:
        if wanted.dtype.kind == "f":
            errors.tables[name] = entry_errors(name, value, wanted)
        elif not np.array_equal(value, wanted):
            message = "an honest evaluation has other timesteps, and they are whole numbers"
            raise GoldenError(message)
    elif wanted.dtype.kind == "f":
        errors.outputs[name] = whole_errors(value, wanted)


_STEPS_FIRST = ("model_outputs", "noise")
"""Inputs of schedulers and pipelines whose first axis is the step, not the sample."""


def _split(case: Case, inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Split a batch into batches of one; what has no axis goes to each."""
    first = steps_first(case)

    def sample(name: str, array: np.ndarray, i: int) -> np.ndarray:
        if array.ndim == 0:
            return array
        return array[:, i : i + 1] if name in first else array[i : i + 1]

    return [
        {name: sample(name, array, i) for name, array in inputs.items()}
        for i in range(batch_size(inputs))
    ]


def steps_first(case: Case) -> tuple[str, ...]:
    """Return the inputs of a case whose first axis is the step."""
    return _STEPS_FIRST if case.is_scheduler or case.is_pipeline else ()


def batch_size(inputs: dict[str, np.ndarray]) -> int:
    """Return the number of samples: rows of the first input that has an axis."""
    return next(len(array) for array in inputs.values() if array.ndim)


def worst_of(runs: Iterable[Errors]) -> Errors:
    """Return the worst error at each probe and output; not finite counts as infinite."""
    runs = list(runs)

    def worst(values: Iterable[float]) -> float:
        return max(v if np.isfinite(v) else float("inf") for v in values)

    outputs = {
        name: np.array([worst(r.outputs[name][m] for r in runs) for m in range(len(METRICS))])
        for name in runs[0].outputs
    }
    probes = {name: worst(r.probes[name] for r in runs) for name in runs[0].probes}
    tables = {
        name: with_neighbours(np.max([r.tables[name] for r in runs], axis=0))
        for name in runs[0].tables
    }
    return Errors(pooled(at_least_median(probes)), with_parts(outputs), tables)


NEIGHBOURS = 8


def with_neighbours(entries: np.ndarray) -> np.ndarray:
    """Give each entry of a table the worst noise of the 8 entries before and after it.

    They are computed in the same way, and one entry is too few to take a worst of.
    """
    padded = np.pad(np.nan_to_num(entries, nan=np.inf), NEIGHBOURS, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1).max(axis=-1)


def at_least_median(probes: dict[str, float]) -> dict[str, float]:
    """Give each step of a scheduler, and each timestep, at least the median noise of all.

    A step is one or two coefficients, too few to take a worst of: by luck they may all be exact.
    """
    steps: dict[str, list[float]] = {}
    for name, error in probes.items():
        steps.setdefault(name.partition("#")[0], []).append(error)
    return {
        name: max(error, float(np.median(steps[term]))) if term in _FEW_NUMBERS else error
        for name, error in probes.items()
        for term in [name.partition("#")[0]]
    }


_FEW_NUMBERS = (*SCHEDULER_STEPS, "timestep")


def with_parts(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give `pooler_output` at least the noise of the rows that it is taken from.

    It is one row of `last_hidden_state`, 64 elements in `tiny`: too few to take a worst of. Any
    row is as noisy, so the noise is that of the worst row and of the worst element of all.
    """
    if "pooler_output" not in outputs:
        return outputs
    _, row, element = outputs["last_hidden_state"]  # axis 1, whose worst is taken, is the tokens'
    least = np.array([row, element, element])
    return outputs | {"pooler_output": np.maximum(outputs["pooler_output"], least)}


def noise_of(arithmetic: str, noise: dict[str, Errors]) -> Errors:
    """Return the noise of an arithmetic; float64's is at least float32's, scaled.

    The oracle is one float64 evaluation itself, so what it shares with others does not show as
    their error; float32 noise times the ratio of the roundoffs has no such blind spot.
    """
    if arithmetic != "float64" or "float32" not in noise:
        return noise[arithmetic]
    measured, scaled = noise["float64"], noise["float32"]
    return Errors(
        {n: max(e, scaled.probes[n] * FLOAT64_FROM_FLOAT32) for n, e in measured.probes.items()},
        _at_least(measured.outputs, scaled.outputs),
        _at_least(measured.tables, scaled.tables),
    )


def _at_least(
    measured: dict[str, np.ndarray], scaled: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {n: np.maximum(e, scaled[n] * FLOAT64_FROM_FLOAT32) for n, e in measured.items()}


def worst_ratio(errors: Errors, noise: Errors, arithmetic: str) -> tuple[float, str]:
    """Return the worst ratio of an evaluation and where it is."""
    ratios = [(ratio(e, noise.probes[n], arithmetic), n) for n, e in errors.probes.items()]
    for name, values in errors.outputs.items():
        for metric, error, unit in zip(METRICS, values, noise.outputs[name], strict=True):
            ratios.append((ratio(float(error), float(unit), arithmetic), f"{name} ({metric})"))
    for name, entries in errors.tables.items():
        units = np.maximum(noise.tables[name], floor(table_arithmetic(arithmetic)))
        ratios.append((float(np.max(entries / units)), name))
    return max(ratios, key=lambda row: badness(row[0]))
