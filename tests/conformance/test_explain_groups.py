"""What a cause explains, what is left over, and what it is called."""

import pytest

from conformance.explain import _sentence, _unexplained
from conformance.fingerprint import known_of


def test_a_block_around_an_explained_probe_is_explained():
    """Cases that record blocks alone fail at the block: that is no second cause."""
    wrong = ("text_model.encoder.layers.0", "text_model.encoder.layers.1", "text_model.embeddings")
    explained = {"text_model.encoder.layers.0.mlp.fc2.input"}
    left = [fault["probes"] for fault in _unexplained([wrong], explained, [])]
    assert left == ["text_model.encoder.layers.1", "text_model.embeddings"]


@pytest.mark.parametrize(
    ("number", "lead", "end"),
    [(1, "like the mutant ", ", not confirmed"), (2, "like the mutants ", ", none confirmed")],
)
def test_one_mutant_or_several(number, lead, end):
    """What a port may compute is told in the singular or the plural."""
    ranked = known_of("vae_decoder")[:number]
    names = ", ".join(known.id for known in ranked)
    assert _sentence([{"confirmed": False}], ranked, ranked) == f"{lead}{names}{end}"
