"""Errors that the suite raises on purpose: each says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
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

_NEAR = 5
"""So many of more names are shown, those most like the one that was given."""

_NO_NAME = "-"
"""Stands for the variant where there is none; nobody means it."""

_ALIKE_FAMILY = 0.8

_ALSO = {
    **dict.fromkeys(("fp64", "f64", "double"), "float64"),
    **dict.fromkeys(("fp32", "f32", "single", "float"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bf16",), "bfloat16"),
}
"""What arithmetics are called elsewhere."""

_GLOB = str.maketrans("", "", "*?")


def nearest(name: str, known: Iterable[str], most: int = 1, alike: float = 0.6) -> list[str]:
    """Return the names that a misspelt one may have meant, the likeliest first.

    Args:
        name: As the user gave it: its case and its wildcards do not count, nor does the execution
            in the id of an item.
        known: The names that exist.
        most: How many are returned at most.
        alike: What they share with it at least, 0..1. Where none does, a family may be meant:
            `blok` is near `block/*`. A family's own name means it, and `fp16` is `float16`.
    """
    plain, known = name.partition("[")[0].translate(_GLOB).lower(), list(known)
    if _ALSO.get(plain) in known:
        return [_ALSO[plain]]
    families = {own.partition("/")[0] for own in known if "/" in own}
    if plain in families:
        return [f"{plain}/*"]
    if found := get_close_matches(plain, known, most, alike):
        return found
    return [f"{own}/*" for own in get_close_matches(plain, families, 1, _ALIKE_FAMILY)]


def nearest_text(name: str, known: Iterable[str]) -> str:
    """Write `the nearest is NAME`; empty where nothing is alike."""
    return "".join(f"the nearest is {own}" for own in nearest(name, known))


def choices_text(name: str, known: Iterable[str]) -> str:
    """Write `choose from` and the names that exist, after the one that may have been meant."""
    known = list(known)
    told = [nearest_text(name, known), f"choose from {', '.join(known)}"]
    return "; ".join(filter(None, told))


def unknown_name(
    kind: str, name: str, known: Iterable[str], near: Iterable[str] = ()
) -> UsageError:
    """Build the error for a name that does not exist.

    Args:
        kind: What was named, such as `"variant"`.
        name: The unknown name as the user gave it.
        known: The names that exist.
        near: Those of many that it may mean, the likeliest first, where they are known.

    Returns:
        A `UsageError` whose message lists the choices: of a few all, that most alike before them,
        of many those most alike.
    """
    known = [own for own in known if own != _NO_NAME]
    lead = f"unknown {kind} {name!r}: "
    if len(known) <= FEW:
        return UsageError(f"{lead}{choices_text(name, known)}")
    near = list(near)[:_NEAR] or nearest(name, known, _NEAR, 0.4)
    if not near:
        return UsageError(f"{lead}one of {len(known)}, such as {', '.join(known[:_NEAR])}")
    verb = "is" if len(near) == 1 else "are"
    return UsageError(f"{lead}one of {len(known)}; the nearest {verb} {', '.join(near)}")
