"""CLIP's vocabulary: what ids stand for, and how two token lists are shown side by side."""

from __future__ import annotations

import gzip
import re

import numpy as np
import pytest

from conformance.errors import GoldenError
from conformance.spec import golden_root
from conformance.vocabulary import CONTEXT, END, START, Vocabulary, byte_letters, side_by_side

MERGES = "spec/clip_merges.txt.gz"


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Return the vocabulary."""
    return Vocabulary.load()


def row(*ids: int) -> np.ndarray:
    """Return start, these ids, then end up to 77."""
    return np.array([49406, *ids] + [49407] * (CONTEXT - 1 - len(ids)), np.int64)


CAT = row(320, 1125, 539, 320, 2368)  # a photo of a cat


def test_size(vocabulary: Vocabulary) -> None:
    """49,408 tokens, each once: 256 bytes twice, 48,894 merges, start and end."""
    assert len(vocabulary.tokens) == len(vocabulary.ids) == 49_408
    assert len(vocabulary.merges) == 48_894
    assert [vocabulary.ids[token] for token in vocabulary.tokens] == list(range(49_408))


@pytest.mark.parametrize(
    ("token_id", "token"),
    [
        (0, "!"),
        (93, "~"),
        (188, "\u0100"),
        (255, "\u0143"),
        (256, "!</w>"),
        (511, "\u0143</w>"),
        (512, "in"),
        (320, "a</w>"),
        (2368, "cat</w>"),
        (49_405, "jekyll</w>"),
        (49_406, START),
        (49_407, END),
    ],
)
def test_ids(vocabulary: Vocabulary, token_id: int, token: str) -> None:
    """Ids are those of the published vocabulary: bytes, bytes that end a word, merges, specials."""
    assert vocabulary.name(token_id) == token
    assert vocabulary.ids[token] == token_id


@pytest.mark.parametrize("token_id", [-1, 49_408, 2**40, -(2**40)])
def test_no_id(vocabulary: Vocabulary, token_id: int) -> None:
    """What is no id has no name, and breaks nothing."""
    assert vocabulary.name(token_id) == "?"


def test_every_byte_has_a_letter() -> None:
    """256 different letters, none of them white space; printable ASCII stands for itself."""
    letters = byte_letters()
    assert sorted(letters) == list(range(256))
    assert len(set(letters.values())) == 256
    assert not any(letter.isspace() for letter in letters.values())
    assert all(letters[byte] == chr(byte) for byte in range(0x21, 0x7F))
    assert (letters[0x00], letters[0x20], letters[0xAD]) == ("\u0100", "\u0120", "\u0143")


DAMAGES = {
    "missing": (lambda _: None, "No such file"),
    "not-gzip": (gzip.decompress, "Not a gzipped file"),
    "cut-off": (lambda data: data[:1000], "ended before"),
    "one-letter": (
        lambda data: gzip.compress(b"o" + gzip.decompress(data)[1:]),
        "is damaged: sha256 of its text expected d308b7",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_merges(tmp_path, monkeypatch, damage, message: str) -> None:
    """Merges that are missing or damaged are refused with the file's name."""
    data = damage((golden_root() / MERGES).read_bytes())
    (tmp_path / "spec").mkdir()
    if data is not None:
        (tmp_path / MERGES).write_bytes(data)
    monkeypatch.setenv("SD1_GOLDEN", str(tmp_path))
    with pytest.raises(GoldenError, match=message) as caught:
        Vocabulary.load()
    assert str(tmp_path / MERGES) in str(caught.value)
    assert "restore it from the repository" in str(caught.value)


def shown(expected: np.ndarray, got: np.ndarray, *texts: str) -> list[str]:
    """Return the lines of two lists side by side."""
    pair = np.atleast_2d(expected), np.atleast_2d(got)
    return side_by_side(*pair, texts or ("a photo of a cat",)).splitlines()


def test_one_wrong_id() -> None:
    """Two places of context, the wrong one marked, each id with its token."""
    assert shown(CAT, row(320, 1125, 539, 320, 1929)) == [
        "text 0, 'a photo of a cat': 1 of 77 ids differ",
        "  place  expected                       got",
        "      3     539 of</w>                     539 of</w>",
        "      4     320 a</w>                      320 a</w>",
        ">     5    2368 cat</w>                   1929 dog</w>",
    ]


def test_first_id_wrong() -> None:
    """At the start there is no context; what is no id is a question mark."""
    got = CAT.copy()
    got[0] = -1
    assert shown(CAT, got)[2:] == [">     0   49406 <|startoftext|>             -1 ?"]


def test_end_in_another_place() -> None:
    """A token too many moves the end: what stands between is shown, equal places too."""
    assert shown(CAT, row(320, 1125, 539, 320, 320, 2368)) == [
        "text 0, 'a photo of a cat': 2 of 77 ids differ",
        "  place  expected                       got",
        "      3     539 of</w>                     539 of</w>",
        "      4     320 a</w>                      320 a</w>",
        ">     5    2368 cat</w>                    320 a</w>",
        ">     6   49407 <|endoftext|>             2368 cat</w>",
    ]


def test_wrong_padding_is_cut_with_a_count() -> None:
    """Of many differences the first twelve places are shown, and how many more there are."""
    got = CAT.copy()
    got[7:] = 0
    lines = shown(CAT, got)
    assert lines[0] == "text 0, 'a photo of a cat': 70 of 77 ids differ"
    assert lines[2] == "      5    2368 cat</w>                   2368 cat</w>"
    assert lines[4] == ">     7   49407 <|endoftext|>                0 !"
    assert len(lines[2:-1]) == 12
    assert sum(line.startswith(">") for line in lines) == 10
    assert lines[-1] == "  ... and 60 more up to place 76"


def test_last_place_only() -> None:
    """A difference at the very end is shown with nothing after it."""
    got = CAT.copy()
    got[76] = 320
    lines = shown(CAT, got)
    assert [line.split()[-2:] for line in lines[2:]] == [
        ["49407", END],
        ["49407", END],
        ["320", "a</w>"],
    ]


def test_rows_of_a_batch() -> None:
    """Each row that differs has its own heading; rows that agree are left out."""
    expected = np.stack([CAT, row(320), row(2368), row()])
    got = expected.copy()
    got[1, 1], got[3, 1] = 321, 512
    lines = shown(expected, got, "a photo of a cat", "a", "cat", "")
    assert [line for line in lines if line.startswith("text ")] == [
        "text 1, 'a': 1 of 77 ids differ",
        "text 3, '': 1 of 77 ids differ",
    ]
    assert [line.split() for line in lines if line.startswith(">")] == [
        [">", "1", "320", "a</w>", "321", "b</w>"],
        [">", "1", "49407", END, "512", "in"],
    ]


def test_text_is_safe_to_print() -> None:
    """A text is shown in ASCII on one line, and cut where it is long."""
    (first, *_) = shown(CAT, row(), "\u732b\x1b[31m\n" * 20)
    assert re.fullmatch(r"text 0, '(\\u732b\\x1b\[31m\\n)+.*\u2026: 5 of 77 ids differ", first)
    assert len(first.partition(", ")[2].partition(": ")[0]) == 60


@pytest.mark.parametrize(
    "got", [CAT, CAT[:76], np.stack([CAT, CAT])], ids=["equal", "short", "batch"]
)
def test_nothing_to_show(got: np.ndarray) -> None:
    """Equal lists, and lists of another shape, have no table."""
    assert side_by_side(CAT[None], np.atleast_2d(got), ["a photo of a cat"]) == ""
