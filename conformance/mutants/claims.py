"""What a golden claims: which mutants its case kills, each by at least twice the limit."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.case import Case
from conformance.compare import Record
from conformance.execution import Execution
from conformance.golden import Golden
from conformance.mutants.catalogue import CATALOGUE
from conformance.mutants.mutant import Mutant
from conformance.mutants.port import MutantPort
from conformance.runner import Runner
from conformance.tolerance import LIMIT, badness


def claimed(case: Case) -> list[Mutant]:
    """Return the mutants that the golden of a case claims: those of which it is the first hunter.

    A mutant that refuses to answer proves nothing about numbers, one that needs a GPU is not run
    while goldens are recorded, and a null mutant is not to be killed.
    """
    own = [m for m in CATALOGUE if m.case_ids[0] == case.id]
    return [m for m in own if not (m.null or m.refuses or m.gpu)]


@dataclass
class _Fixed:
    """A runner that judges by a golden that is not written yet."""

    golden: Golden

    def run(self, mutant: Mutant, case: Case) -> list[Record]:
        """Run a mutant in trace mode and return its records."""
        runner = Runner(MutantPort(mutant))
        runner.asks_for_age = False
        runner.golden = lambda _: self.golden  # type: ignore[method-assign, assignment]
        result = runner.run(case, Execution(dtype=mutant.dtype).for_case(case))
        return result.records


def weak_claims(case: Case, golden: Golden) -> list[str]:
    """Say which claimed mutants a golden does not kill by twice the limit.

    Args:
        case: The case.
        golden: Its golden, which need not be written yet.

    Returns:
        One line per mutant that comes too near.
    """
    problems = []
    for mutant in claimed(case):
        records = _Fixed(golden).run(mutant, case)
        worst = max((badness(record.ratio) for record in records), default=0.0)
        if not worst >= 2 * LIMIT:
            problems.append(
                f"{case.id}: mutant {mutant.id} has ratio {worst:.2f} in {mutant.dtype}, less than "
                f"twice the limit ({2 * LIMIT:g}): the golden is refused; its inputs are too weak"
            )
    return problems
