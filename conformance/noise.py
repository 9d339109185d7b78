"""Noise: what the honest evaluations of the reference differ from the truth by."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from conformance import oracle
from conformance.adapters.torch_module import TorchComponent, observe, to_numpy
from conformance.case import Case
from conformance.compare import METRICS, relative_error, whole_errors
from conformance.honest import CALIBRATION, HALF_ULP_RUNS, Evaluation, half_ulp_evaluation
from conformance.tolerance import FLOAT64_FROM_FLOAT32, badness, ratio


class Errors:
    """Errors of one evaluation: by probe, and by output and metric."""

    def __init__(self, probes: dict[str, float], outputs: dict[str, np.ndarray]) -> None:
        """Keep both."""
        self.probes = probes
        self.outputs = outputs


def measure(
    component: TorchComponent, case: Case, truth: oracle.Truth, evaluation: Evaluation
) -> Errors:
    """Evaluate the reference once and measure it against the truth.

    Args:
        component: The unmodified reference in some arithmetic.
        case: The case.
        truth: What the oracle computed.
        evaluation: How to compute.

    Returns:
        Relative errors; not finite where the evaluation is not.
    """
    pieces: dict[str, list[Tensor]] = {}
    collected: dict[str, list[Tensor]] = {}
    probes: dict[str, float] = {}

    def compare(name: str, tensor: Tensor) -> None:
        wanted = truth.probes[name]
        difference = float((tensor.to(torch.float64) - wanted).norm())
        probes[name] = relative_error(difference, float(wanted.norm()))

    def collect(name: str, tensor: Tensor) -> None:
        pieces.setdefault(name, []).append(tensor.clone())

    guard = oracle.Float64Guard() if component.dtype is torch.float64 else nullcontext()
    inputs = case.inputs()
    batches = [component.tensors(b) for b in (_split(inputs) if evaluation.split else [inputs])]
    with torch.no_grad(), guard, evaluation.around(component.module):
        callback = collect if evaluation.split else compare
        with observe(component.module, truth.probes, callback):
            for tensors in batches:
                outputs = component.call(component.module, tensors)
                for name, tensor in outputs.items():
                    collected.setdefault(name, []).append(tensor)
    for name, parts in pieces.items():
        compare(name, torch.cat(parts))
    errors = {
        name: whole_errors(to_numpy(torch.cat(parts)), to_numpy(truth.outputs[name]))
        for name, parts in collected.items()
    }
    return Errors(probes, errors)


def _split(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Split a batch into batches of one; a 0-d timestep goes to each."""
    batch = batch_size(inputs)
    return [
        {name: array if array.ndim == 0 else array[i : i + 1] for name, array in inputs.items()}
        for i in range(batch)
    ]


def batch_size(inputs: dict[str, np.ndarray]) -> int:
    """Return the number of samples: rows of the first input."""
    return int(next(iter(inputs.values())).shape[0])


def calibrations(component: TorchComponent, case: Case, arithmetic: str) -> list[Evaluation]:
    """Return the calibration evaluations of a case in an arithmetic.

    The timestep embedding is drawn 16 times with half-ulp moves; the two draws that are furthest
    from the truth are carried through the network.
    """
    chosen = [
        e for e in CALIBRATION if arithmetic in e.arithmetics and case.component in e.components
    ]
    if case.full_size:
        chosen = [e for e in chosen if arithmetic in e.at_full_size]
    if batch_size(case.inputs()) == 1:
        chosen = [e for e in chosen if not e.split]
    if arithmetic == "float32" and hasattr(component.module, "time_proj"):
        chosen += _worst_half_ulps(component, case)
    return chosen


def _worst_half_ulps(component: TorchComponent, case: Case) -> list[Evaluation]:
    timestep = torch.tensor(case.inputs()["timestep"]).reshape(-1)
    exact = oracle.float64_time_proj(component.module)(timestep.double())
    evaluations = [half_ulp_evaluation(seed) for seed in range(HALF_ULP_RUNS)]
    errors = []
    for evaluation in evaluations:
        with evaluation.around(component.module), torch.no_grad():
            errors.append(float((component.module.time_proj(timestep).double() - exact).norm()))
    order = sorted(range(HALF_ULP_RUNS), key=lambda i: -errors[i])
    return [evaluations[i] for i in order[:2]]


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
    return Errors(probes, with_parts(outputs))


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
        {
            n: np.maximum(e, scaled.outputs[n] * FLOAT64_FROM_FLOAT32)
            for n, e in measured.outputs.items()
        },
    )


def worst_ratio(errors: Errors, noise: Errors, arithmetic: str) -> tuple[float, str]:
    """Return the worst ratio of an evaluation and where it is."""
    ratios = [(ratio(e, noise.probes[n], arithmetic), n) for n, e in errors.probes.items()]
    for name, values in errors.outputs.items():
        for metric, error, unit in zip(METRICS, values, noise.outputs[name], strict=True):
            ratios.append((ratio(float(error), float(unit), arithmetic), f"{name} ({metric})"))
    return max(ratios, key=lambda row: badness(row[0]))
