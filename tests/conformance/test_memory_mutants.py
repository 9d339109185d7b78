"""Mutants of memory: each holds more where it says, computes what is right, and is recognised."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conformance.case import find_case
from conformance.execution import MEMORY, STABILITY, Execution
from conformance.known_bugs import KnownBug
from conformance.memory.cases import configurations
from conformance.mutants import gate, held
from conformance.mutants.catalogue import CATALOGUE, find_mutants
from conformance.mutants.mutant import Mutant
from conformance.mutants.port import MutantPort
from conformance.mutants.record import record
from conformance.report.records import Fault
from conformance.runner import Runner
from conformance.told_memory import memory_faults

HEAVY = [m for m in CATALOGUE if m.heavy]
QUICK = ("mem-hidden-states-kept", "mem-attention-float32", "vae-upcast-check-always-false")
LATE = "text_model.encoder.layers.2"


def item(mutant: Mutant) -> tuple[Any, Execution]:
    """Return the first configuration that hunts a mutant."""
    case = gate.cases_of(mutant)[0]
    return case, gate.executions_of(mutant, case)[0]


def line_of(name: str, **changes: Any) -> dict[str, Any]:
    """Build the failing case line of a mutant, from what it is predicted to hold."""
    (mutant,) = find_mutants([name])
    case, execution = item(mutant)
    facts = held.footprint_of(mutant, case, execution).as_json() | changes
    first = {"probe": held.expected_block(mutant, case, execution), "hint": "", "ratio": 1.1}
    return {
        "case": execution.item_id(case), "component": case.component, "mode": MEMORY,
        "verdict": "fail", "memory": facts, "first_divergence": first,
        "probes": [], "dtype": execution.dtype, "device": "cpu", "backend": execution.backend,
    }  # fmt: skip


def test_there_is_one_of_each_kind() -> None:
    """Networks and training, wrong ports and lawful ones; savings that save nothing."""
    wrong = [m for m in HEAVY if not m.null]
    assert {m.component for m in wrong} >= {"unet", "text_encoder", "vae_encoder", "vae_decoder"}
    assert {m.backend for m in wrong} >= {"sdpa", "plain", "by_sample", "tiled", "recompute"}
    assert len(HEAVY) - len(wrong) >= 3
    for mutant in HEAVY:
        assert item(mutant) in configurations(), mutant.id
        assert mutant.modes == (MEMORY,)
    assert not any(MEMORY in m.modes for m in CATALOGUE if set(m.modes) & set(STABILITY))


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_holds_more_and_is_recognised(name: str) -> None:
    """In a block that is computed, and by nobody else's bytes."""
    (mutant,) = find_mutants([name])
    case, execution = item(mutant)
    assert held.expected_block(mutant, case, execution)
    seen = held.footprint_of(mutant, case, execution)
    assert held.fitting(seen, case, execution) == [mutant]
    clean = held.footprint_of(None, case, execution)
    assert held.fitting(clean, case, execution) == []
    assert seen.weights == clean.weights * (2 if name.startswith("vae-upcast") else 1)


@pytest.mark.parametrize("name", ["null-mem-dead-local-deleted", "null-mem-views-of-views"])
def test_a_null_mutant_holds_the_same(name: str) -> None:
    """To the byte, whole and in every block, with the same operation at the peak."""
    (mutant,) = find_mutants([name])
    assert held.footprint_of(mutant, *item(mutant)) == held.footprint_of(None, *item(mutant))


@pytest.mark.parametrize(
    ("name", "case_id", "dtype"),
    [
        ("mem-hidden-states-kept", "text_encoder/tiny/base", "float32"),
        ("mem-slices-kept", "vae_decoder/tiny/base", "float32"),
        ("mem-attention-float32", "vae_decoder/tiny/base", "float16"),
    ],
)
def test_what_it_computes_is_right(name: str, case_id: str, dtype: str) -> None:
    """It passes a trace: only what it holds is wrong."""
    runner = Runner(MutantPort(*find_mutants([name])))
    assert runner.run(find_case(case_id), Execution(dtype)).verdict == "pass"


def test_the_cause_is_named() -> None:
    """A mutant that holds the very bytes is confirmed; of other bytes only the place is told."""
    (fault,) = memory_faults([line_of(QUICK[0])], "text_encoder")
    assert (fault["mutant"], fault["confirmed"], fault["names"]) == (QUICK[0], True, {LATE})
    assert fault["found_by"].startswith("confirmed: the port holds what mutant mem-hidden-states")
    (fault,) = memory_faults([line_of(QUICK[0], peak=1)], "text_encoder")
    assert (fault["mutant"], fault["confirmed"]) == (None, False)
    assert fault["text"].startswith(f"more is held than in the budget from {LATE} on, at aten.")
    assert memory_faults([line_of(QUICK[0]) | {"verdict": "pass"}], "text_encoder") == []
    assert Fault("", 0, "", confirmed=False, ratio_if_so=None).held is False


def test_margins_are_of_values() -> None:
    """What a mutant holds over its budget is no ratio to noise: it is in no margin."""
    first = {"probe": LATE, "case": "text_encoder/tiny/batch2[float16-cpu-sdpa-memory]"}
    rows = [
        {"id": m.id, "ratio": 1.1 if m.heavy else 1.5 if m.null else 50.0, "killed_by": [],
         "first_divergence": first if m.heavy else None}
        for m in CATALOGUE
    ]  # fmt: skip
    bugs, margin = record({"mutants": rows})
    assert (margin.honest, margin.wrong) == (1.5, 50.0)
    assert margin.mutants == len([m for m in CATALOGUE if not (m.null or m.heavy)])
    own = next(bug for bug in bugs if bug.id == QUICK[0])
    assert isinstance(own, KnownBug)
    assert (own.probe, own.case) == (LATE, first["case"])


def test_the_gate_kills_names_and_confirms_it() -> None:
    """By its mode alone, at the block that was computed, with the rows' own unit."""
    row = gate.try_mutant(QUICK[0]).row
    assert row["killed_by"] == ["text_encoder/tiny/batch2[float16-cpu-sdpa-memory]"]
    assert (row["expected_probe"], row["first_divergence"]["probe"]) == (LATE, LATE)
    assert row["confirmed"]
    assert 1 < row["ratio"] < 2
    null = gate.try_mutant("null-mem-dead-local-deleted")
    assert (null.error, null.row["killed_by"], null.row["ratio"]) == ("", [], 1.0)
