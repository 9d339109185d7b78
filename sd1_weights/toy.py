"""The toy's file: three networks in bfloat16, with token rows only for the words that it knows.

The table of CLIP's 49,408 tokens would be most of it: the file has the rows of `TOKENS`, and all
others are zero. Everything else is called as in diffusers' folders, after `unet/`, `vae/` or
`text_encoder/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sd1_weights.errors import CheckpointError
from sd1_weights.safetensors_file import write_safetensors
from sd1_weights.stored import Stored, bfloat16

TOY = Path(__file__).with_name("toy.safetensors")
"""The file that comes with this package; `python -m sd1_impl.toy` makes it anew."""

TOKENS = "token_ids"
_TABLE = "text_encoder/text_model.embeddings.token_embedding.weight"
_VOCABULARY = 49_408


def write_toy(path: Path, weights: Mapping[str, np.ndarray], token_ids: np.ndarray) -> None:
    """Write the file, rounding to bfloat16.

    Args:
        path: The file; replaced when the new one is whole.
        weights: By name, `unet/conv_in.weight`; float32, the table of tokens whole.
        token_ids: The rows of the table that are kept; ascending, int64.
    """
    rows = [_row(TOKENS, "I64", token_ids)]
    for name, array in weights.items():
        kept = array[token_ids] if name == _TABLE else array
        rows.append(_row(name, "BF16", bfloat16(kept)))
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        write_safetensors(file, rows, {})
    temporary.replace(path)


def _row(name: str, dtype: str, bits: np.ndarray) -> Stored:
    return Stored(name, dtype, bits.shape, lambda: bits)


def split_toy(tensors: Mapping[str, Stored], path: Path) -> dict[str, dict[str, Stored]]:
    """Return the tensors of each network of such a file, its table of tokens whole.

    Args:
        tensors: Everything in the file, by name.
        path: The file, for messages.

    Returns:
        By `unet`, `vae` and `text_encoder`, then by canonical name.

    Raises:
        CheckpointError: The ids are no ascending rows of CLIP's vocabulary, one for each row that
            is there.
    """
    networks: dict[str, dict[str, Stored]] = {"unet": {}, "vae": {}, "text_encoder": {}}
    for name, tensor in tensors.items():
        owner, _, canonical = name.partition("/")
        if owner in networks:
            whole = _whole_table(tensor, tensors[TOKENS], path) if name == _TABLE else tensor
            networks[owner][canonical] = replace(whole, key=canonical)
    return networks


def _whole_table(rows: Stored, ids: Stored, path: Path) -> Stored:
    """Return a table of all tokens, zero but for some rows."""
    kept = ids.read() if ids.dtype == "I64" else np.empty(0)
    if (
        kept.shape != rows.shape[:1]
        or len(rows.shape) != 2
        or not np.all(np.diff(kept, prepend=-1, append=_VOCABULARY) > 0)
    ):
        raise CheckpointError(
            f"{path}: {TOKENS} are no ascending ids below {_VOCABULARY}, one for each of the "
            f"{rows.shape[0]} rows of {_TABLE}"
        )
    shape = (_VOCABULARY, rows.shape[1])

    def read() -> np.ndarray:
        bits = rows.read()
        table = np.zeros(shape, bits.dtype)
        table[kept] = bits
        return table

    return replace(rows, shape=shape, read=read)
