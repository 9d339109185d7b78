"""More arithmetics for goldens that exist: their noise is entered, the truth stays as it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from conformance.case import Case
from conformance.errors import GoldenError
from conformance.golden import SPLICE, TRACE, Golden
from conformance.golden_files import drawn_inputs, load_golden
from conformance.recorded import arithmetics, modes
from conformance.recording.noise import Errors
from conformance.recording.record import (
    Noise,
    Reference,
    add_noise,
    claimed,
    claiming,
    evaluation_count,
    watching,
)
from conformance.recording.verify import age_of


def with_noise(case: Case, wanted: Collection[str]) -> Golden:
    """Measure noise in some arithmetics and enter it into the golden that there is.

    Args:
        case: A case that is judged in one of them.
        wanted: Arithmetics; those in which the case is not judged are passed over.

    Returns:
        The golden.

    Raises:
        GoldenError: The oracle that is installed disagrees with the golden, so that its noise would
            be that of another truth; or an honest evaluation exceeds half the limit.
    """
    own = [arithmetic for arithmetic in arithmetics(case) if arithmetic in wanted]
    golden, mutants = load_golden(case), claimed(case)
    drawn_inputs(case, golden)  # refuses those of another recipe
    reference = Reference(case.component, case.variant)
    evaluations = evaluation_count(reference.build("float64"), case, own)
    with watching(case, 1 + evaluations + len(mutants)) as bar:
        truth = reference.truth(case)
        bar.update()
        aged = age_of(golden, truth)
        if aged is not None:
            raise GoldenError(f"{case.id}: the golden has aged: {aged}; record all of it again")
        noise: Noise = {mode: {} for mode in modes(case)}
        for arithmetic in own:
            add_noise(case, arithmetic, reference.build(arithmetic), truth, noise, bar)
        return claiming(case, _entered(golden, noise), mutants, bar, truth)


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
