"""Writing goldens from the oracle, and checking them against it again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance import oracle, spec
from conformance.adapters.torch_module import DTYPES, TorchComponent, observe, to_numpy
from conformance.case import Case
from conformance.compare import METRICS, relative_error, whole_errors
from conformance.errors import GoldenError
from conformance.golden import FORMAT, SOURCE, WHOLE_LIMIT, Golden, golden_path, manifest_path
from conformance.honest import (
    CALIBRATION,
    HALF_ULP_RUNS,
    HELD_OUT,
    Evaluation,
    half_ulp_evaluation,
)
from conformance.recipe import SEED, digest
from conformance.sketch import distance, sketch
from conformance.tolerance import FLOAT64_FROM_FLOAT32, LIMIT, ratio
from conformance.variants import Variant

Say = Callable[[str], None]


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

    with torch.no_grad(), evaluation.around(component.module):
        batches = _split(case.inputs()) if evaluation.split else [case.inputs()]
        callback = collect if evaluation.split else compare
        with observe(component.module, truth.probes, callback):
            for inputs in batches:
                outputs = component.call(component.module, component.tensors(inputs))
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
    batch = inputs["sample"].shape[0]
    return [
        {name: array if array.ndim == 0 else array[i : i + 1] for name, array in inputs.items()}
        for i in range(batch)
    ]


def calibrations(component: TorchComponent, case: Case, arithmetic: str) -> list[Evaluation]:
    """Return the calibration evaluations of a case in an arithmetic.

    The timestep embedding is drawn 16 times with half-ulp moves; the two draws that are furthest
    from the truth are carried through the network.
    """
    chosen = [e for e in CALIBRATION if arithmetic in e.arithmetics]
    if case.full_size:
        chosen = [e for e in chosen if arithmetic in e.at_full_size]
    if case.inputs()["sample"].shape[0] == 1:
        chosen = [e for e in chosen if not e.split]
    if arithmetic == "float32":
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


class Reference:
    """The reference of one variant, built once per arithmetic."""

    def __init__(self, component: str, variant: Variant) -> None:
        """Keep the recipe of the weights; networks are built when asked for."""
        self.component = component
        self.variant = variant
        self.weights = variant.weights(component)
        self._built: tuple[str, TorchComponent] | None = None

    def build(self, arithmetic: str) -> TorchComponent:
        """Return the reference in an arithmetic; only the last one is kept."""
        if self._built is None or self._built[0] != arithmetic:
            self._built = None
            builder = oracle.BUILDERS[self.component]
            self._built = (arithmetic, builder(self.variant, self.weights, DTYPES[arithmetic]))
        return self._built[1]

    def truth(self, case: Case) -> oracle.Truth:
        """Evaluate the oracle on a case."""
        return oracle.evaluate(self.build("float64"), case, case_probes(case))


def case_probes(case: Case) -> list[str]:
    """Return the probes that a case records: all, or named blocks and the time path."""
    names = spec.probe_names(case.component, case.variant.size)
    if case.every_probe:
        return list(names)
    blocks = spec.block_names(case.component)
    return [n for n in names if n in blocks or n.startswith("time_")]


def arithmetics(case: Case) -> tuple[str, ...]:
    """Return the arithmetics in which a case is offered: dense inputs round in half types."""
    if case.variant.regime == "dense":
        return ("float64", "float32")
    return ("float64", "float32", "bfloat16", "float16")


def record_variant(cases: list[Case], say: Say) -> dict[str, Golden]:
    """Record all cases of one component and variant.

    Args:
        cases: Cases of one component and variant.
        say: Told each step, in one line.

    Returns:
        Goldens by case id.

    Raises:
        GoldenError: The oracle is not float64, or an honest evaluation exceeds half the limit.
    """
    reference = Reference(cases[0].component, cases[0].variant)
    truths = {}
    for case in cases:
        truths[case.id] = reference.truth(case)
        say(f"{case.id}: oracle")
    noise: dict[str, dict[str, Errors]] = {case.id: {} for case in cases}
    for arithmetic in ("float64", "float32", "bfloat16", "float16"):
        for case in cases:
            if arithmetic not in arithmetics(case):
                continue
            component = reference.build(arithmetic)
            truth = truths[case.id]
            runs = [
                measure(component, case, truth, e)
                for e in calibrations(component, case, arithmetic)
            ]
            noise[case.id][arithmetic] = worst_of(runs)
            _refuse_unfair(case, arithmetic, component, truth, noise[case.id])
            say(f"{case.id}: {arithmetic}, {len(runs)} evaluations")
    return {case.id: _golden(case, truths[case.id], noise[case.id]) for case in cases}


def worst_of(runs: Iterable[Errors]) -> Errors:
    """Return the worst error at each probe and output; not finite counts as infinite."""
    runs = list(runs)

    def worst(values: Iterable[float]) -> float:
        return max(v if np.isfinite(v) else float("inf") for v in values)

    return Errors(
        {name: worst(r.probes[name] for r in runs) for name in runs[0].probes},
        {
            name: np.array([worst(r.outputs[name][m] for r in runs) for m in range(len(METRICS))])
            for name in runs[0].outputs
        },
    )


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
    return max(ratios)


def _refuse_unfair(
    case: Case,
    arithmetic: str,
    component: TorchComponent,
    truth: oracle.Truth,
    noise: dict[str, Errors],
) -> None:
    """Hold one evaluation out and refuse the golden if it exceeds half the limit."""
    if arithmetic != "float32" or case.full_size:
        return
    for evaluation in HELD_OUT:
        found, where = worst_ratio(
            measure(component, case, truth, evaluation), noise_of(arithmetic, noise), arithmetic
        )
        if not found <= LIMIT / 2:
            message = (
                f"{case.id}: honest evaluation {evaluation.name!r} has ratio {found:.2f} at "
                f"{where}, over half the limit ({LIMIT / 2:g}): the golden is refused"
            )
            raise GoldenError(message)


def _golden(case: Case, truth: oracle.Truth, noise: dict[str, Errors]) -> Golden:
    names = list(truth.probes)
    outputs = {name: to_numpy(tensor) for name, tensor in truth.outputs.items()}
    for name, array in outputs.items():
        if array.size > WHOLE_LIMIT:
            message = f"{case.id}: output {name} has {array.size} elements, over {WHOLE_LIMIT}"
            raise GoldenError(message)
    units = {arithmetic: noise_of(arithmetic, noise) for arithmetic in noise}
    recipes = case.scenario.recipes(case.variant)
    return Golden(
        case=case.id,
        hunts=case.scenario.hunts,
        inputs={
            name: {
                "recipe": recipes[name].name if name in recipes else "literal",
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "sha256": digest(array),
            }
            for name, array in case.inputs().items()
        },
        outputs=outputs,
        probes=names,
        shapes=[tuple(truth.probes[name].shape) for name in names],
        sketches=np.stack([sketch(to_numpy(truth.probes[name])) for name in names]),
        norms=np.array([float(truth.probes[name].norm()) for name in names]),
        max_abs=np.array([float(truth.probes[name].abs().max()) for name in names]),
        noise={a: np.array([u.probes[name] for name in names]) for a, u in units.items()},
        output_noise={a: u.outputs for a, u in units.items()},
        provenance=provenance(),
    )


def provenance() -> dict[str, str]:
    """Return where a golden came from: oracle versions, machine, commit."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607 - the user's git
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        **oracle.versions(),
        "commit": commit,
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
    }


def write(goldens: dict[str, Golden]) -> None:
    """Write goldens and bring the manifest and the lock up to date, atomically file by file.

    Args:
        goldens: By case id.
    """
    path = manifest_path()
    manifest: dict[str, Any] = {"format": FORMAT, "source": SOURCE, "seed": SEED, "goldens": {}}
    if path.exists():
        manifest = json.loads(path.read_text(encoding="utf-8"))
    for case_id, golden in goldens.items():
        data = golden.to_bytes()
        target = golden_path(case_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, data)
        manifest["goldens"][case_id] = {
            "file": f"{case_id}.safetensors",
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "hunts": golden.hunts,
            "inputs": {name: facts["sha256"] for name, facts in golden.inputs.items()},
            "provenance": golden.provenance,
        }
    manifest["goldens"] = dict(sorted(manifest["goldens"].items()))
    _replace(path, (json.dumps(manifest, indent=1) + "\n").encode())
    lock = "".join(f"{case_id}\n" for case_id in manifest["goldens"])
    _replace(path.with_name("cases.lock"), lock.encode())


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def disagreement(old: Golden, new: Golden) -> str | None:
    """Compare a stored golden with one derived again from the oracle.

    Args:
        old: As stored.
        new: As derived now.

    Returns:
        None where they agree: input digests, names and shapes exactly, outputs and sketches within
        the limit times float64 noise, recorded noise within a factor of 2. Otherwise what differs.
    """
    if old.inputs != new.inputs:
        return "inputs differ"
    if old.probes != new.probes or old.shapes != new.shapes:
        return "probe names or shapes differ"
    aged = age(old, new.outputs, dict(zip(new.probes, new.sketches, strict=True)))
    if aged is not None:
        return aged
    for arithmetic, noise in old.noise.items():
        unit = np.maximum(noise, 2.0**-30 if arithmetic == "float32" else 1e-300)
        change = np.maximum(new.noise[arithmetic], 1e-300) / unit
        low, high = float(np.min(change)), float(np.max(change))
        if not (low >= 1 / 2 and high <= 2):  # noqa: PLR2004 - the contract's factor of 2
            worst = int(np.argmax(np.abs(np.log(change))))
            return (
                f"{arithmetic} noise at {old.probes[worst]} was {noise[worst]:.3g}, is now "
                f"{new.noise[arithmetic][worst]:.3g}: more than a factor of 2"
            )
    return None


def age(old: Golden, outputs: dict[str, np.ndarray], sketches: dict[str, np.ndarray]) -> str | None:
    """Say where a stored golden disagrees with the oracle of today, or None.

    Args:
        old: As stored.
        outputs: float64 outputs of the live oracle.
        sketches: Sketches of the live oracle's probes.

    Returns:
        The first disagreement over the limit, in float64 noise.
    """
    for i, name in enumerate(old.probes):
        error = relative_error(distance(sketches[name], old.sketches[i]), float(old.norms[i]))
        found = ratio(error, float(old.noise["float64"][i]), "float64")
        if not found <= LIMIT:
            return f"probe {name} is {found:.3g} float64 noise away from the installed oracle"
    for name, truth in old.outputs.items():
        errors = whole_errors(outputs[name], truth)
        for metric, error, unit in zip(
            METRICS, errors, old.output_noise["float64"][name], strict=True
        ):
            found = ratio(float(error), float(unit), "float64")
            if not found <= LIMIT:
                return f"output {name} ({metric}) is {found:.3g} float64 noise away"
    return None


def age_of(golden: Golden, truth: oracle.Truth) -> str | None:
    """Say where a golden disagrees with what the oracle computed just now, or None."""
    outputs = {name: to_numpy(tensor) for name, tensor in truth.outputs.items()}
    return age(golden, outputs, {n: sketch(to_numpy(t)) for n, t in truth.probes.items()})


def live_age(case: Case, golden: Golden) -> str | None:
    """Evaluate the installed oracle on a case and say where the golden disagrees with it."""
    return age_of(golden, Reference(case.component, case.variant).truth(case))
