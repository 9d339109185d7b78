"""CLIP's tokenizer: a prompt to 77 ids, by byte-pair encoding.

Source: "Neural Machine Translation of Rare Words with Subword Units" (Sennrich et al., 2016),
algorithm 1, on bytes as in GPT-2 (Radford et al., 2019). The pattern of words and the order of the
vocabulary are those of OpenAI's CLIP; what is a letter, a space or lower case is settled in
docs/contract.md.
"""

import gzip
import importlib.util
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path

LENGTH = 77
START, END = 49406, 49407
SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
WORD_END = "</w>"
MERGES = Path("spec", "clip_merges.txt.gz")


class Tokenizer:
    """Turns texts into ids."""

    def __init__(self) -> None:
        """Read the merges: what was merged first has the lowest rank, and the lowest id."""
        merges = [tuple(line.split(" ")) for line in read_merges()]
        letters = list(byte_letters().values())
        ends = [letter + WORD_END for letter in letters]
        tokens = [*letters, *ends, *map("".join, merges)]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.encode_word = cache(self._encode_word)

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text: start, 75 at most, and ends up to 77."""
        ids = [START, *self.encode(text)][: LENGTH - 1]
        return ids + [END] * (LENGTH - len(ids))

    def encode(self, text: str) -> Iterator[int]:
        """Give the ids of a text alone; the names of special tokens stand for themselves."""
        names = "|".join(map(re.escape, SPECIAL))
        for part in re.split(f"({names})", text):
            if part in SPECIAL:
                yield SPECIAL[part]
                continue
            for found in word_pattern().findall(normalize(part)):
                # A name that only lower-casing made is text, yet its neighbours stay apart from it.
                words = re.findall(r"\w+|\W+", found) if found in SPECIAL else [found]
                for word in words:
                    yield from self.encode_word(word)

    def _encode_word(self, word: str) -> list[int]:
        """Merge the letters of a word, the pair of lowest rank first, until no pair has one."""
        *start, last = [byte_letters()[byte] for byte in word.encode()]
        symbols = [*start, last + WORD_END]
        while True:
            known = [pair for pair in pairwise(symbols) if pair in self.ranks]
            if not known:
                return [self.ids[symbol] for symbol in symbols]
            symbols = merge(symbols, min(known, key=self.ranks.__getitem__))


def merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Merge a pair wherever it stands, from left to right."""
    merged: list[str] = []
    rest = iter(range(len(symbols)))
    for i in rest:
        if (symbols[i], *symbols[i + 1 : i + 2]) == pair:
            merged.append("".join(pair))
            next(rest)
        else:
            merged.append(symbols[i])
    return merged


def read_merges() -> list[str]:
    """Read CLIP's merges, one a line, in the order in which they were learned.

    They lie in the suite's `golden/spec`: `SD1_GOLDEN` names another `golden`, and a copy of this
    port that has none beside it takes the installed one.
    """
    try:
        packed = (golden_folder() / MERGES).read_bytes()
    except OSError as error:
        message = f"{error}: set SD1_GOLDEN to the folder golden of sd1-conformance's repository"
        raise FileNotFoundError(message) from None
    return gzip.decompress(packed).decode().splitlines()


def golden_folder() -> Path:
    """Return the first folder `golden` that has the merges, or the one that was named."""
    if named := os.environ.get("SD1_GOLDEN"):
        return Path(named)
    beside = Path(__file__).resolve().parents[3] / "golden"
    found = importlib.util.find_spec("golden")
    installed = list(found.submodule_search_locations or []) if found else []
    folders = [beside, *map(Path, installed)]
    return next((own for own in folders if (own / MERGES).is_file()), beside)


@cache
def byte_letters() -> dict[int, str]:
    """Return a visible letter for each byte: itself in Latin-1, or one from 256 on.

    In the order of the vocabulary: bytes that are visible come first.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    visible += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def normalize(text: str) -> str:
    """Compose characters (NFC) and make them small, one by one: no sigma becomes a final one."""
    return "".join(char.lower() for char in unicodedata.normalize("NFC", text))


@cache
def word_pattern() -> re.Pattern[str]:
    """Return the pattern of a word: a contraction's end, letters, one number, or symbols.

    Python's `re` knows no Unicode categories, so their characters are written out.
    """
    classes = unicode_classes()
    letters, numbers = classes["L"], classes["N"]
    spaces = classes["Z"] + "\t-\r\x85"
    names = "|".join(map(re.escape, SPECIAL))
    contractions = "'s|'t|'re|'ve|'m|'ll|'d"
    symbols = f"[^{spaces}{letters}{numbers}]+"
    return re.compile(f"{names}|{contractions}|[{letters}]+|[{numbers}]|{symbols}")


def unicode_classes() -> dict[str, str]:
    """Return the characters of each Unicode category (L, N, Z, ...), as ranges for `re`."""
    ranges: dict[str, str] = defaultdict(str)
    for name, codes in groupby(
        range(sys.maxunicode + 1), lambda code: unicodedata.category(chr(code))[0]
    ):
        first, *_, last = [*codes] * 2
        ranges[name] += f"{chr(first)}-{chr(last)}"
    return ranges
