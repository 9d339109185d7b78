"""Where a mutant of a stability mode goes wrong, computed without comparing it with itself."""

from __future__ import annotations

import numpy as np

from conformance.adapters import sd1_impl
from conformance.case import Case
from conformance.execution import Execution
from conformance.mutants.answer import DIFFERENT
from conformance.mutants.mutant import Mutant
from conformance.mutants.named import port_spec
from conformance.mutants.port import MutantPort
from conformance.runner import Runner
from conformance.stability import EXACT_MODES, subject_of
from conformance.stability_rows import differing


def expected_probe(mutant: Mutant, case: Case, mode: str) -> str | None:
    """Compute where a mutant first differs from the clean model in the runs of a mode.

    Args:
        mutant: The mutant.
        case: A case that hunts it.
        mode: The stability mode.

    Returns:
        The first row of the first run in which both differ: in bits, in the mutant's arithmetic,
        where the mode asks for bits; else by more than 1e-9 in float64. None if they do nowhere.
    """
    exact = mode in EXACT_MODES
    execution = Execution(mutant.dtype if exact else "float64", mode=mode).for_case(case)
    wrong = Runner(MutantPort(mutant), port_spec=port_spec(mutant.id))
    clean = Runner(sd1_impl.port(), port_spec="sd1_impl")
    runs = (subject_of(runner, case, execution)[0].runs() for runner in (wrong, clean))
    for own, right in zip(*runs, strict=True):
        for name, row in right.rows.items():
            if _differ(row, own.rows[name], exact=exact):
                return name
    return None


def _differ(right: np.ndarray, own: np.ndarray, *, exact: bool) -> bool:
    if exact or right.dtype.kind != "f":
        return bool(differing(right, own).any())
    distance = float(np.linalg.norm(own - right))
    return not distance <= DIFFERENT * float(np.linalg.norm(right))
