"""What a cause explains, what is left over, and what it is called."""

import pytest

from conformance.explain import _sentence, _unexplained
from conformance.fingerprint import known_of

LAYER = "text_model.encoder.layers.{}".format
INNER = "text_model.encoder.layers.0.mlp.fc2.input"


def left_of(wrong, explained, *inside):
    """Return the probes of each group that is left."""
    return [fault["probes"] for fault in _unexplained([wrong], explained, [], {*inside})]


def test_a_block_around_an_explained_probe_is_explained():
    """Cases that record blocks alone fail at the block: that is no second cause."""
    wrong = (LAYER(0), LAYER(1), "text_model.embeddings")
    assert left_of(wrong, {INNER}, LAYER(0), LAYER(1)) == [LAYER(1), "text_model.embeddings"]


def test_a_block_that_nothing_looks_into_is_like_those_of_its_kind():
    """The one more layer of a larger size is wrong for what is wrong in the others."""
    assert left_of((LAYER(0), LAYER(3)), {INNER}, LAYER(0)) == []


def test_a_block_around_a_wrong_probe_is_no_second_cause():
    """Cases that see inside name the place; those that see blocks alone say no more."""
    assert left_of((LAYER(0), INNER, LAYER(3)), set(), LAYER(0)) == [INNER]


@pytest.mark.parametrize(
    ("number", "lead", "end"),
    [(1, "like the mutant ", ", not confirmed"), (2, "like the mutants ", ", none confirmed")],
)
def test_one_mutant_or_several(number, lead, end):
    """What a port may compute is told in the singular or the plural."""
    ranked = known_of("vae_decoder")[:number]
    names = ", ".join(known.id for known in ranked)
    assert _sentence([{"confirmed": False}], ranked, ranked) == f"{lead}{names}{end}"
    untested = _sentence([{"confirmed": False}], ranked, ranked, tested=False)
    assert untested == f"{lead}{names}{end}".replace("confirmed", "tested")
