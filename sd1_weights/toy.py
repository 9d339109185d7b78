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
from sd1_weights.stored import Stored

TOY = Path(__file__).with_name("toy.safetensors")
"""The file that comes with this package; `python -m sd1_impl.toy` makes it anew."""

TOKENS = "token_ids"
"""Which rows of the table are in the file."""

TABLE = "text_encoder/text_model.embeddings.token_embedding.weight"
"""Of the tokens' rows."""

_VOCABULARY = 49_408


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
            whole = _whole_table(tensor, tensors[TOKENS], path) if name == TABLE else tensor
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
            f"{rows.shape[0]} rows of {TABLE}"
        )
    shape = (_VOCABULARY, rows.shape[1])

    def read() -> np.ndarray:
        bits = rows.read()
        table = np.zeros(shape, bits.dtype)
        table[kept] = bits
        return table

    return replace(rows, shape=shape, read=read)
