"""The tokenizer: transformers' ids for generated text of every kind, and what holds of any row.

By default some 2,000 strings are compared, with SD1_EXAMPLES=200 over 20,000.
"""

import os
import unicodedata

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sd1_impl.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, START_OF_TEXT, CLIPTokenizer

EXAMPLES = settings(
    max_examples=int(os.environ.get("SD1_EXAMPLES", "20")), deadline=None, derandomize=True
)
STRINGS = settings(EXAMPLES, max_examples=100 * EXAMPLES.max_examples)
LONGEST = 10_000
"""Characters."""

TOKENIZER = CLIPTokenizer()
WORDS = sorted(TOKENIZER.decode([i]) for i in range(512, 49_406))


EARLIEST = unicodedata.ucd_3_2_0


def composes(character: str) -> bool:
    """Say whether a character's canonical form is another one."""
    return unicodedata.decomposition(character)[:1] not in ("", "<")


def settled() -> str:
    """Return the characters on which all tables of Unicode that are in use agree.

    Not known to Python: newer tables, some of the reference's among them, call some letters.
    Known, but since version 3.2: those that normal forms move or compose, because the reference's
    normal forms are Unicode 9's (docs/contract.md, "Unicode versions").
    """
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    new = [c for c in known if EARLIEST.category(c) == "Cn"]
    parts = {part for c in new if composes(c) for part in unicodedata.normalize("NFD", c)}
    moved = {c for c in new if c in parts or composes(c) or unicodedata.combining(c)}
    return "".join(c for c in known if c not in moved)


SETTLED = settled()


def one_of(*categories: str) -> st.SearchStrategy[str]:
    """Draw a character of these Unicode categories."""
    return st.sampled_from([c for c in SETTLED if unicodedata.category(c) in categories])


def between(first: int, last: int) -> st.SearchStrategy[str]:
    """Draw a character of a range."""
    return st.sampled_from([c for c in SETTLED if first <= ord(c) <= last])


ANY = st.sampled_from(SETTLED)
MARKS = one_of("Mn", "Mc", "Me")
SPACES = one_of("Zs", "Zl", "Zp") | st.sampled_from("\t\n\v\f\r\x85")
EMOJI = st.sampled_from("😀👩👨🧑👍🏳❤☺✊🐈🚀🇩🇪🇯🇵#1")
TONES = st.sampled_from(["", "\U0001f3fb", "\U0001f3ff", "\ufe0f", "\ufe0e", "\u20e3"])
JOINED = st.lists(st.tuples(EMOJI, TONES).map("".join), min_size=1, max_size=4).map("\u200d".join)
BIDI = st.sampled_from("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
RIGHT_TO_LEFT, CJK = between(0x5D0, 0x6FF), between(0x2E80, 0x9FFF)
HANGUL = between(0x1100, 0x11FF) | st.sampled_from("가각힣")
CONTRACTIONS = st.tuples(
    st.sampled_from(["'", "''", "\u2019", "' "]),
    st.sampled_from(["s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "\u017f", "x", ""]),
).map("".join)
SPECIALS = st.sampled_from(
    [
        *(START_OF_TEXT, END_OF_TEXT, END_OF_TEXT.upper(), "<|EndOfText|>", "<| endoftext |>"),
        *("<|", "|>", "<|endoftext", "endoftext|>", "<|pad|>", "</w>", "<\uff5cendoftext\uff5c>"),
    ]
)
ENTITIES = st.sampled_from(["&amp;", "&lt;|endoftext|&gt;", "&#39;s", "&nbsp;", "&eacute;", "&amp"])
CASES = st.sampled_from("ßẞſİıŁΣςσǅǆŒÆÅKÉé\u212a\u1e9e\u0345\u0338\u0301")  # noqa: RUF001
PIECES = st.one_of(
    *(st.sampled_from(WORDS), st.sampled_from(WORDS).map(str.title), ANY, one_of("Cc", "Cf")),
    *(st.tuples(ANY, st.text(MARKS, max_size=4)).map("".join), SPACES, JOINED, BIDI),
    *(RIGHT_TO_LEFT, CJK, HANGUL, CONTRACTIONS, SPECIALS, ENTITIES, CASES),
    *(one_of("Nd", "Nl", "No"), one_of("Lu", "Lt"), one_of("Po", "Ps", "Sm", "Sk"), st.just("\0")),
)
TEXTS = st.builds(str.join, st.sampled_from(["", "", " "]), st.lists(PIECES, max_size=6))
LONG_TEXTS = st.tuples(TEXTS.filter(bool), st.integers(1, LONGEST)).map(
    lambda pair: (pair[0] * pair[1])[:LONGEST]
)


@pytest.fixture(scope="module")
def theirs():
    """Transformers' tokenizer, as the published checkpoint of SD v1 configures it."""
    pytest.importorskip("diffusers")
    from conformance.adapters.diffusers_networks import Tokenizer

    return Tokenizer().tokenizer


def assert_same(theirs, text: str) -> None:
    """Compare all ids of a text, what they decode to, and its row of 77."""
    ids = TOKENIZER.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False), ascii(text[:200])
    assert TOKENIZER.decode(ids) == theirs.decode(ids)
    row = theirs(text, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True)
    assert TOKENIZER(text)[0].tolist() == row["input_ids"]


@STRINGS
@given(TEXTS)
def test_any_text_has_the_references_ids(theirs, text):
    """All scripts, planes, emoji, marks, directions, controls, spaces, look-alikes, words."""
    assert_same(theirs, text)


@EXAMPLES
@given(LONG_TEXTS)
@example("a" * LONGEST)
@example("\u0301" * LONGEST)
@example("👩\u200d" * (LONGEST // 2))
@example(f"{END_OF_TEXT}\u0338'S" * 600)
def test_a_long_text_has_the_references_ids(theirs, text):
    """Up to 10,000 characters, in one word or in many."""
    assert_same(theirs, text)


@EXAMPLES
@given(TEXTS, TEXTS, SPACES)
def test_white_space_separates_and_nothing_else(theirs, left, right, space):
    """Two texts with any white space between have the ids of one, then those of the other."""
    for encode in (TOKENIZER.encode, lambda text: theirs.encode(text, add_special_tokens=False)):
        assert encode(left + space + right) == encode(left) + encode(right)
        assert encode(space + left + space) == encode(left)


@EXAMPLES
@given(st.lists(TEXTS | LONG_TEXTS, max_size=4))
def test_a_row_is_a_start_ids_and_ends(texts):
    """77 ids in the vocabulary: the start, as many of the text as fit, ends to the last place."""
    rows = TOKENIZER(texts)
    assert (rows.shape, rows.dtype) == ((len(texts), CONTEXT_LENGTH), torch.int64)
    start, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    for text, row in zip(texts, rows.tolist(), strict=True):
        ids = TOKENIZER.encode(text)[: CONTEXT_LENGTH - 2]
        assert row == [start, *ids, *[end] * (CONTEXT_LENGTH - 1 - len(ids))]
        assert TOKENIZER(text)[0].tolist() == row


@EXAMPLES
@given(TEXTS)
def test_normal_form_and_case_are_no_input(text):
    """But for what special tokens' names are made of, a text has the ids of its lower case."""
    plain = text.replace("<", "").replace(">", "")
    composed = unicodedata.normalize("NFC", plain)
    wanted = TOKENIZER.encode(plain)
    assert TOKENIZER.encode(composed) == wanted
    assert TOKENIZER.encode(unicodedata.normalize("NFD", plain)) == wanted


@EXAMPLES
@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_a_word_of_the_vocabulary_is_not_changed_by_its_neighbours(words):
    """A text of words has the ids of each in turn."""
    each = [i for word in words for i in TOKENIZER.encode(word)]
    assert TOKENIZER.encode(" ".join(words)) == each
