"""Which of the selected cases a port offers, and what to write where that is none of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from conformance.case import DEFAULT_VARIANTS, Case, all_cases, variants_text
from conformance.cli_common import split
from conformance.errors import UsageError
from conformance.port import Hello
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.spec import BLOCKS
from conformance.training import TRAININGS
from conformance.variants import NO_VARIANT

_NARROWING = ("k", "scenario", "level", "weights")
"""Options that may leave out cases of a component and variant."""

_FAMILIES = {
    "block/*": tuple(BLOCKS),
    "scheduler/*": SCHEDULERS,
    "pipeline/*": PIPELINES,
    "training*": TRAININGS,
}


def offered(cases: Iterable[Case], hello: Hello, arguments: argparse.Namespace) -> list[Case]:
    """Leave out the cases that a port does not offer.

    Args:
        cases: Selected.
        hello: What the port offers.
        arguments: Options of the selection. A component that is named without a wildcard is kept:
            its cases are skipped and say so.

    Raises:
        UsageError: It offers none of them.
    """
    cases = list(cases)
    named = split(arguments.component) or []
    own = {c.id for c in cases if hello.offers(c.component, c.variant.name)}
    if own:
        return [c for c in cases if c.id in own or c.component in named]
    own_text = ", ".join(_in_families(hello.components)) or "no component"
    if named and hello.components and not _wanted(hello, named):
        message = (
            f"{hello.name} does not offer {', '.join(named)}: it offers {own_text}; "
            "name some of that with --component, or leave that out"
        )
    else:
        message = (
            f"{hello.name} offers {own_text}, variants {', '.join(hello.variants)}: "
            f"nothing of that is selected; {_advice(hello, arguments)}"
        )
    raise UsageError(message)


def _in_families(names: Sequence[str]) -> list[str]:
    """Write families that are there as a whole as one glob each."""
    found = list(names)
    for glob, family in _FAMILIES.items():
        if set(family) <= set(found):
            found[found.index(family[0])] = glob
            found = [name for name in found if name not in family]
    return found


def _wanted(hello: Hello, globs: Iterable[str] | None) -> list[str]:
    """Return the components of a port that fit one of the globs; None fits all."""
    return [name for name in hello.components if globs is None or _fits(name, globs)]


def _advice(hello: Hello, arguments: argparse.Namespace) -> str:
    """Say what would select something of a port."""
    if not hello.components:
        return "let its hello() name the components that it has"
    wanted = _wanted(hello, split(arguments.component))
    cases = [case for case in all_cases() if case.component in wanted]
    there = [case for case in cases if hello.offers_variant(case.variant.name)]
    if not there:
        return f"let its hello() name some of {variants_text(cases, choosing=False)}"
    asked = split(arguments.variant) or DEFAULT_VARIANTS
    if any(c.variant.name == NO_VARIANT or _fits(c.variant.name, asked) for c in there):
        given = [name for name in _NARROWING if getattr(arguments, name) is not None]
        names = " and ".join(f"-{name}" if len(name) == 1 else f"--{name}" for name in given)
        return f"leave {names} out, or say something else there"
    who = "they have" if len(wanted) > 1 else "it has"
    if len(wanted) < len(hello.components):
        who = f"{', '.join(wanted)} {'have' if len(wanted) > 1 else 'has'}"
    if arguments.weights is not None:
        text = variants_text(there, choosing=False)
        return f"{who} cases in {text}, and --weights is of another size"
    return f"{who} cases in {variants_text(there)}"


def _fits(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
