"""How far long work is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

_EVERY = 5.0
"""Seconds between two lines."""

_LINE = "{desc} [{n_fmt}/{total_fmt}] {unit}s, {elapsed}"


class Progress(tqdm):  # type: ignore[type-arg]
    """`tqdm`, which writes lines where standard error is no terminal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what `tqdm` takes."""
        self.is_log = not sys.stderr.isatty()
        if self.is_log:
            options |= {"mininterval": _EVERY, "miniters": 1, "leave": False}
            options.setdefault("bar_format", _LINE)
            options["file"] = io.StringIO()  # what moves a terminal's cursor
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or write a line."""
        if not self.is_log:
            super().display(msg, pos)
        elif msg != "" and self.n:
            print((msg or str(self)).strip(), file=sys.stderr, flush=True)  # noqa: T201

    def now(self, text: str) -> None:
        """Name what is being done: a terminal shows it at once, a log in its next line."""
        self.set_description_str(text, refresh=not self.is_log)
