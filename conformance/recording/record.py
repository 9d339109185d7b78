"""Recording goldens from the oracle (`golden record`): the one place where they are written."""

from __future__ import annotations

import importlib
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance import oracle, spec, terms
from conformance.adapters.arithmetics import MIXED, built_in, computing_in
from conformance.adapters.torch_module import DTYPES, to_numpy
from conformance.case import Case
from conformance.checkpoints import FileVariant
from conformance.errors import GoldenError
from conformance.golden import SPLICE, TRACE, Golden
from conformance.judge import IMAGE, TIME_PROJ
from conformance.large import BORDER, EDGE, WHOLE_LIMIT, Large
from conformance.layout import PIXELS
from conformance.progress import Progress
from conformance.recipe import SEED, digest
from conformance.recorded import arithmetics, case_probes, modes, modes_in
from conformance.recording.calibration import calibration_count, calibrations, embedding_noise
from conformance.recording.honest import HELD_OUT, Evaluation
from conformance.recording.honest_training import TRAINING_HELD_OUT
from conformance.recording.noise import (
    Errors,
    measure,
    noise_of,
    worst_of,
    worst_ratio,
)
from conformance.sampling import (
    SCHEDULER_STEPS,
    TABLES,
    kept_steps,
    step_name,
)
from conformance.sketch import BLOCK_BUCKETS, BUCKETS, STEP_BUCKETS, sketch
from conformance.tolerance import EVERY_ARITHMETIC, FLOATS, LIMIT
from conformance.traces import Values
from conformance.training import scales
from conformance.variants import Variant

Noise = dict[str, dict[str, Errors]]
"""By mode and arithmetic."""

_SOURCES = ("conformance", "sd1_impl", "sd1_weights", "golden/spec")
"""What a golden is made by: the oracle's side, and the mutants that it claims to kill."""


class Reference:
    """The reference of one variant, built once per arithmetic."""

    def __init__(self, component: str, variant: Variant, seed: int = SEED) -> None:
        """Keep the recipe of the weights; networks are built when asked for."""
        self.component = component
        self.variant = variant
        self.seed = seed
        self.weights = variant.weights(component, seed)
        self._built: tuple[str, oracle.Component] | None = None

    def build(self, arithmetic: str) -> oracle.Component:
        """Return the reference in an arithmetic; only the last one is kept."""
        if self._built is None or self._built[0] != arithmetic:
            self._built = None
            dtype = DTYPES[built_in(arithmetic)]
            component = oracle.reference(self.component, self.variant, self.weights, dtype)
            self._built = (arithmetic, computing_in(arithmetic, component))
        return self._built[1]

    def truth(self, case: Case) -> oracle.Truth:
        """Evaluate the oracle on a case."""
        return oracle.evaluate(self.build("float64"), case, case_probes(case))


def values_of(truth: oracle.Truth) -> Values:
    """Copy what the oracle computed to arrays."""
    return Values(
        {name: to_numpy(tensor) for name, tensor in truth.probes.items()},
        {name: to_numpy(tensor) for name, tensor in truth.outputs.items()},
    )


def sketched_outputs(case: Case, truth: oracle.Truth) -> dict[str, tuple[int, ...]]:
    """Return the outputs of which only sketches are kept, and their shapes."""
    if case.is_scheduler:
        count, shape = case.scenario.calls, truth.probes["samples#0"].shape
        return dict.fromkeys(SCHEDULER_STEPS, (count, *shape))
    if case.is_pipeline:
        shape = tuple(truth.probes["latents#0"].shape)
        return {step_name("latents", k): shape for k in range(case.scenario.calls)}
    return spec.gradient_shapes(case.component, case.variant.size)


def record_case(
    case: Case, only: Collection[str] = EVERY_ARITHMETIC, *, claim: bool = True
) -> Golden:
    """Record a case, showing how far it is.

    Args:
        case: One of which the reference computes something.
        only: Arithmetics whose noise is measured; float64 among them.
        claim: Hunt the mutants that the case is to kill, and enter them.

    Returns:
        Its golden.

    Raises:
        GoldenError: The oracle is not float64, an honest evaluation exceeds half the limit, or a
            mutant is not killed.
    """
    mutants = claimed(case) if claim else []
    if case.exact:
        with watching(case, len(mutants)) as bar:
            return claiming(case, _exact_golden(case), mutants, bar)
    wanted = [a for a in EVERY_ARITHMETIC if a in only and a in arithmetics(case)]
    reference = Reference(case.component, case.variant)
    evaluations = evaluation_count(reference.build("float64"), case, wanted)
    with watching(case, 1 + evaluations + len(mutants)) as bar:
        truth = reference.truth(case)
        bar.update()
        noise: Noise = {mode: {} for mode in modes(case)}
        for arithmetic in wanted:
            add_noise(case, arithmetic, reference.build(arithmetic), truth, noise, bar)
        golden = _golden(case, truth, noise)
        _add_embedding(golden, case, reference, truth)
        return claiming(case, golden, mutants, bar, truth) if claim else golden


def watching(case: Case, evaluations: int) -> Progress:
    """Return what shows how many evaluations of a case are done."""
    return Progress(total=evaluations, desc=case.id, unit="evaluation", leave=False)


def evaluation_count(component: oracle.Component, case: Case, wanted: Collection[str]) -> int:
    """Return how often `add_noise` evaluates a case in some arithmetics.

    Args:
        component: The reference in any of them.
        case: The case.
        wanted: Of `arithmetics(case)`.
    """
    return sum(
        calibration_count(component, case, arithmetic, splice=mode == SPLICE)
        + len(_held_out(case, arithmetic))
        for arithmetic in wanted
        for mode in modes_in(case, arithmetic)
    )


def add_noise(
    case: Case,
    arithmetic: str,
    component: oracle.Component,
    truth: oracle.Truth,
    noise: Noise,
    bar: Progress,
) -> None:
    """Measure the noise of a case in an arithmetic, in the modes in which it is recorded.

    Args:
        case: The case.
        arithmetic: One of `arithmetics(case)`.
        component: The reference in it.
        truth: What the oracle computed.
        noise: By mode and arithmetic; entered there.
        bar: Told of each evaluation.

    Raises:
        GoldenError: An honest evaluation exceeds half the limit.
    """
    for mode in modes_in(case, arithmetic):
        bar.now(f"{case.id}: {arithmetic}, {mode}")

        def errors_of(evaluation: Evaluation, *, splice: bool = mode == SPLICE) -> Errors:
            errors = measure(component, case, truth, evaluation, splice=splice)
            bar.update()
            return errors

        chosen = calibrations(component, case, arithmetic, splice=mode == SPLICE)
        noise[mode][arithmetic] = worst_of([errors_of(evaluation) for evaluation in chosen])
        units = noise_of(arithmetic, noise[mode])
        for evaluation in _held_out(case, arithmetic):
            found, where = worst_ratio(errors_of(evaluation), units, arithmetic)
            if not found <= LIMIT / 2:
                message = (
                    f"{case.id}: honest evaluation {evaluation.name!r} has ratio {found:.2f} at "
                    f"{where} in {mode} mode, over half the limit ({LIMIT / 2:g}): it is refused"
                )
                raise GoldenError(message)


def _held_out(case: Case, arithmetic: str) -> list[Evaluation]:
    """Return the evaluations that refuse a golden if one exceeds half the limit."""
    if arithmetic not in {"float32", *MIXED} or case.full_size:
        return []
    return [e for e in (*HELD_OUT, *TRAINING_HELD_OUT) if e.applies(case, arithmetic)]


def _add_embedding(golden: Golden, case: Case, reference: Reference, truth: oracle.Truth) -> None:
    """Enter the timestep embedding of a UNet case, entry by entry."""
    if TIME_PROJ in golden.probes:
        golden.embedding = to_numpy(truth.probes[TIME_PROJ])
        golden.embedding_noise = embedding_noise(reference.build("float32"), case)


def claimed(case: Case) -> list[Any]:
    """Return the mutants that a case is to kill: on the user's own weights that is not known."""
    if isinstance(case.variant, FileVariant):
        return []
    mutants: list[Any] = _claims().claimed(case)
    return mutants


def _claims() -> Any:
    return importlib.import_module("conformance.mutants.claims")


def claiming(
    case: Case,
    golden: Golden,
    mutants: Sequence[Any],
    bar: Progress,
    truth: oracle.Truth | None = None,
) -> Golden:
    """Enter the mutants that a case is to kill.

    Args:
        case: The case.
        golden: Its golden.
        mutants: `claimed(case)`.
        bar: Told of each one.
        truth: What the oracle computed; None to ask it.

    Raises:
        GoldenError: One is not killed by twice the limit: the golden is refused.
    """
    traces = None if truth is None else lambda *_: values_of(truth)
    for mutant in mutants:
        bar.now(f"{case.id}: mutant {mutant.id}")
        problem = _claims().weakness(mutant, case, golden, traces)
        if problem is not None:
            raise GoldenError(problem)
        bar.update()
    return replace(golden, kills=[mutant.id for mutant in mutants])


def _golden(case: Case, truth: oracle.Truth, noise: Noise) -> Golden:
    rows = {name: to_numpy(t) for name, t in truth.probes.items() if name not in TABLES}
    outputs = {name: to_numpy(tensor) for name, tensor in truth.outputs.items()}
    units = {a: noise_of(a, noise[TRACE]) for a in noise[TRACE]}
    local = {a: noise_of(a, noise[SPLICE]) for a in noise.get(SPLICE, ())}
    sketched = sketched_outputs(case, truth)
    room, edge = (WHOLE_LIMIT, EDGE) if case.scenario.keeps_outputs else (0, BORDER)
    whole = {n: a for n, a in outputs.items() if a.dtype.kind in "iu" or a.size <= room}
    pictures = {}
    if case.is_pipeline:
        del whole[IMAGE]
        edge = BORDER
        if not case.scenario.keeps_pixels:
            pictures[PIXELS] = whole.pop(PIXELS).shape
    buckets = buckets_of(case)
    return Golden(
        case=case.id,
        hunts=case.scenario.hunts,
        inputs=input_facts(case),
        outputs=whole,
        output_names=[*outputs, *sketched] if case.is_training else [*sketched, *outputs],
        large={
            n: Large.of(array, edge)
            for n, array in outputs.items()
            if n not in whole and n not in pictures
        },
        pictures=pictures,
        sketched=sketched,
        tables={name: to_numpy(t) for name, t in truth.probes.items() if name in TABLES},
        table_noise={a: u.tables for a, u in units.items() if a in FLOATS},
        coefficients=step_coefficients(case, rows) if case.is_scheduler else {},
        probes=list(rows),
        shapes=[array.shape for array in rows.values()],
        sketches=np.stack([sketch(array, buckets) for array in rows.values()]),
        norms=scales(rows),
        max_abs=np.array([float(np.max(np.abs(array))) for array in rows.values()]),
        noise={a: np.array([u.probes[name] for name in rows]) for a, u in units.items()},
        output_noise={a: u.outputs for a, u in units.items()},
        provenance=provenance(),
        splice_noise={a: np.array([u.probes[name] for name in rows]) for a, u in local.items()},
        splice_output_noise={a: u.outputs for a, u in local.items()},
    )


def step_coefficients(case: Case, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Read the coefficients of every kept step off the oracle's samples."""
    inputs = case.inputs()
    given = {k: rows[step_name("model_inputs", k)] for k in kept_steps(case.scenario.calls)}
    return {
        step_name("samples", k): terms.coefficients(
            terms.entering(case.component, inputs, given, k), rows[step_name("samples", k)]
        )
        for k in given
    }


def buckets_of(case: Case) -> int:
    """Return how many numbers a case keeps of each of its probes."""
    if case.is_scheduler or case.is_training:
        return STEP_BUCKETS
    return BUCKETS if case.every_probe or not case.is_network else BLOCK_BUCKETS


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
    return {
        **oracle.versions(),
        "commit": commit_of(Path(__file__).parents[2]),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
    }


def commit_of(home: Path) -> str:
    """Return the commit of a checkout, with `+changes` where its sources are not as committed.

    Args:
        home: Its folder. What is recorded there, or written for readers, is no source.

    Returns:
        `1a9ce61e33b7`, `1a9ce61e33b7+changes`, or `unknown` where it is no checkout.
    """
    try:
        commit = _git(home, "rev-parse", "--short=12", "HEAD")
        changed = _git(home, "status", "--porcelain", "--", *_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def _git(home: Path, *words: str) -> str:
    command = ["git", *words]  # the user's git
    done = subprocess.run(  # noqa: S603 - with words of our own
        command, cwd=home, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
