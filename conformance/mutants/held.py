"""What a mutant of mode `memory` holds, predicted beside the clean model and beside any port."""

from __future__ import annotations

from functools import cache

from conformance.adapters import sd1_impl
from conformance.adapters.memory import Predictor
from conformance.case import Case
from conformance.execution import Execution
from conformance.memory.footprint import Footprint
from conformance.mutants.catalogue import CATALOGUE
from conformance.mutants.mutant import Mutant
from conformance.mutants.port import MutantPort


@cache
def footprint_of(mutant: Mutant | None, case: Case, execution: Execution) -> Footprint:
    """Predict what `sd1_impl` holds with a mutant, or clean for None.

    Raises:
        UnsupportedError: It is not run so.
    """
    port = sd1_impl.port() if mutant is None else MutantPort(mutant)
    return Predictor(port).predict(case, execution)


def expected_block(mutant: Mutant, case: Case, execution: Execution) -> str | None:
    """Return the first block, in execution order, in which a mutant holds more than it may.

    Args:
        mutant: The mutant.
        case: A memory case that hunts it.
        execution: How it is run.

    Returns:
        The name of the block; None where it holds no more in any.
    """
    clean, wrong = (footprint_of(who, case, execution).blocks for who in (None, mutant))
    return next((name for name, size in wrong.items() if size > clean.get(name, 0)), None)


def fitting(seen: Footprint, case: Case, execution: Execution) -> list[Mutant]:
    """Return the mutants that hold just what a port does, to the byte, whole and in every block.

    A port that holds what the clean model does has none, though a mutant may not show here.

    Args:
        seen: What the port holds.
        case: A memory case.
        execution: How it is run.
    """
    if _alike(footprint_of(None, case, execution), seen):
        return []
    heavy = [m for m in CATALOGUE if m.heavy and not m.null and m.component == case.component]
    return [m for m in heavy if _alike(footprint_of(m, case, execution), seen)]


def _alike(one: Footprint, other: Footprint) -> bool:
    return (one.peak, one.weights, one.blocks) == (other.peak, other.weights, other.blocks)
