"""What a golden claims: which mutants its case kills, each by at least twice the limit."""

from __future__ import annotations

from conformance.case import Case
from conformance.execution import Execution
from conformance.golden import SPLICE, TRACE, Golden
from conformance.mutants.catalogue import CATALOGUE
from conformance.mutants.mutant import Mutant
from conformance.mutants.port import MutantPort
from conformance.runner import Runner
from conformance.tolerance import LIMIT, badness
from conformance.traces import Traces


def claimed(case: Case) -> list[Mutant]:
    """Return the mutants that the golden of a case claims: those of which it is the first hunter.

    A mutant that refuses to answer proves nothing about numbers, one that needs a GPU is not run
    while goldens are recorded, one that is right in one run is judged by another of its own, and a
    null mutant is not to be killed.
    """
    return [m for m in CATALOGUE if m.case_ids[0] == case.id and claimable(m)]


def claimable(mutant: Mutant) -> bool:
    """Say whether a golden can claim to kill a mutant."""
    return not (mutant.null or mutant.refuses or mutant.gpu or mutant.unstable)


def ratio_of(mutant: Mutant, case: Case, golden: Golden, traces: Traces | None = None) -> float:
    """Return the worst ratio of a mutant in one case: in trace mode, or in splice mode if larger.

    Args:
        mutant: The mutant.
        case: The case.
        golden: What it is judged by, which need not be written yet.
        traces: Gives the oracle's values for splice mode; None to ask the oracle.
    """
    runner = Runner(MutantPort(mutant), traces)
    runner.asks_for_age = False
    runner.golden = lambda _: golden  # type: ignore[method-assign, assignment]
    ratio = 0.0
    for mode in (TRACE, SPLICE) if golden.splice_noise else (TRACE,):
        result = runner.run(case, Execution(dtype=mutant.dtype, mode=mode).for_case(case))
        ratio = max([ratio, *(badness(record.ratio) for record in result.records)])
        if ratio >= 2 * LIMIT:
            break
    return ratio


def weakness(
    mutant: Mutant, case: Case, golden: Golden, traces: Traces | None = None
) -> str | None:
    """Say how a golden fails to kill a claimed mutant by twice the limit, or None.

    Args:
        mutant: One of `claimed(case)`.
        case: The case.
        golden: Its golden, which need not be written yet.
        traces: Gives the oracle's values for splice mode; None to ask the oracle.
    """
    ratio = ratio_of(mutant, case, golden, traces)
    if ratio >= 2 * LIMIT:
        return None
    return (
        f"{case.id}: mutant {mutant.id} has ratio {ratio:.2f} in {mutant.dtype}, less than "
        f"twice the limit ({2 * LIMIT:g}): the golden is refused; its inputs are too weak"
    )
