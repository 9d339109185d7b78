"""The tokenizer of CLIP: a prompt in, the 77 ids that the text encoder reads out.

Byte-pair encoding (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units",
2016) of the UTF-8 bytes of words; pattern and vocabulary are those of ``clip/simple_tokenizer.py``
of openai/CLIP. Unlike that file, and like transformers' ``CLIPTokenizer``, this one puts text into
normal form C, finds special tokens before it lower-cases, and leaves out ftfy and HTML unescaping.

What is a letter, a lower-case letter or a composed one comes from the Unicode tables of Python and
``regex``: any two versions of them agree but for characters that only one knows.
"""

import gzip
import hashlib
import heapq
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import regex
import torch
from torch import Tensor

CONTEXT_LENGTH = 77
"""Ids in a row, start and end included: ``context_length`` of CLIP's text encoder."""

START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

MERGES_FILE = Path(__file__).parents[1] / "golden" / "spec" / "clip_merges.txt.gz"
MERGES_COUNT = 48_894
MERGES_SHA256 = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"

_SPECIAL = regex.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
_WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
_PIECE = regex.compile(rf"{_SPECIAL.pattern[1:-1]}|{_WORD.pattern}")


class CLIPTokenizer:
    """Text to ids and back.

    Args:
        merges_file: CLIP's merges, ``golden/spec/clip_merges.txt.gz`` of this project.

    Attributes:
        vocabulary: Token to id, 49,408 of them: the 256 bytes, the same ending a word, one token
            per merge in the order in which they were learned, start and end of text.
        merges: Pairs of tokens, the one learned first in front.
        bos_token_id: Id of ``<|startoftext|>``.
        eos_token_id: Id of ``<|endoftext|>``, which also pads.

    Raises:
        ValueError: If the merges are missing or not CLIP's.
    """

    def __init__(self, merges_file: str | Path = MERGES_FILE) -> None:
        self.merges = _read_merges(Path(merges_file))
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._letters = _byte_letters()
        self._bytes = {letter: byte for byte, letter in self._letters.items()}

        letters = list(self._letters.values())
        merged = [left + right for left, right in self.merges]
        endings = [letter + WORD_END for letter in letters]
        self._tokens = [*letters, *endings, *merged, START_OF_TEXT, END_OF_TEXT]
        self.vocabulary = {token: i for i, token in enumerate(self._tokens)}
        self.bos_token_id = self.vocabulary[START_OF_TEXT]
        self.eos_token_id = self.vocabulary[END_OF_TEXT]
        self._cache: dict[str, list[int]] = {}

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Turn prompts into rows for the text encoder.

        Args:
            texts: One prompt or B of them.

        Returns:
            ``(B, 77)``, int64: start of text, up to 75 ids, end of text to the end of the row. A
            longer text is cut, wherever that is in a word.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = []
        for text in texts:
            ids = self.encode(text)[: CONTEXT_LENGTH - 2]
            padding = [self.eos_token_id] * (CONTEXT_LENGTH - 1 - len(ids))  # at least one: the end
            rows.append([self.bos_token_id, *ids, *padding])
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, CONTEXT_LENGTH)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text: no start, no end, any number of them.

        Raises:
            TypeError: If it is no text.
            UnicodeEncodeError: If it has a lone surrogate, which UTF-8 cannot write.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}, expected str")
        ids = []
        for part in _SPECIAL.split(text):
            if part in (START_OF_TEXT, END_OF_TEXT):
                ids.append(self.vocabulary[part])
                continue
            for word in _split(_normalise(part)):
                if word not in self._cache:
                    self._cache[word] = [self.vocabulary[token] for token in self._bpe(word)]
                ids += self._cache[word]
        return ids

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ids: bytes as printable letters, ``</w>`` at the end of words."""
        return [self._tokens[i] for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids: lower case, a space after each word, U+FFFD for broken UTF-8."""
        text = bytes(self._bytes[letter] for letter in "".join(self.tokens(ids)))
        return text.decode("utf-8", errors="replace").replace(WORD_END, " ").strip()

    def _bpe(self, word: str) -> list[str]:
        """Split a word into tokens: merge the pair learned first, the leftmost of equals, repeat.

        Symbols form a linked list and pairs wait in a heap, so that n letters take n log n steps.
        """
        symbols = [self._letters[byte] for byte in word.encode("utf-8")]
        symbols[-1] += WORD_END
        count = len(symbols)
        after = list(range(1, count + 1))
        before = list(range(-1, count - 1))
        heap: list[tuple[int, int]] = []

        def push(i: int) -> None:
            """Let the pair that begins at symbol i wait for its turn, if it is one of CLIP's."""
            if i >= 0 and after[i] < count:
                rank = self._ranks.get((symbols[i], symbols[after[i]]))
                if rank is not None:
                    heapq.heappush(heap, (rank, i))

        for i in range(count):
            push(i)
        while heap:
            rank, i = heapq.heappop(heap)
            j = after[i]
            if j == count or self._ranks.get((symbols[i], symbols[j])) != rank:
                continue  # one of the two has been merged into something else meanwhile
            symbols[i] += symbols[j]
            symbols[j] = ""
            after[i] = after[j]
            if after[j] < count:
                before[after[j]] = i
            push(before[i])
            push(i)
        return [symbol for symbol in symbols if symbol]


def _normalise(text: str) -> str:
    """Compose characters (normal form C), then put each into lower case.

    One by one, as transformers does: ``lower`` of a whole text, which openai/CLIP used, turns the
    capital sigma at the end of a Greek word into another letter than elsewhere.
    """
    return "".join(map(str.lower, unicodedata.normalize("NFC", text)))


def _split(text: str) -> list[str]:
    """Split a text into words: contractions, runs of letters, single digits, runs of the rest.

    White space separates and is dropped. A special token's name that was in capitals is cut out
    from what surrounds it, but is made of three ordinary words.
    """
    return [word for piece in _PIECE.findall(text) for word in _WORD.findall(piece)]


def _byte_letters() -> dict[int, str]:
    """Return a printable character per byte, in the order of ids (``bytes_to_unicode``).

    Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Return CLIP's merges, first learned first; refuse a file that holds anything else."""
    fix = "golden/spec/clip_merges.md says how to make it anew"
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read CLIP's merges from {path} ({error}): {fix}") from error
    count, sha256 = text.count(b"\n"), hashlib.sha256(text).hexdigest()
    if (count, sha256) != (MERGES_COUNT, MERGES_SHA256):
        raise ValueError(
            f"{path} does not hold CLIP's merges: {count} lines with SHA-256 {sha256}, "
            f"expected {MERGES_COUNT} with {MERGES_SHA256}: {fix}"
        )
    pairs = (line.split(" ") for line in text.decode("utf-8").splitlines())
    return [(left, right) for left, right in pairs]
