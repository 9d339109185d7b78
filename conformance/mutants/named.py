"""Any mutant as a PORT argument, `conformance.mutants.named:ID`: a new process makes it anew."""

from __future__ import annotations

from collections.abc import Callable

from conformance.errors import UsageError
from conformance.mutants.catalogue import find_mutants
from conformance.mutants.port import MutantPort


def port_spec(mutant_id: str) -> str:
    """Return the PORT argument that names a mutant."""
    return f"{__name__}:{mutant_id}"


def __getattr__(mutant_id: str) -> Callable[[], MutantPort]:
    """Return what makes the port of a mutant; its id is no Python name.

    Raises:
        AttributeError: There is no such mutant.
    """
    try:
        (mutant,) = find_mutants([mutant_id])
    except (UsageError, ValueError) as error:
        raise AttributeError(mutant_id) from error
    return lambda: MutantPort(mutant)
