"""Text and numbers that came from a port: made safe to print, parse and compare.

A port chooses its own name, its probes' names and its error messages, so every string here is
hostile until `printable` has seen it, and every number may be missing, infinite or not a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from typing import Any

ELLIPSIS = "…"
MISSING = "\N{EN DASH}"

# What XML 1.0 forbids, lone surrogates (UTF-8 cannot write them), the control characters that
# steer a terminal, and the bidi controls that make a name read as another one.
_UNPRINTABLE = re.compile(
    r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    r"|[\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_PLAIN_FROM, _PLAIN_TO, _SCIENTIFIC_FROM = 1e-3, 1e3, 1e5


def printable(value: object, most: int = 300) -> str:
    """Return a value as text that HTML, XML 1.0 and a terminal can all show.

    Args:
        value: Anything a JSON document holds; None becomes the empty string.
        most: Longest text returned, in characters; what is longer ends in an ellipsis.

    Returns:
        The text, its forbidden characters replaced by U+FFFD.
    """
    text = "" if value is None else str(value)
    return shorten(_UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n")), most)


def shorten(text: str, most: int) -> str:
    """Cut a text to at most `most` characters, the last one then being an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + ELLIPSIS


def one_line(value: object, most: int = 300) -> str:
    """Return `printable` text with every run of white space as one blank."""
    return shorten(" ".join(printable(value, 4 * most).split()), most)


def case_name(case_id: str) -> str:
    """Return component/variant/scenario of a case id, without its execution."""
    return case_id.partition("[")[0]


def number(value: object) -> float | None:
    """Read a number as a results file writes it.

    Args:
        value: A JSON number, one of the strings "nan", "inf", "-inf", or null.

    Returns:
        The number, which may be infinite or not a number; None where there is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def count(value: object) -> int:
    """Read a count: a whole number from 0; anything else is 0."""
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) and found > 0 else 0


def pattern_of(names: Collection[str]) -> str:
    """Write names that differ in numbers alone as one, with a `*` for each number that differs."""
    parts = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(part[0] if len(set(part)) == 1 else "*" for part in parts)


def patterns_of(names: Iterable[str], most: int) -> str:
    """Write names of probes as patterns, one for all that differ in numbers alone.

    Args:
        names: At least one.
        most: So many patterns; the others are counted.
    """
    alike: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        alike.setdefault(tuple(re.split(r"\d+", name)), set()).add(name)
    kinds = sorted(map(pattern_of, alike.values()))
    more = len(kinds) - most
    return ", ".join(kinds[:most]) + (f" and {more} more" if more > 0 else "")


def numbered(texts: Iterable[str]) -> dict[str, Any]:
    """Write texts that repeat as `names`, each once, and `of`, a number into them for each."""
    number: dict[str, int] = {}
    of = [number.setdefault(text, len(number)) for text in texts]
    return {"names": list(number), "of": of}


def mapping(value: object) -> dict[str, Any]:
    """Return the value where it is a JSON object, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def severity(ratio: float | None) -> tuple[int, float]:
    """Order ratios from harmless to worst: none, finite, infinite, not a number."""
    if ratio is None:
        return (0, 0.0)
    return (2, 0.0) if math.isnan(ratio) else (1, ratio)


def number_text(value: float | None) -> str:
    """Write a number in about three significant digits, for people."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size == 0:
        return "0"
    if size < _PLAIN_FROM or size >= _SCIENTIFIC_FROM:
        return f"{value:.1e}"
    return f"{value:.3g}" if size < _PLAIN_TO else f"{value:.0f}"


def size_text(size: float | None) -> str:
    """Write a number of bytes in four significant digits, for people: `130 MiB`, `1.054 GiB`."""
    if size is None or not math.isfinite(size):
        return number_text(size)
    power = next((p for p in (3, 2) if size >= 1024**p), 1)
    return f"{size / 1024**power:.4g} {'KMG'[power - 1]}iB"


def with_article(name: str) -> str:
    """Put `a` or `an` before a name: `an int`, but `a UNet`."""
    return f"{'an' if name[:1].lower() in tuple('aeio') else 'a'} {name}"


def counted(number: int, noun: str) -> str:
    """Write how many there are of something: `1 case`, `2 cases`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
