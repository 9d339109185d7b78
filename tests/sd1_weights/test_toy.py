"""The toy's file: rows of a table put back into place."""

from pathlib import Path

import numpy as np
import pytest

from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import TOY as LAYOUT
from sd1_weights.layouts import read_checkpoint
from sd1_weights.save import write_toy
from sd1_weights.sizes import shapes_of
from sd1_weights.toy import TOY

TABLE = "text_model.embeddings.token_embedding.weight"


def test_the_shipped_file_is_whole() -> None:
    """Every weight of the size is there, in bfloat16, finite, and none besides."""
    checkpoint = read_checkpoint(TOY)
    assert checkpoint.layout == LAYOUT
    for name in ("unet", "vae", "text_encoder"):
        network = checkpoint.network(name)
        assert network.size == "toy"
        for tensor in network.fitted(shapes_of(name, "toy")).values():
            assert tensor.dtype == "BF16"
            tensor.check_finite()


def _write(path: Path, ids: list[int]) -> None:
    table = np.arange(49_408 * 2, dtype=np.float32).reshape(-1, 2) % 128
    write_toy(path, {f"text_encoder/{TABLE}": table}, np.array(ids, np.int64))


def test_rows_are_put_back(tmp_path: Path) -> None:
    """Kept rows are where they were; all others are zero."""
    _write(tmp_path / "toy.safetensors", [3, 49_407])
    tensors = read_checkpoint(tmp_path / "toy.safetensors").network("text_encoder").tensors
    table = tensors[TABLE].float32()
    assert table.shape == (49_408, 2)
    assert table[3].tolist() == [6, 7]
    assert table[49_407].tolist() == [126, 127]
    assert np.flatnonzero(table.any(axis=1)).tolist() == [3, 49_407]


def test_ids_in_disorder_are_refused(tmp_path: Path) -> None:
    """Ids that do not ascend, or are no tokens, are one error that names file and field."""
    for number, ids in enumerate(([5, 3], [3, 3])):
        path = tmp_path / f"{number}.safetensors"
        _write(path, ids)
        with pytest.raises(CheckpointError, match="token_ids are no ascending ids below 49408"):
            read_checkpoint(path)


def test_what_is_of_no_network_is_listed(tmp_path: Path) -> None:
    """A tensor that nobody reads is told, as in the other layouts."""
    path = tmp_path / "toy.safetensors"
    table, ids = np.zeros((49_408, 2), np.float32), np.array([3], np.int64)
    write_toy(path, {f"text_encoder/{TABLE}": table, "lora/up": np.ones(2, np.float32)}, ids)
    assert read_checkpoint(path).unread == ["lora/up"]
