"""The tokenizer against transformers' CLIPTokenizer, string by string; and what the strings catch.

The strings are `golden/spec/strings.json`. Their power is tested with wrong tokenizers: each one
must fail on the strings named beside it.
"""

import gzip
import html
import json
import re
import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pytest
import regex
import torch
from hypothesis import example, given, settings

import sd1_impl.tokenizer as module
from sd1_impl.tokenizer import END_OF_TEXT, MERGES_FILE, START_OF_TEXT, CLIPTokenizer

STRINGS = json.loads((MERGES_FILE.parent / "strings.json").read_text(encoding="utf-8"))
# tok-truncation-warning-off-by-one also has a string, but its bug is in a message, not in ids.
CATALOGUE = [
    *("pad-zero", "no-pad-77", "trunc-drops-eos", "long-prompt-crash"),
    *("truncation-warning-off-by-one", "regex-no-unicode-classes", "space-split-only"),
    *("apostrophe-split", "strip-accents", "space-marker", "no-byte-level"),
    *("lowercase-missing-or-late", "merges-slice-off-by-one", "special-string-in-prompt"),
]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """Our tokenizer."""
    return CLIPTokenizer()


@pytest.fixture(scope="module")
def expected(tokenizer: CLIPTokenizer) -> dict:
    """The ids of every string, which the next test compares with the reference."""
    return {name: tokenizer(entry["text"]).tolist() for name, entry in STRINGS.items()}


def texts_of(name: str) -> list[str]:
    """Return the texts of a string's entry as a list."""
    text = STRINGS[name]["text"]
    return [text] if isinstance(text, str) else text


@pytest.mark.parametrize("name", STRINGS)
def test_string_is_the_references(tokenizer: CLIPTokenizer, their_tokenizer, name: str) -> None:
    """Every golden string gives the reference's rows, and its ids decode to the same text."""
    texts = texts_of(name)
    wanted = their_tokenizer(texts, padding="max_length", max_length=77, truncation=True)[
        "input_ids"
    ]
    rows = tokenizer(STRINGS[name]["text"])
    assert rows.tolist() == wanted
    for row, text in zip(wanted, texts, strict=True):
        assert tokenizer.decode(row) == their_tokenizer.decode(row)
        assert tokenizer.encode(text) == their_tokenizer.encode(text, add_special_tokens=False)


# What all Unicode tables since 4.1 agree on: characters that version 3.2 already had.
ASSIGNED = "".join(
    character
    for character in map(chr, range(0x110000))
    if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Co", "Cs")
)
AWKWARD = [START_OF_TEXT, END_OF_TEXT, "<|ENDOFTEXT|>", "<|", "|>", "'s", "'LL", "'", "  ", "\x1c"]
AWKWARD += ["\u2019s", "\u017f", "\u0130", "\u03a3", "\u01c4"]  # quote, long s, I, Sigma, DZ
AWKWARD += ["\u0301", "\u0345", "\u0338", "\u1100", "\u1161", "\u11a8"]  # what composes


@given(
    st.lists(
        st.sampled_from(ASSIGNED) | st.characters(max_codepoint=0x7F) | st.sampled_from(AWKWARD)
    ).map("".join)
)
@example("<|ENDOFTEXT|>\u0338'S")
@settings(max_examples=500, deadline=None)
def test_any_text_is_the_references(tokenizer: CLIPTokenizer, their_tokenizer, text: str) -> None:
    """Random text of all scripts gives the reference's ids, which decode to the same text."""
    ids = tokenizer.encode(text)
    assert ids == their_tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == their_tokenizer.decode(ids)


def test_vocabulary_is_clips(tokenizer: CLIPTokenizer, their_tokenizer) -> None:
    """49,408 tokens, each with the published id; the special ones are found, not assumed."""
    vocabulary = tokenizer.vocabulary
    assert len(vocabulary) == 49_408
    assert vocabulary == their_tokenizer.get_vocab()
    assert tokenizer.bos_token_id == vocabulary["<|startoftext|>"] == 49_406
    assert tokenizer.eos_token_id == vocabulary["<|endoftext|>"] == 49_407
    corners = {"!": 0, "!</w>": 256, "in": 512, "jekyll</w>": 49_405}
    assert {token: vocabulary[token] for token in corners} == corners


def test_known_ids(tokenizer: CLIPTokenizer) -> None:
    """Ids that are in print everywhere."""
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode("a <|endoftext|> b") == [320, 49_407, 321]
    assert tokenizer.tokens([320, 1125, 2368]) == ["a</w>", "photo</w>", "cat</w>"]


@pytest.mark.parametrize("count", [0, 1, 74, 75, 76, 77, 78, 1000])
def test_a_row_has_77_ids_and_an_end(tokenizer: CLIPTokenizer, count: int) -> None:
    """Start, up to 75 ids, then ends to the last place, which no length of text can take away."""
    rows = tokenizer(["cat " * count, "a dog"])
    assert rows.dtype == torch.int64
    assert rows.shape == (2, 77)
    kept = min(count, 75)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert rows[0].tolist() == [bos] + [2368] * kept + [eos] * (76 - kept)
    assert torch.equal(rows[1:], tokenizer("a dog"))


def test_no_text_gives_no_row(tokenizer: CLIPTokenizer) -> None:
    """An empty batch keeps its shape."""
    assert tokenizer([]).shape == (0, 77)


@pytest.mark.parametrize("name", ["plain", "cyrillic", "japanese", "emoji", "hangul-syllables"])
def test_text_survives_the_round_trip(tokenizer: CLIPTokenizer, name: str) -> None:
    """Lower-case words between single spaces come back from their ids."""
    (text,) = texts_of(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_time_of_a_long_word_is_not_quadratic(their_tokenizer) -> None:
    """A word of 100,000 letters looks up a few pairs per letter."""

    class Counting(dict):
        lookups = 0

        def get(self, pair: tuple[str, str]) -> int | None:
            self.lookups += 1
            return super().get(pair)

    word = "".join(chr(ord("a") + (i * i // 7 + i // 3) % 26) for i in range(100_000))
    fresh = CLIPTokenizer()
    fresh._ranks = Counting(fresh._ranks)
    assert fresh.encode(word) == their_tokenizer.encode(word, add_special_tokens=False)
    assert fresh._ranks.lookups < 10 * len(word)


@pytest.mark.parametrize("text", [None, b"a cat", 7], ids=["none", "bytes", "int"])
def test_what_is_no_text_is_named(tokenizer: CLIPTokenizer, text: object) -> None:
    """Anything but text in a batch is refused, not spelt."""
    with pytest.raises(TypeError, match=f"text is {type(text).__name__}, expected str"):
        tokenizer(["a cat", text])


def test_a_lone_surrogate_is_refused(tokenizer: CLIPTokenizer) -> None:
    """Half a character has no UTF-8."""
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        tokenizer("a \ud83d cat")


MERGES_TEXT = gzip.decompress(MERGES_FILE.read_bytes())
DAMAGES = {
    "missing": (None, "cannot read .*No such file"),
    "not-gzip": (MERGES_TEXT, "cannot read .*Not a gzipped file"),
    "cut-off": (gzip.compress(MERGES_TEXT)[:1000], "cannot read .*ended before"),
    "one-short": (
        gzip.compress(MERGES_TEXT.removesuffix(b"jeky ll</w>\n")),
        "48893 lines .* expected 48894 with d308b7",
    ),
    "header-kept": (gzip.compress(b"#version: 0.2\n" + MERGES_TEXT), "48895 lines .* 48894"),
    "one-letter": (gzip.compress(b"o" + MERGES_TEXT[1:]), "48894 lines with SHA-256 .* d308b7"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_vocabulary_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Merges that are not CLIP's are refused with the file, the difference and the remedy."""
    path = tmp_path / "merges.txt.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s)(?=.*merges.txt.gz)(?=.*clip_merges.md).*{message}"):
        CLIPTokenizer(path)


def test_strings_are_well_formed() -> None:
    """Kebab-case names, one line of purpose, no text twice; arrays of text can hold them all."""
    assert len(STRINGS) >= 120
    for name, entry in STRINGS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert entry.keys() == {"text", "hunts"}
        assert entry["hunts"].isprintable(), name
        assert set(re.findall(r"tok-([a-z0-9-]+)", entry["hunts"])) <= set(CATALOGUE), name
        assert not any(text.endswith("\0") for text in texts_of(name)), name
    texts = [json.dumps(entry["text"]) for entry in STRINGS.values()]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("bug", CATALOGUE)
def test_every_catalogued_bug_has_a_string(bug: str) -> None:
    """No tokenizer bug seen in the field is without a string that hunts it."""
    assert any(f"tok-{bug}" in entry["hunts"] for entry in STRINGS.values())


def test_strings_use_every_byte_that_text_can(tokenizer: CLIPTokenizer, expected: dict) -> None:
    """All bytes of lower-case UTF-8 occur before the cut: all but capitals and white space."""
    words = (i for rows in expected.values() for row in rows for i in row if i < 49_406)
    letters = {letter for token in tokenizer.tokens(words) for letter in token}
    never = {*b"\t\n\v\f\r ", *range(ord("A"), ord("Z") + 1), 0xC0, 0xC1, *range(0xF5, 0x100)}
    assert {tokenizer._bytes[letter] for letter in letters} == set(range(256)) - never


def split_by(pattern: str) -> dict:
    """Return the mutation to this pattern of words."""
    return {"_split": regex.compile(pattern).findall}


def normalise_by(form: str, lower) -> dict:
    """Return the mutation to this normal form and this way to lower case."""
    return {"_normalise": lambda text: lower(unicodedata.normalize(form, text))}


def rows_by(row) -> dict:
    """Return the mutation to rows made by ``row(ids)``."""
    call = "CLIPTokenizer.__call__"
    return {
        call: lambda self, texts: torch.tensor(
            [row(self.encode(text)) for text in ([texts] if isinstance(texts, str) else texts)]
        )
    }


def merges_by(change) -> dict:
    """Return the mutation to other merges."""
    read = module._read_merges
    return {"_read_merges": lambda path: change(read(path))}


def bpe_by(word_to_tokens) -> dict:
    """Return the mutation to another split of words."""
    return {"CLIPTokenizer._bpe": word_to_tokens}


def strip_accents(text: str) -> str:
    """Drop what is not a base character."""
    return "".join(c for c in text.lower() if not unicodedata.combining(c))


def lower_each(text: str) -> str:
    """Put each character into lower case."""
    return "".join(map(str.lower, text))


def lower_ascii(text: str) -> str:
    """Put A to Z into lower case."""
    return "".join(c.lower() if c.isascii() else c for c in text)


def leftmost(self: CLIPTokenizer, word: str) -> list[str]:
    """Merge the leftmost pair that can be merged."""
    symbols = [self._letters[byte] for byte in word.encode()]
    symbols[-1] += "</w>"
    i = 0
    while i + 1 < len(symbols):
        if (symbols[i], symbols[i + 1]) in self._ranks:
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            i = 0
        else:
            i += 1
    return symbols


def known_characters(self: CLIPTokenizer, word: str, bpe=CLIPTokenizer._bpe) -> list[str]:
    """Drop characters that are no token."""
    return bpe(self, "".join(c for c in word if c in self.vocabulary))


def unescaped(self: CLIPTokenizer, text: str, encode=CLIPTokenizer.encode) -> list[int]:
    """Undo HTML's entities."""
    return encode(self, html.unescape(text))


BOS, EOS = 49_406, 49_407
CONTRACTION = r"'s|'t|'re|'ve|'m|'ll|'d"
LETTERS, REST = r"\p{L}+", r"[^\s\p{L}\p{N}]+"
MUTANTS = {
    "lower-missing": (normalise_by("NFC", str), "capitals mixed-case sharp-s"),
    "lower-ascii": (normalise_by("NFC", lower_ascii), "accented-capitals full-width"),
    "lower-casefold": (normalise_by("NFC", str.casefold), "sharp-s greek-final-sigma-lower"),
    "lower-whole-text": (normalise_by("NFC", str.lower), "greek-final-sigma"),
    "nfc-missing": ({"_normalise": lower_each}, "cafe-combining-acute hangul-jamo"),
    "nfkc": (normalise_by("NFKC", lower_each), "full-width ligatures fractions"),
    "accents-stripped": (normalise_by("NFD", strip_accents), "resume-accents cafe-combining-acute"),
    "space-split-only": ({"_split": str.split}, "commas punctuation-runs"),
    "word-class": (split_by(rf"{CONTRACTION}|\w+|[^\s\w]+"), "underscores devanagari"),
    "digits-grouped": (split_by(rf"{CONTRACTION}|{LETTERS}|\p{{N}}+|{REST}"), "digit-runs"),
    "contractions-missing": (split_by(rf"{LETTERS}|\p{{N}}|{REST}"), "contractions should-have"),
    "space-marker": (
        split_by(rf"{CONTRACTION}| ?{LETTERS}| ?\p{{N}}| ?{REST}"),
        "plain double-spaces",
    ),
    "disguised-special-not-cut": (
        {"_split": module._WORD.findall},
        "special-in-capitals-then-symbol special-in-capitals",
    ),
    "specials-as-text": ({"_SPECIAL": regex.compile("(?!)")}, "end-in-text special-glued"),
    "unescape": ({"CLIPTokenizer.encode": unescaped}, "html-entities special-html-escaped"),
    "no-byte-level": (bpe_by(known_characters), "emoji contraction-curly cjk-and-latin"),
    "leftmost-merge": (bpe_by(leftmost), "merge-leftmost-rule merge-rank"),
    "merges-one-short": (merges_by(lambda m: m[:-1]), "plain end-in-text"),
    "merges-header-kept": (merges_by(lambda m: [("#version:", "0.2"), *m[:-1]]), "plain"),
    "last-merge-lost": (merges_by(lambda m: [*m[:-1], ("\n", "\n")]), "jekyll"),
    "pad-zero": (rows_by(lambda ids: ([BOS, *ids[:75], EOS] + [0] * 75)[:77]), "plain empty"),
    "pad-missing": (rows_by(lambda ids: [BOS, *ids[:75], EOS]), "plain batch-two-lengths"),
    "truncation-drops-end": (rows_by(lambda ids: ([BOS, *ids] + [EOS] * 77)[:77]), "tokens-76"),
    "truncation-missing": (
        rows_by(lambda ids: [BOS, *ids, *[EOS] * (76 - len(ids))]),
        "tokens-76 tokens-78 very-long",
    ),
}


def failures(expected: dict) -> set[str]:
    """Return the strings on which the tokenizer, as it is now, crashes or gives other ids."""
    mutant = CLIPTokenizer()
    failed = set()
    for name, entry in STRINGS.items():
        try:
            same = mutant(entry["text"]).tolist() == expected[name]
        except (IndexError, KeyError, ValueError):
            same = False
        if not same:
            failed.add(name)
    return failed


@pytest.mark.parametrize(("mutation", "caught_by"), MUTANTS.values(), ids=MUTANTS)
def test_strings_catch_a_wrong_tokenizer(
    expected: dict, monkeypatch: pytest.MonkeyPatch, mutation: dict, caught_by: str
) -> None:
    """A tokenizer with one bug fails on the strings that hunt it."""
    for target, replacement in mutation.items():
        monkeypatch.setattr(f"sd1_impl.tokenizer.{target}", replacement)
    assert set(caught_by.split()) <= failures(expected)


def test_the_unbroken_tokenizer_fails_on_no_string(expected: dict) -> None:
    """What the wrong tokenizers are measured with finds nothing where nothing is wrong."""
    assert failures(expected) == set()


def test_collapsing_white_space_changes_nothing(expected: dict, monkeypatch) -> None:
    """The pattern drops white space, however much: whoever collapses it first does no harm."""
    normalise = module._normalise
    monkeypatch.setattr(module, "_normalise", lambda text: regex.sub(r"\s+", " ", normalise(text)))
    assert failures(expected) == set()
