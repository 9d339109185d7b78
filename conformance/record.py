"""Recording goldens from the oracle (`golden record`): the one place where they are written."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance import oracle, spec
from conformance.adapters.torch_module import DTYPES, TorchComponent, to_numpy
from conformance.case import Case
from conformance.errors import GoldenError
from conformance.golden import FORMAT, SOURCE, Golden, golden_path, manifest_path
from conformance.honest import FLOATS, HELD_OUT
from conformance.large import WHOLE_LIMIT, Large
from conformance.noise import Errors, calibrations, measure, noise_of, worst_of, worst_ratio
from conformance.recipe import SEED, digest
from conformance.sketch import BUCKETS, sketch
from conformance.tolerance import ARITHMETICS, LIMIT
from conformance.variants import Variant

Say = Callable[[str], None]


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
            component = oracle.network(
                self.component, self.variant, self.weights, DTYPES[arithmetic]
            )
            self._built = (arithmetic, component)
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
    """Return the arithmetics of a case: half types would round dense or raised values."""
    raised = any(recipe.mean for recipe in case.scenario.recipes(case.variant).values())
    if case.variant.regime == "dense" or raised:
        return FLOATS
    return ARITHMETICS


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
    if cases[0].exact:
        return {case.id: _exact_golden(case) for case in cases}
    reference = Reference(cases[0].component, cases[0].variant)
    truths = {}
    for case in cases:
        truths[case.id] = reference.truth(case)
        say(f"{case.id}: oracle")
    noise: dict[str, dict[str, Errors]] = {case.id: {} for case in cases}
    for arithmetic in ARITHMETICS:
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
    units = {arithmetic: noise_of(arithmetic, noise) for arithmetic in noise}
    return Golden(
        case=case.id,
        hunts=case.scenario.hunts,
        inputs=input_facts(case),
        outputs={n: array for n, array in outputs.items() if array.size <= WHOLE_LIMIT},
        output_names=list(outputs),
        large={n: Large.of(array) for n, array in outputs.items() if array.size > WHOLE_LIMIT},
        probes=names,
        shapes=[tuple(truth.probes[name].shape) for name in names],
        sketches=np.stack([sketch(to_numpy(truth.probes[name])) for name in names]),
        norms=np.array([float(truth.probes[name].norm()) for name in names]),
        max_abs=np.array([float(truth.probes[name].abs().max()) for name in names]),
        noise={a: np.array([u.probes[name] for name in names]) for a, u in units.items()},
        output_noise={a: u.outputs for a, u in units.items()},
        provenance=provenance(),
    )


def _exact_golden(case: Case) -> Golden:
    """Record what the reference's tokenizer makes of a case's texts."""
    return Golden(
        case=case.id,
        hunts=case.scenario.hunts,
        inputs=input_facts(case),
        outputs={"input_ids": oracle.token_ids(case.inputs()["text"].tolist())},
        probes=[],
        shapes=[],
        sketches=np.zeros((0, BUCKETS)),
        norms=np.zeros(0),
        max_abs=np.zeros(0),
        noise={},
        output_noise={},
        provenance=provenance(),
    )


def input_facts(case: Case) -> dict[str, dict[str, Any]]:
    """Return what a golden says of its inputs; the value itself where no recipe makes it."""
    recipes = case.scenario.recipes(case.variant)
    facts: dict[str, dict[str, Any]] = {}
    for name, array in case.inputs().items():
        facts[name] = {
            "recipe": recipes[name].name if name in recipes else "literal",
            "dtype": "str" if array.dtype.kind == "U" else array.dtype.name,
            "shape": list(array.shape),
            "sha256": digest(array),
        }
        if name not in recipes:
            facts[name]["value"] = array.tolist()
    return facts


@cache
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
    _replace(path, _manifest_text(manifest).encode())
    lock = "".join(f"{case_id}\n" for case_id in manifest["goldens"])
    _replace(path.with_name("cases.lock"), lock.encode())


def _manifest_text(manifest: dict[str, Any]) -> str:
    """Write one golden a line, so that a difference between two manifests can be read."""
    head = {key: value for key, value in manifest.items() if key != "goldens"}
    lines = [f"{json.dumps(name)}: {json.dumps(e)}" for name, e in manifest["goldens"].items()]
    return json.dumps(head)[:-1] + ',\n"goldens": {\n' + ",\n".join(lines) + "\n}}\n"


def write_spec(texts: dict[str, str]) -> None:
    """Replace files of `golden/spec/`.

    Args:
        texts: By file name.
    """
    for name, text in texts.items():
        _replace(spec.golden_root() / "spec" / name, text.encode())


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
