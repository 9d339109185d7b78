"""More arithmetics for goldens that exist: their noise is entered, the truth stays as it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from conformance.case import Case
from conformance.errors import GoldenError
from conformance.golden import SPLICE, TRACE, Golden
from conformance.golden_files import check_inputs, load_golden
from conformance.recipe import digest
from conformance.recorded import arithmetics, modes
from conformance.recording.noise import Errors
from conformance.recording.record import Noise, Reference, Say, add_noise, claiming
from conformance.recording.verify import age_of


def with_noise(cases: list[Case], wanted: Collection[str], say: Say) -> dict[str, Golden]:
    """Measure noise in some arithmetics and enter it into the goldens that there are.

    Args:
        cases: Cases of one component and variant.
        wanted: Arithmetics; those in which a case is not judged are passed over.
        say: Told each step, in one line.

    Returns:
        Goldens by case id, of those that have one of the arithmetics.

    Raises:
        GoldenError: The oracle that is installed disagrees with a golden, so that its noise would
            be that of another truth; or an honest evaluation exceeds half the limit.
    """
    chosen = {case: [a for a in arithmetics(case) if a in wanted] for case in cases}
    chosen = {case: own for case, own in chosen.items() if own and not case.refused}
    if not chosen:
        return {}
    reference = Reference(cases[0].component, cases[0].variant)
    goldens, truths = {}, {}
    for case in chosen:
        goldens[case], truths[case] = load_golden(case), reference.truth(case)
        check_inputs(goldens[case], {name: digest(array) for name, array in case.inputs().items()})
        aged = age_of(goldens[case], truths[case])
        if aged is not None:
            raise GoldenError(f"{case.id}: the golden has aged: {aged}; record all of it again")
    noise: dict[Case, Noise] = {case: {mode: {} for mode in modes(case)} for case in chosen}
    for arithmetic in dict.fromkeys(a for own in chosen.values() for a in own):
        component = reference.build(arithmetic)
        for case, own in chosen.items():
            if arithmetic in own:
                add_noise(case, arithmetic, component, truths[case], noise[case], say)
    return {
        case.id: claiming(case, _entered(golden, noise[case]), truths[case])
        for case, golden in goldens.items()
    }


def _entered(golden: Golden, noise: Noise) -> Golden:
    """Return a golden with more noise."""
    traced, local = noise[TRACE], noise.get(SPLICE, {})
    return replace(
        golden,
        noise=golden.noise | {a: _rows(golden, u) for a, u in traced.items()},
        output_noise=golden.output_noise | {a: u.outputs for a, u in traced.items()},
        splice_noise=golden.splice_noise | {a: _rows(golden, u) for a, u in local.items()},
        splice_output_noise=golden.splice_output_noise | {a: u.outputs for a, u in local.items()},
    )


def _rows(golden: Golden, errors: Errors) -> np.ndarray:
    return np.array([errors.probes[name] for name in golden.probes])
