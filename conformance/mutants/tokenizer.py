"""Wrong tokenizers: other words, other bytes, other merges, rows of another length."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import regex  # type: ignore[import-untyped,import-not-found]
import torch

from conformance.mutants.mutant import Mutant, NotRun, Patch
from sd1_impl import tokenizer
from sd1_impl.tokenizer import CONTEXT_LENGTH, WORD_END, CLIPTokenizer

Row = Callable[[CLIPTokenizer, list[int]], list[int]]
"""Makes a row out of the ids of a text, which have no start, no end and any number."""

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
SPECIALS = r"<\|startoftext\|>|<\|endoftext\|>"


def _rows(make: Row) -> Callable[[Patch], None]:
    """Make rows in another way; they are padded to the longest, at the end of text."""

    def call(self: CLIPTokenizer, texts: str | Sequence[str]) -> Any:
        texts = [texts] if isinstance(texts, str) else texts
        rows = [make(self, self.encode(text)) for text in texts]
        longest = max(map(len, rows), default=CONTEXT_LENGTH)
        padded = [row + [self.eos_token_id] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(-1, longest)

    return lambda patch: patch.setattr(CLIPTokenizer, "__call__", call)


def _zeros(self: CLIPTokenizer, ids: list[int]) -> list[int]:
    row = [self.bos_token_id, *ids[: CONTEXT_LENGTH - 2], self.eos_token_id]
    return row + [0] * (CONTEXT_LENGTH - len(row))


def _natural_length(self: CLIPTokenizer, ids: list[int]) -> list[int]:
    return [self.bos_token_id, *ids[: CONTEXT_LENGTH - 2], self.eos_token_id]


def _cut_last(self: CLIPTokenizer, ids: list[int]) -> list[int]:
    padding = [self.eos_token_id] * CONTEXT_LENGTH
    return [self.bos_token_id, *ids, *padding][:CONTEXT_LENGTH]


def _never_cut(self: CLIPTokenizer, ids: list[int]) -> list[int]:
    padding = [self.eos_token_id] * max(1, CONTEXT_LENGTH - 1 - len(ids))
    return [self.bos_token_id, *ids, *padding]


def _lower_as_a_whole(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()


def _words(pattern: str) -> Callable[[Patch], None]:
    """Find words by another pattern; special tokens are cut out first, as ever."""

    def change(patch: Patch) -> None:
        patch.setattr(tokenizer, "_WORD", regex.compile(pattern))
        patch.setattr(tokenizer, "_PIECE", regex.compile(f"{SPECIALS}|{pattern}"))

    return change


def _split_at_spaces(patch: Patch) -> None:
    patch.setattr(tokenizer, "_split", lambda text: [word for word in text.split(" ") if word])


def _strip_accents(patch: Patch) -> None:
    def changed(normalise: Callable[[str], str]) -> Callable[[str], str]:
        def bare(text: str) -> str:
            letters = unicodedata.normalize("NFD", text)
            return normalise("".join(c for c in letters if not unicodedata.combining(c)))

        return bare

    patch.wrap(tokenizer, "_normalise", changed)


def _code_points(patch: Patch) -> None:
    def bpe(self: CLIPTokenizer, word: str) -> list[str]:
        symbols = [*word[:-1], word[-1] + WORD_END]
        while True:
            pairs = enumerate(pairwise(symbols))
            known = [(self._ranks[pair], i) for i, pair in pairs if pair in self._ranks]
            if not known:
                return [symbol for symbol in symbols if symbol in self.vocabulary]
            _, i = min(known)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]

    patch.setattr(CLIPTokenizer, "_bpe", bpe)


def _keep_capitals(patch: Patch) -> None:
    patch.setattr(tokenizer, "_normalise", lambda text: unicodedata.normalize("NFC", text))


def _last_merge_lost(patch: Patch) -> None:
    def start(init: Callable[..., None]) -> Callable[..., None]:
        def with_written_ids(self: CLIPTokenizer, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            self.bos_token_id, self.eos_token_id = 49_406, 49_407

        return with_written_ids

    patch.wrap(tokenizer, "_read_merges", lambda read: lambda path: read(path)[:-1])
    patch.wrap(CLIPTokenizer, "__init__", start)


def _specials_as_text(patch: Patch) -> None:
    patch.setattr(tokenizer, "_SPECIAL", regex.compile("(?!)"))
    patch.setattr(tokenizer, "_PIECE", tokenizer._WORD)


def _bytes_in_order(patch: Patch) -> None:
    patch.wrap(tokenizer, "_byte_letters", lambda letters: lambda: dict(sorted(letters().items())))


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="tok-pad-zero",
        component="tokenizer",
        wrong="After its first end of text a row is filled with id 0, as SD v2's is",
        seen="diffusers#2201, candle#362 (be21d7e), Stability-AI/stablediffusion#28; proposed as "
        "a fix in A1111#6097",
        evidence="R",
        size="visible",
        cases=("-/plain", "-/exclamation-mark", "-/empty"),
        patch=_rows(_zeros),
        dtype="int64",
    ),
    Mutant(
        id="tok-no-pad-77",
        component="tokenizer",
        wrong="A row ends with its text, or with the longest text of the batch",
        seen="candle#342 (89d3926), mlx-examples stable_diffusion/__init__.py _tokenize",
        evidence="R",
        size="visible",
        cases=("-/plain", "-/batch-two-lengths", "-/empty"),
        patch=_rows(_natural_length),
        dtype="int64",
    ),
    Mutant(
        id="tok-trunc-drops-eos",
        component="tokenizer",
        wrong="A text that is too long fills the row to its last place, so that no end is left",
        seen="diffusers#1226 (4c660d1), kjsman tokenizer.py",
        evidence="R",
        size="visible",
        cases=("-/tokens-76", "-/tokens-77", "-/batch-short-and-too-long"),
        patch=_rows(_cut_last),
        dtype="int64",
    ),
    Mutant(
        id="tok-long-prompt-crash",
        component="tokenizer",
        wrong="A text that is too long is not cut: its row is longer than the position table",
        seen="candle#1839, candle#1908, divamgupta#18, divamgupta#20, apple BPETokenizer.swift",
        evidence="R",
        size="catastrophic",
        cases=("-/tokens-78", "-/tokens-76", "-/very-long"),
        patch=_rows(_never_cut),
        dtype="int64",
    ),
    Mutant(
        id="tok-regex-no-unicode-classes",
        component="tokenizer",
        wrong="Whatever stands between two spaces is one word, contractions excepted",
        seen="tinygrad#382, tinygrad extra/models/clip.py",
        evidence="C",
        size="visible",
        cases=("-/commas", "-/digit-runs", "-/underscores"),
        patch=_words(rf"{CONTRACTIONS}|\S+"),
        dtype="int64",
    ),
    Mutant(
        id="tok-space-split-only",
        component="tokenizer",
        wrong="Words are found by splitting at the space character, without any pattern",
        seen="apple BPETokenizer.swift; alike microsoft/BlingFire#173",
        evidence="C",
        size="visible",
        cases=("-/commas", "-/crlf-and-tab", "-/contractions"),
        patch=_split_at_spaces,
        dtype="int64",
    ),
    Mutant(
        id="tok-apostrophe-split",
        component="tokenizer",
        wrong="An apostrophe is a word of its own, so that no contraction is kept whole",
        seen="transformers#22166, #26887, PR#22280; microsoft/onnxruntime-extensions#574",
        evidence="R",
        size="visible",
        cases=("-/should-have", "-/all-contractions", "-/contractions"),
        patch=_words(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"),
        dtype="int64",
    ),
    Mutant(
        id="tok-strip-accents",
        component="tokenizer",
        wrong="Letters lose their accents before they are looked up",
        seen="transformers#19118",
        evidence="R",
        size="visible",
        cases=("-/resume-accents", "-/cafe-combining-acute", "-/accented-capitals"),
        patch=_strip_accents,
        dtype="int64",
    ),
    Mutant(
        id="tok-space-marker",
        component="tokenizer",
        wrong="The space before a word belongs to the word, as in GPT-2",
        seen="transformers#12648, PR#15067",
        evidence="R",
        size="catastrophic",
        cases=("-/plain", "-/double-spaces", "-/artist-names"),
        patch=_words(rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+"),
        dtype="int64",
    ),
    Mutant(
        id="tok-no-byte-level",
        component="tokenizer",
        wrong="Merging begins at code points instead of bytes, and drops those it does not know",
        seen="stable-diffusion.cpp#120 (8f6b4a3), diffusers-rs PR#19 (b579d41), mlx-examples "
        "tokenizer.py",
        evidence="R",
        size="visible",
        cases=("-/contraction-curly", "-/emoji", "-/latin-1-letters"),
        patch=_code_points,
        dtype="int64",
    ),
    Mutant(
        id="tok-lowercase-missing-or-late",
        component="tokenizer",
        wrong="Capitals stay capitals",
        seen="stable-diffusion.cpp#1582, #1670",
        evidence="R",
        size="visible",
        cases=("-/capitals", "-/accented-capitals", "-/mixed-case"),
        patch=_keep_capitals,
        dtype="int64",
    ),
    Mutant(
        id="own-tok-final-sigma",
        component="tokenizer",
        wrong="Text is put into lower case as a whole: the last capital sigma of a word becomes "
        "another letter",
        seen="a newcomer's port in NumPy; openai/CLIP simple_tokenizer.py",
        size="subtle",
        cases=("-/greek-final-sigma",),
        patch=lambda patch: patch.setattr(tokenizer, "_normalise", _lower_as_a_whole),
        dtype="int64",
    ),
    Mutant(
        id="tok-merges-slice-off-by-one",
        component="tokenizer",
        wrong="The last merge is lost, which ids of start and end written into the code hide",
        seen="slice constants of openai/CLIP simple_tokenizer.py and of its copies",
        evidence="I",
        size="catastrophic",
        cases=("-/jekyll", "-/end-in-text"),
        patch=_last_merge_lost,
        dtype="int64",
    ),
    Mutant(
        id="tok-special-string-in-prompt",
        component="tokenizer",
        wrong="The name of a special token is ordinary text to it",
        seen="order of stable-diffusion.cpp#1582, #1670",
        evidence="I",
        size="visible",
        cases=("-/end-in-text", "-/start-in-text", "-/special-glued"),
        patch=_specials_as_text,
        dtype="int64",
    ),
    Mutant(
        id="fix-tok-dequirk-vocabulary",
        component="tokenizer",
        wrong="The 256 bytes are numbered from 0 to 255, not the printable ones first, as tidiness "
        "would have it",
        evidence="fix",
        size="catastrophic",
        cases=("-/plain", "-/one-letter", "-/ascii-symbols-apart"),
        patch=_bytes_in_order,
        dtype="int64",
    ),
)

NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "tok-truncation-warning-off-by-one",
        "Only the text of a warning about what was cut is wrong; the ids are right, and sd1_impl "
        "gives no such warning",
    ),
    NotRun(
        "fix-tok-pad-zero-after-sd2",
        "It is tok-pad-zero, proposed as a correction",
    ),
)
