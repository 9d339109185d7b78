"""Where a port raised, and the part of the traceback that is its author's to read."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from conformance.adapters.serve import is_library
from conformance.report.text import shorten

_ROOT = Path(__file__).parent
_OURS = tuple(f"{_ROOT.with_name(name)}/" for name in ("conformance", "sd1_weights"))
_BETWEEN = tuple(
    str(_ROOT / f"{name}.py")
    for name in (
        "contract",
        "runner",
        "memory/table",
        "adapters/attention_modes",
        "adapters/hooks",
        "adapters/imagined",
        "adapters/memory",
        "adapters/storages",
        "adapters/torch_component",
    )
)
"""Files of the suite between it and a port that is one of the suite's own adapters."""

MOST = 20
"""Longest traceback kept, in lines: its end."""

_MESSAGE = 6
"""Of them for the message of one exception."""

_WIDTH = 200
_LEAD = "Traceback (most recent call last):"
_FRAME = '  File "'
_MARKS = re.compile(r"\s+[~^][~^ ]*")


def where_raised(error: BaseException) -> str:
    """Return file and line where an error was raised, in the port's own code if it can be."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    frame = (_own(frames) or _beside(frames) or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def traceback_of(error: BaseException) -> str:
    """Write the traceback of what a port raised: its own frames, and the last one of all.

    Args:
        error: What was raised; what it was raised from comes before it.

    Returns:
        At most `MOST` lines, much as Python writes them; empty where no frame is the port's.
    """
    causes = [error]
    while (cause := _cause(causes[-1])) is not None and cause not in causes:
        causes.append(cause)
    if not any(_own(traceback.extract_tb(one.__traceback__)) for one in causes):
        return ""
    return last_lines([line for one in reversed(causes) for line in _lines(one)])


def last_lines(lines: list[str]) -> str:
    """Join the last `MOST` lines of a traceback or a log; the marks below the code are left out."""
    lines = [line for line in lines if not _MARKS.fullmatch(line)]
    if len(lines) > MOST:
        lines = ["  ...", *lines[1 - MOST :]]
    return "\n".join(shorten(line, _WIDTH) for line in lines)


def place_of(text: str) -> str:
    """Return the part of a traceback that is the same whatever the values were: its frames."""
    frames = [line for line in text.splitlines() if line.startswith(_FRAME)]
    return "\n".join(frames) or text


def _lines(error: BaseException) -> list[str]:
    """Write the frames and the message of one exception."""
    frames = list(traceback.extract_tb(error.__traceback__))
    own = _own(frames)
    if own and frames[-1] not in own:
        own.append(frames[-1])
    lines = [_LEAD] if own else []
    for frame in own:
        lines.append(f'{_FRAME}{frame.filename}", line {frame.lineno}, in {frame.name}')
        lines += [f"    {frame.line}"] if frame.line else []
    message = "".join(traceback.format_exception_only(error)).splitlines()
    return [*lines, *message[:_MESSAGE]]


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _own(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Return the frames of neither the suite nor a library."""
    return [f for f in frames if not (f.filename.startswith(_OURS) or is_library(f.filename))]


def _beside(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Return the frames of a port that is one of the suite's own adapters."""
    return [f for f in frames if not (f.filename in _BETWEEN or is_library(f.filename))]
