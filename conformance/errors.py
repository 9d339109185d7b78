"""Errors that the suite raises on purpose: each says what is wrong and how to mend it."""

from __future__ import annotations

from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command."""

    CONFORMANT = 0
    NONCONFORMANT = 1
    USAGE = 2
    BROKEN = 3


class SuiteError(Exception):
    """Base of all deliberate errors: one clear line and the exit code that it leads to."""

    exit_code = ExitCode.BROKEN


class UsageError(SuiteError):
    """The command line, a name or a folder that the user gave cannot be used."""

    exit_code = ExitCode.USAGE


class GoldenError(SuiteError):
    """A golden, the manifest or the spec is missing, damaged or inconsistent."""


class PortError(SuiteError):
    """A port broke its contract, or could not be loaded: not a wrong number."""


class RaisedError(PortError):
    """A port in a process of its own says that it failed: it raised, on its side of the wire."""


class UnsupportedError(SuiteError):
    """A port declines a case and says why: the case becomes a skip."""


FEW = 60
"""So many names are all listed."""


def unknown_name(kind: str, name: str, known: list[str]) -> UsageError:
    """Build the error for a name that does not exist.

    Args:
        kind: What was named, such as `"variant"`.
        name: The unknown name as the user gave it.
        known: The names that exist.

    Returns:
        A `UsageError` whose message lists the choices: all of a few, of many those most alike.
    """
    if len(known) <= FEW:
        return UsageError(f"unknown {kind} {name!r}: choose from {', '.join(known)}")
    near = get_close_matches(name, known, n=5, cutoff=0.4) or known[:5]
    return UsageError(
        f"unknown {kind} {name!r}: one of {len(known)}; the nearest are {', '.join(near)}"
    )
