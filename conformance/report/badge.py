"""The badge of a run: one flat SVG, drawn here, that says how far the port gets."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from conformance.levels import LADDER, Rung
from conformance.report.records import Summary
from conformance.report.text import counted, one_line
from conformance.report.words import headline, selection_text

LABEL = "SD v1 conformance"
_NAMED = 2
_HEIGHT, _PAD, _TEXT_AT = 20, 6, 14
_COLOURS = {"conformant": "#0a5c96", "nonconformant": "#a83900", "incomplete": "#59636e"}
"""Blue, orange and grey: told apart by everyone, and white text on each has a contrast over 5."""

_WIDE, _NARROW = "mwMW", "iljtfrI.,:;|!'()[]/ "
_ADVANCES = (10.6, 4.6, 7.0)
"""Widths of a wide, a narrow and any other letter at 11 px, a little more than Verdana's."""


def badge_svg(summary: Summary) -> str:
    """Draw the badge.

    Args:
        summary: Of a run.

    Returns:
        An SVG document in ASCII, 20 px high: the label, then `level 3`, `part` where cases were
        left out, and what the port does not offer up to there; or `not conformant`. It refers to
        nothing outside itself; any font will do, because each text is fitted to its box.
    """
    message = badge_text(summary)
    left, right = (_width(text) + 2 * _PAD for text in (LABEL, message))
    share = summary.selection if "part" in message.split(", ") else None
    title = _xml(f"{LABEL}: {message}{f' ({selection_text(share)})' if share else ''}")
    boxes = _box(0, left, "#3b434b", LABEL) + _box(left, right, _COLOURS[summary.verdict], message)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{_HEIGHT}" '
        f'viewBox="0 0 {left + right} {_HEIGHT}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{boxes}</svg>\n"
    )


def badge_text(summary: Summary) -> str:
    """Say in a few words how far the port gets, and what up to there it does not offer."""
    if summary.verdict != "conformant" or not summary.finished:
        return headline(summary).lower()
    if summary.level is None:
        return "conformant, no level"
    lacks = _not_offered(summary, LADDER[: summary.level])
    known = summary.counts["xfail"]
    return ", ".join(
        [
            f"level {summary.level}",
            *(["part"] if summary.partial else []),
            *([lacks] if lacks else []),
            *([counted(known, "known failure")] if known else []),
        ]
    )


def _not_offered(summary: Summary, reached: Sequence[Rung]) -> str:
    """Say what a port lacks of the levels that it has reached."""
    whole = [component for rung in reached for component in rung.whole]
    missing = [component for component in whole if component not in summary.offers]
    if not missing or not summary.offers:
        return ""
    if len(missing) == len(whole):
        return "parts only"
    named = ", ".join(name.partition("/")[2] or name for name in missing[:_NAMED])
    more = len(missing) - _NAMED
    return f"without {named} and {more} more" if more > 0 else f"without {named}"


def _box(x: int, width: int, fill: str, text: str) -> str:
    """Draw one half: a box and its text in the middle, as wide as it was reckoned."""
    middle = x + width / 2
    return (
        f'<rect x="{x}" width="{width}" height="{_HEIGHT}" fill="{fill}"/>'
        f'<text x="{middle:g}" y="{_TEXT_AT}" fill="#fff" text-anchor="middle" font-size="11" '
        'font-family="Verdana,DejaVu Sans,Geneva,sans-serif" '
        f'textLength="{width - 2 * _PAD}" lengthAdjust="spacingAndGlyphs">{_xml(text)}</text>'
    )


def _width(text: str) -> int:
    wide, narrow, other = _ADVANCES
    widths = (wide if c in _WIDE else narrow if c in _NARROW else other for c in text)
    return round(sum(widths))


def _xml(text: str) -> str:
    return escape(one_line(text, 120)).encode("ascii", "xmlcharrefreplace").decode()
