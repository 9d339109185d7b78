"""What a cause explains, and what is left over."""

from conformance.case import find_case
from conformance.execution import Execution
from conformance.explain import Item, _unexplained


def test_a_block_around_an_explained_probe_is_explained():
    """Cases that record blocks alone fail at the block: that is no second cause."""
    case, execution = find_case("text_encoder/tiny/base"), Execution(mode="splice")
    wrong = ("text_model.encoder.layers.0", "text_model.encoder.layers.1", "text_model.embeddings")
    items = [Item(case, execution, wrong)]
    explained = {"text_model.encoder.layers.0.mlp.fc2.input"}
    left = [fault["probes"] for fault in _unexplained(items, explained, [])]
    assert left == ["text_model.encoder.layers.1", "text_model.embeddings"]
