"""CLIP's vocabulary, from the merges in `golden/spec/`: what token ids stand for."""

from __future__ import annotations

import gzip
import hashlib
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from conformance.errors import GoldenError
from conformance.report.text import shorten
from sd1_weights.names import golden_root

START = "<|startoftext|>"
END = "<|endoftext|>"
CONTEXT = 77
"""Ids of a row."""

MERGES_SHA256 = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
"""Of the merges' text: golden/spec/clip_merges.md says where they come from."""

_WORD_END = "</w>"
_BYTES = 256


class Vocabulary:
    """The 49,408 tokens of CLIP.

    Attributes:
        merges: Pairs of tokens, most urgent first.
        ids: Token to id.
        tokens: Id to token.
    """

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        """Derive the tokens: bytes, bytes that end a word, merged pairs, the two special ones."""
        letters = list(byte_letters().values())
        merged = [left + right for left, right in merges]
        self.merges = merges
        self.tokens = [*letters, *(letter + _WORD_END for letter in letters), *merged, START, END]
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    @classmethod
    def load(cls) -> Vocabulary:
        """Read `golden/spec/clip_merges.txt.gz`.

        Raises:
            GoldenError: The file is missing or damaged.
        """
        return _load(golden_root())

    def name(self, token_id: int) -> str:
        """Return a token as text, or `?` for an id that is none."""
        return self.tokens[token_id] if 0 <= token_id < len(self.tokens) else "?"

    def spelled(self, ids: Iterable[int]) -> str:
        """Return what ids spell, without spaces and without the ends after the last token."""
        letters = {letter: byte for byte, letter in byte_letters().items()}
        raw = bytearray()
        for name in map(self.name, ids):
            special = name in (START, END)
            text = name.removesuffix(_WORD_END)
            raw += text.encode() if special else bytes(letters.get(own, 0) for own in text)
        return _squeezed(raw.decode("utf-8", "ignore")).removeprefix(START)

    def belongs(self, ids: Sequence[int], text: str) -> bool:
        """Say whether a row of ids, cut at its length, spells a text."""
        ends = len(ids) - 1
        while ends > 1 and self.name(ids[ends - 1]) == END:
            ends -= 1
        own, whole = self.spelled(ids[:ends]), _squeezed(text)
        bounded = (self.name(ids[0]), self.name(ids[-1])) == (START, END)
        return bounded and (whole.startswith(own) if ends == len(ids) - 1 else whole == own)


def _squeezed(text: str) -> str:
    """Return a text as the tokenizer reads it, without spaces and last ends."""
    text = "".join(unicodedata.normalize("NFC", text).lower().split())
    while text.endswith(END):
        text = text.removesuffix(END)
    return text


@cache
def _load(root: Path) -> Vocabulary:
    path = root / "spec" / "clip_merges.txt.gz"
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path}: {error}; restore it from the repository"
        raise GoldenError(message) from error
    found = hashlib.sha256(text).hexdigest()
    if found != MERGES_SHA256:
        message = (
            f"{path} is damaged: sha256 of its text expected {MERGES_SHA256}, found {found}; "
            "restore it from the repository"
        )
        raise GoldenError(message)
    pairs = [line.split(" ") for line in text.decode("utf-8").splitlines()]
    return Vocabulary([(left, right) for left, right in pairs])


def byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte, in the vocabulary's order.

    Printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    letters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(_BYTES) if byte not in letters]
    return letters | {byte: chr(_BYTES + i) for i, byte in enumerate(others)}


_BEFORE = 2
_ROWS = 12
"""Places shown before the first difference, and in all."""
_TEXT = 60
"""Longest text shown, in characters."""


def side_by_side(expected: np.ndarray, got: np.ndarray, texts: Sequence[str]) -> str:
    """Show two token lists next to each other, around their first difference.

    Args:
        expected: int64 (batch, 77).
        got: The same shape.
        texts: What the rows are the tokens of.

    Returns:
        Lines of text: for each row of the batch that differs, a heading and a table with place,
        expected id and token, and the id and token that came instead; differences are marked.
        Empty where the lists are equal or have another shape.
    """
    if expected.shape != got.shape:
        return ""
    lines = []
    for row in np.flatnonzero((expected != got).any(axis=1)).tolist():
        differs = expected[row] != got[row]
        first = int(np.argmax(differs))
        start = max(0, first - _BEFORE)
        last = int(np.flatnonzero(differs)[-1])
        end = min(last + 1, start + _ROWS)
        text = shorten(ascii(texts[row]), _TEXT)
        lines.append(f"text {row}, {text}: {int(differs.sum())} of {len(differs)} ids differ")
        lines.append(f"  place  {'expected':30s} got")
        lines += [
            f"{'>' if differs[i] else ' '} {i:5d}  {_shown(expected[row, i]):30s} "
            f"{_shown(got[row, i])}"
            for i in range(start, end)
        ]
        hidden = int(differs[end:].sum())
        if hidden:
            lines.append(f"  ... and {hidden} more up to place {last}")
    return "\n".join(lines)


def _shown(token_id: int) -> str:
    """Return an id with its token."""
    return f"{token_id:6d} {Vocabulary.load().name(int(token_id))}"
