"""While a port is at work here: what it prints is no report, and it cannot end the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn


@contextmanager
def at_work() -> Iterator[None]:
    """Send what a port prints to standard error, and let its `os._exit` raise `SystemExit`.

    It would end the run without a word, with the port's exit code, which may be that of a
    conformant one. Processes that were forked end as they want to; an exit in native code is not
    seen.
    """
    own, leave = os.getpid(), os._exit

    def refuse(status: int) -> NoReturn:
        if os.getpid() != own:
            leave(status)
        message = f"os._exit({status}) would end the run: raise an exception"
        raise SystemExit(message)

    os._exit = refuse
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os._exit = leave
