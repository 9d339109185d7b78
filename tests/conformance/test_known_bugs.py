"""The catalogue as the report knows it: what mutants do wrong, and the margin around the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.fingerprint import library
from conformance.known_bugs import CATALOGUE, KnownBug, Margin, known_bugs, margin, write_catalogue
from conformance.tolerance import LIMIT

if TYPE_CHECKING:
    from pathlib import Path


def test_every_hint_can_be_looked_up() -> None:
    """What fingerprints can name, the report can explain in the same words."""
    told = {(bug.id, bug.component, bug.wrong) for bug in known_bugs().values()}
    assert told >= {(known.id, known.component, known.wrong) for known in library()}


def test_it_is_the_catalogue() -> None:
    """`mutants --update` was run since the catalogue changed."""
    pytest.importorskip("torch")
    from conformance.mutants import catalogue
    from conformance.mutants.mutant import EVIDENCE

    wrong = {
        m.id: (m.seen, EVIDENCE[m.evidence], m.size) for m in catalogue.CATALOGUE if not m.null
    }
    assert wrong == {b.id: (b.seen, b.evidence, b.size) for b in known_bugs().values()}
    computing = [m for m in catalogue.CATALOGUE if not m.heavy]  # memory has no noise, no margin
    nulls = sum(m.null for m in computing)
    assert (margin().mutants, margin().nulls) == (len(computing) - nulls, nulls)


def test_margin_lies_around_the_limit() -> None:
    """Honest programs stay below half the limit, mutants reach twice the limit."""
    assert margin().honest <= LIMIT / 2
    assert margin().wrong >= 2 * LIMIT


def test_record_of_a_gate() -> None:
    """A gate's rows become entries; a null mutant and a refused load only count for the margin."""
    pytest.importorskip("torch")
    from conformance.mutants import catalogue
    from conformance.mutants.record import record

    wrong = next(m for m in catalogue.CATALOGUE if not (m.null or m.refuses))
    refuses = next(m for m in catalogue.CATALOGUE if m.refuses and not m.null)
    null = next(m for m in catalogue.CATALOGUE if m.null)
    first = {"probe": "conv_in", "case": "unet/tiny/base[float32-cpu]"}
    rows = [
        {"id": wrong.id, "ratio": "inf", "first_divergence": first, "killed_by": ["a", "b"]},
        {"id": refuses.id, "ratio": 0.0, "first_divergence": None, "killed_by": ["c"]},
        {"id": null.id, "ratio": 1.5, "first_divergence": None, "killed_by": []},
    ]
    bugs, measured = record({"mutants": rows})
    assert measured == Margin(honest=1.5, nulls=1, wrong=float("inf"), mutants=2)
    assert {bug.id: (bug.probe, bug.case) for bug in bugs} == {
        wrong.id: ("conv_in", "unet/tiny/base[float32-cpu]"),
        refuses.id: ("", "c"),
    }


def test_written_and_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file reads back as it was written, and what was read before is forgotten."""
    path = tmp_path / "catalogue.json"
    bug = KnownBug("a-b", "unet", "ü", "somewhere#1", "reported", "subtle", "conv_in", "unet/x")
    before = CATALOGUE.read_text("utf-8")
    monkeypatch.setattr("conformance.known_bugs.CATALOGUE", path)
    write_catalogue([bug], Margin(1.5, 3, 9.0, 1), path)
    try:
        assert dict(known_bugs()) == {"a-b": bug}
        assert margin() == Margin(1.5, 3, 9.0, 1)
    finally:
        known_bugs.cache_clear()
        margin.cache_clear()
    assert CATALOGUE.read_text("utf-8") == before
