"""The catalogue as a whole: ids, cases, fingerprints and page are of one piece."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from conformance.case import NETWORKS, all_cases
from conformance.fingerprint import library
from conformance.memory.cases import memory_cases
from conformance.sampling import PIPELINES, SCHEDULERS

torch = pytest.importorskip("torch")

from conformance.mutants.catalogue import CATALOGUE, NOT_RUN

ROOT = Path(__file__).parents[2]
WRONG = [mutant for mutant in CATALOGUE if not mutant.null]


def test_ids_are_unique():
    """A mutant is run, or listed with the reason why not, never both."""
    counts = Counter([*(m.id for m in CATALOGUE), *(row.id for row in NOT_RUN)])
    assert [name for name, count in counts.items() if count > 1] == []


def test_it_is_as_large_as_promised():
    """At least 95 mutants, 20 quiet ones of our own, 12 null ones."""
    evidence = Counter(m.evidence for m in CATALOGUE)
    assert len(WRONG) >= 95
    assert evidence["own"] >= 20
    assert evidence["null"] >= 12
    assert evidence["fix"] >= 5


@pytest.mark.parametrize("component", [*NETWORKS, *SCHEDULERS, *PIPELINES])
def test_every_component_has_wrong_and_lawful_ports(component):
    """Power and fairness are both proved for each: with its own mutants, and null ones."""
    own = [m for m in CATALOGUE if m.component == component]
    assert sum(not m.null for m in own) >= 2
    assert any(m.null for m in own)


def test_every_row_is_complete():
    """What was seen says where; what is hunted says by which existing cases."""
    goldens = {case.id for case in all_cases()}
    configurations = {case.id for case in memory_cases()}
    for mutant in CATALOGUE:
        cases = configurations if mutant.heavy else goldens
        assert set(mutant.case_ids) <= cases, mutant.id
        assert mutant.wrong, mutant.id
        assert mutant.seen or mutant.evidence not in {"R", "C"}, mutant.id
    assert all(row.reason for row in NOT_RUN)


def test_hints_know_every_mutant():
    """`mutants --update` was run since the catalogue changed."""
    hinted = {m.id: m.wrong for m in WRONG if not m.unstable}
    assert {known.id: known.wrong for known in library()} == hinted
    assert all(known.marks for known in library())


def test_the_page_lists_all():
    """So was docs/mutants.md written."""
    page = (ROOT / "docs" / "mutants.md").read_text(encoding="utf-8")
    missing = [name for name in (*(m.id for m in CATALOGUE), *(r.id for r in NOT_RUN))
               if f"`{name}`" not in page]  # fmt: skip
    assert missing == []
