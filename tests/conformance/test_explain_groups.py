"""What a cause explains, and what is left over."""

from conformance.explain import _unexplained


def test_a_block_around_an_explained_probe_is_explained():
    """Cases that record blocks alone fail at the block: that is no second cause."""
    wrong = ("text_model.encoder.layers.0", "text_model.encoder.layers.1", "text_model.embeddings")
    explained = {"text_model.encoder.layers.0.mlp.fc2.input"}
    left = [fault["probes"] for fault in _unexplained([wrong], explained, [])]
    assert left == ["text_model.encoder.layers.1", "text_model.embeddings"]
