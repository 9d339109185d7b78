"""Goldens claim to kill mutants, and the claims are true."""

from __future__ import annotations

import pytest

from conformance.case import all_cases, find_case
from conformance.errors import GoldenError
from conformance.golden_files import load_golden
from conformance.progress import Progress
from conformance.tolerance import LIMIT

torch = pytest.importorskip("torch")

from conformance.mutants import claims
from conformance.mutants.catalogue import CATALOGUE, find_mutants
from conformance.mutants.mutant import Mutant

CLAIMED = {m.case_ids[0] for m in CATALOGUE if claims.claimable(m)}
SILENT = Progress(disable=True)


def test_goldens_claim_what_the_catalogue_says():
    """Each mutant is claimed once, by the first case that hunts it; null ones are not."""
    claimed = {}
    for case in all_cases():
        if not case.refused:
            kills = load_golden(case).kills
            assert kills == [m.id for m in claims.claimed(case)], case.id
            claimed |= dict.fromkeys(kills, case.id)
    wrong = [m for m in CATALOGUE if claims.claimable(m)]
    assert claimed == {m.id: m.case_ids[0] for m in wrong}


@pytest.mark.mutants
@pytest.mark.parametrize("case_id", sorted(CLAIMED))
def test_a_claim_is_true(case_id):
    """In trace mode the claimed mutants are at least twice the limit away."""
    case = find_case(case_id)
    golden = load_golden(case)
    mutants = claims.claimed(case)
    assert [m.id for m in mutants if claims.weakness(m, case, golden) is not None] == []


def quiet() -> Mutant:
    """Return a mutant that is hardly wrong."""

    def louder(module):
        norm = module.get_submodule("text_model.final_layer_norm")
        norm.register_forward_hook(lambda _, __, out: out * (1 + 2e-7))

    return Mutant(
        id="own-hardly", component="text_encoder", cases=("tiny/base",), wrong="x", module=louder
    )


def test_a_weak_claim_refuses_the_golden(monkeypatch):
    """`golden record` names the mutant, its ratio and the limit, and writes nothing."""
    record = pytest.importorskip("conformance.recording.record", exc_type=ImportError)
    case = find_case("text_encoder/tiny/base")
    golden = load_golden(case)
    (killed,) = find_mutants(["clip-exact-gelu"])
    monkeypatch.setattr(claims, "CATALOGUE", (killed, quiet()))
    assert claims.weakness(killed, case, golden) is None
    problem = claims.weakness(quiet(), case, golden)
    assert "own-hardly" in problem
    assert f"twice the limit ({2 * LIMIT:g})" in problem
    with pytest.raises(GoldenError, match="own-hardly"):
        record.claiming(case, golden, record.claimed(case), SILENT)


def test_a_strong_claim_is_entered(monkeypatch):
    """What is killed stands in the golden, and survives the file."""
    record = pytest.importorskip("conformance.recording.record", exc_type=ImportError)
    case = find_case("text_encoder/tiny/base")
    monkeypatch.setattr(claims, "CATALOGUE", tuple(find_mutants(["clip-exact-gelu"])))
    golden = record.claiming(case, load_golden(case), record.claimed(case), SILENT)
    assert type(golden).from_bytes(golden.to_bytes(), "here").kills == ["clip-exact-gelu"]
