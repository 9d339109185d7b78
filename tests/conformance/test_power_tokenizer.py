"""Wrong choices in a tokenizer: each is caught, and shown id by id beside what is right."""

import html
import re
import unicodedata
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from conformance.case import find_case

pytest.importorskip("torch")
regex = pytest.importorskip("regex")
tokenizer = pytest.importorskip("sd1_impl.tokenizer")

START, END = 49406, 49407
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"


@cache
def right():
    """Make sd1_impl's tokenizer once."""
    return tokenizer.CLIPTokenizer()


def full_row(ids):
    """Start, as many ids as fit, end up to the end."""
    return [START, *ids[:75], *[END] * (76 - len(ids[:75]))]


def rows(make):
    """Return a tokenizer that makes its rows from the ids of a text in another way."""
    return lambda texts: [make(right().encode(text)) for text in texts]


def cleaned(change):
    """Return a tokenizer that changes the text first."""
    return lambda texts: right()([change(text) for text in texts]).tolist()


def words(split, normalise=tokenizer._normalise, tokens=None):
    """Return a tokenizer with other words, another normal form or other tokens of a word."""

    def ids(text):
        bpe = tokens or right()._bpe
        return [right().vocabulary[t] for word in split(normalise(text)) for t in bpe(word)]

    return lambda texts: [full_row(ids(text)) for text in texts]


def merged(choose, ending=tokenizer.WORD_END, ranks=None):
    """Return a tokenizer that chooses its merges in another way, out of (rank, place)."""

    def tokens(word):
        symbols = [right()._letters[byte] for byte in word.encode()]
        symbols[-1] += ending
        table = right()._ranks if ranks is None else ranks()
        while True:
            pairs = enumerate(pairwise(symbols))
            known = [(table[pair], i) for i, pair in pairs if pair in table]
            if not known:
                return symbols
            _, i = choose(known)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]

    return words(tokenizer._split, tokens=tokens)


def merges(start, end):
    """Return a tokenizer with some merges only; the ids stay as they are."""

    def ranks():
        return dict(list(right()._ranks.items())[start:end])

    return merged(min, ranks=cache(ranks))


def longest_match(word):
    """Return the longest tokens from the left, as WordPiece finds them."""
    letters = "".join(right()._letters[byte] for byte in word.encode()) + tokenizer.WORD_END
    tokens = []
    while letters:
        end = next(i for i in range(len(letters), 0, -1) if letters[:i] in right().vocabulary)
        tokens.append(letters[:end])
        letters = letters[end:]
    return tokens


def known_letters(word):
    """Drop the letters that are no token of one byte."""
    kept = "".join(letter for letter in word if letter.isascii())
    return right()._bpe(kept) if kept else []


def no_marks(text):
    """Take accents away."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def lower_ascii(text):
    """Put A to Z alone into lower case."""
    return "".join(c.lower() if c.isascii() else c for c in unicodedata.normalize("NFC", text))


WRONG = [
    pytest.param(
        rows(lambda ids: [START, *ids[:75], END] + [0] * (75 - len(ids))),
        "plain",
        (7, END, 0),
        id="pad-zero",
    ),
    pytest.param(
        rows(lambda ids: [START, *ids, *[END] * 77][:77]),
        "tokens-76",
        (76, END, 607),
        id="end-cut-off",
    ),
    pytest.param(
        rows(lambda ids: full_row(ids[:74])), "tokens-75", (75, 1348, END), id="cut-too-early"
    ),
    pytest.param(
        rows(lambda ids: full_row(ids[-75:])), "tokens-152", (1, 2862, 1495), id="cut-in-front"
    ),
    pytest.param(
        rows(lambda ids: [*full_row(ids)[1:], END]), "plain", (0, START, 320), id="start-missing"
    ),
    pytest.param(
        rows(lambda ids: full_row([i for i in ids if i != END])),
        "end-in-text",
        (2, END, 321),
        id="end-removed",
    ),
    pytest.param(
        rows(lambda ids: full_row(ids[: [*ids, END].index(END)])),
        "batch-special",
        (3, 321, END),
        id="end-ends-the-text",
    ),
    pytest.param(
        rows(lambda ids: [i - (i >= START) for i in full_row(ids)]),
        "plain",
        (0, START, 49405),
        id="specials-off-by-1",
    ),
    pytest.param(cleaned(no_marks), "resume-accents", (1, 29106, 15077), id="accents-stripped"),
    pytest.param(
        cleaned(lambda text: unicodedata.normalize("NFKC", text)),
        "ligatures",
        (1, 171, 3797),
        id="nfkc",
    ),
    pytest.param(cleaned(html.unescape), "html-entities", (3, 6259, 8855), id="html-unescaped"),
    pytest.param(
        cleaned(lambda text: text.replace("\u2019", "'")),
        "contraction-curly",
        (2, 728, 713),
        id="curly-quotes-fixed",
    ),
    pytest.param(cleaned(str.lower), "greek-final-sigma", (16, 481, 480), id="final-sigma"),
    pytest.param(
        cleaned(str.lower), "special-in-capitals", (2, 27, END), id="specials-after-lower-case"
    ),
    pytest.param(cleaned(str.casefold), "sharp-s", (2, 127, 8938), id="case-folded"),
    pytest.param(
        cleaned(lambda text: unicodedata.normalize("NFC", text)),
        "special-then-combining",
        (2, END, 27),
        id="specials-after-nfc",
    ),
    pytest.param(
        cleaned(lambda text: " ".join(text.split())),
        "information-separators",
        (2, 472, 321),
        id="white-space-of-python",
    ),
    pytest.param(
        cleaned(lambda text: text.replace("\u200d", "")),
        "emoji-family",
        (1, 25023, 18966),
        id="joiners-dropped",
    ),
    pytest.param(
        cleaned(lambda text: text.partition("\0")[0]), "nul-inside", (3, 444, END), id="ends-at-nul"
    ),
    pytest.param(
        cleaned(lambda text: text.splitlines()[0]),
        "newline",
        (3, 320, END),
        id="ends-at-the-first-line",
    ),
    pytest.param(
        words(regex.compile(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]").findall),
        "should-have",
        (3, 1200, 262),
        id="apostrophes-split",
    ),
    pytest.param(
        words(regex.compile(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+").findall),
        "all-contractions",
        (2, 880, 262),
        id="no-contractions",
    ),
    pytest.param(
        words(regex.compile(r"'\p{L}+|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+").findall),
        "no-contraction",
        (1, 262, 6),
        id="everything-a-contraction",
    ),
    pytest.param(
        words(regex.compile(rf"{CONTRACTIONS}|\p{{L}}+|\p{{N}}+|[^\s\p{{L}}\p{{N}}]+").findall),
        "digit-runs",
        (1, 272, 16),
        id="digits-grouped",
    ),
    pytest.param(
        words(re.compile(rf"{CONTRACTIONS}|\w+|[^\s\w]+").findall),
        "underscores",
        (1, 949, 3419),
        id="word-characters",
    ),
    pytest.param(
        words(re.compile(rf"{CONTRACTIONS}|[^\W\d_]+|\d|(?:[^\s\w]|_)+").findall),
        "superscripts",
        (5, 332, 76),
        id="classes-of-re",
    ),
    pytest.param(
        words(re.compile(rf"{CONTRACTIONS}|[a-z]+|[0-9]|[^\sa-z0-9]+").findall),
        "sharp-s",
        (1, 1894, 6253),
        id="letters-of-ascii",
    ),
    pytest.param(
        words(regex.compile(r"\S+").findall), "commas", (2, 2368, 1481), id="white-space-alone"
    ),
    pytest.param(
        words(lambda text: text.split(" ")), "crlf-and-tab", (1, 637, 1980), id="spaces-alone"
    ),
    pytest.param(
        words(
            regex.compile(rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+").findall
        ),
        "plain",
        (2, 1125, 220),
        id="space-marker",
    ),
    pytest.param(words(tokenizer._split), "end-in-text", (2, END, 27), id="specials-as-text"),
    pytest.param(
        words(tokenizer._split, lambda text: unicodedata.normalize("NFC", text)),
        "capitals",
        (1, 320, 288),
        id="no-lower-case",
    ),
    pytest.param(
        words(tokenizer._split, lower_ascii),
        "accented-capitals",
        (1, 3459, 127),
        id="lower-case-of-ascii",
    ),
    pytest.param(
        words(tokenizer._split, str.lower), "cafe-combining-acute", (1, 15304, 4979), id="no-nfc"
    ),
    pytest.param(
        words(tokenizer._split, tokens=known_letters),
        "emoji",
        (2, 7334, 2368),
        id="unknown-letters-dropped",
    ),
    pytest.param(
        words(tokenizer._split, tokens=longest_match),
        "merge-rank",
        (2, 516, 7514),
        id="longest-match",
    ),
    pytest.param(merges(0, -1), "jekyll", (2, 49405, 43893), id="merges-one-short"),
    pytest.param(merges(1, None), "first-merge", (1, 512, 72), id="first-merge-lost"),
    pytest.param(
        merged(lambda known: min(known, key=lambda pair: pair[1])),
        "merge-leftmost-rule",
        (1, 36896, 1470),
        id="leftmost-merge",
    ),
    pytest.param(
        merged(lambda known: min(known, key=lambda pair: (pair[0], -pair[1]))),
        "merge-equal-pairs",
        (1, 13180, 76),
        id="equal-merges-from-the-right",
    ),
    pytest.param(merged(min, ending=""), "word-end-differs", (2, 2368, 1481), id="no-word-end"),
]


def answering(wrong):
    """Return what a port answers whose tokenizer makes one wrong choice."""

    def answer(inputs, *_):
        return {"input_ids": np.array(wrong(inputs["text"].tolist()), np.int64)}, {}

    return answer


@pytest.mark.parametrize(("wrong", "case", "difference"), WRONG)
def test_a_wrong_choice_is_shown(wrong, case, difference, judge):
    """The case that hunts it fails, and the lists side by side begin at the first wrong id."""
    result = judge(answering(wrong), find_case(f"tokenizer/-/{case}"))

    assert result.verdict == "fail", result.message
    assert result.message.startswith("first wrong at input_ids, ratio inf")
    assert result.first_divergence["kind"] == "fault"
    assert ["place", "expected", "got"] in [line.split() for line in result.detail.splitlines()]
    first = next(line for line in result.detail.splitlines() if line.startswith(">"))
    _, place, expected, _, got, _ = first.split()
    assert (int(place), int(expected), int(got)) == difference


MISSHAPEN = [
    pytest.param(rows(lambda ids: [START, *ids, END]), "plain", (1, 7), id="pad-missing"),
    pytest.param(
        lambda texts: [row[:13] for row in right()(texts).tolist()],
        "batch-two-lengths",
        (2, 13),
        id="padded-to-the-longest",
    ),
    pytest.param(rows(lambda ids: [START, *ids, END]), "tokens-78", (1, 80), id="not-truncated"),
    pytest.param(
        lambda texts: [
            full_row(ids[i : i + 75])
            for ids in map(right().encode, texts)
            for i in range(0, len(ids), 75)
        ],
        "tokens-152",
        (3, 77),
        id="several-rows",
    ),
]


@pytest.mark.parametrize(("wrong", "case", "shape"), MISSHAPEN)
def test_rows_of_another_length_are_named(wrong, case, shape, judge):
    """What is no table of 77 ids a text fails by its shape; lists side by side would not fit."""
    result = judge(answering(wrong), find_case(f"tokenizer/-/{case}"))
    expected = len(find_case(f"tokenizer/-/{case}").scenario.texts), 77

    assert result.verdict == "fail", result.message
    assert result.first_divergence["kind"] == "fault"
    assert f"shape {shape}, expected {expected}" in result.message
    assert not result.detail
