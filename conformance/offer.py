"""What a port must offer before a case is run on it, and what float64 asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.adapters.serve import load_misfit, misfit
from conformance.errors import PortError, UnsupportedError
from conformance.execution import SAVINGS
from conformance.judge import ISLAND, TIME_PROJ, time_proj_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.case import Case
    from conformance.compare import Record
    from conformance.execution import Execution
    from conformance.golden import Golden
    from conformance.port import Arrays, Hello


def require_offer(hello: Hello, case: Case, execution: Execution) -> None:
    """Check that a port offers what a case asks for.

    Args:
        hello: What the port says of itself.
        case: The case.
        execution: How it is to be run.

    Raises:
        UnsupportedError: It does not; says what.
    """
    needs = [("component", case.component, hello.components)]
    if not case.exact:
        needs += [
            ("arithmetic", execution.dtype, hello.arithmetics),
            ("device", execution.device, hello.devices),
        ]
    if execution.backend and execution.backend not in SAVINGS:  # the judge of those knows
        needs.append(("backend", execution.backend, hello.backends))
    for kind, wanted, offered in needs:
        if wanted not in offered:
            message = f"{hello.name} does not offer {kind} {wanted}"
            raise UnsupportedError(message)
    variant = case.variant.name
    if not hello.offers_variant(variant):
        message = f"{hello.name} does not offer variant {variant}"
        raise UnsupportedError(message)


def require_load(load: Callable[..., object], backend: str | None = None) -> None:
    """Check that a port's `load` can be called, and told the backend.

    Args:
        load: Bound to the port.
        backend: Which one; None for the port's own, which is not named to it.

    Raises:
        PortError: It takes other arguments; says which it has to take.
    """
    _refuse(load_misfit(load, backend))


def require_fit(function: Callable[..., object], name: str, given: str = "") -> None:
    """Check that a function of a port can be called with what it is given.

    Args:
        function: As it is called.
        name: Of the function.
        given: Names of its arguments, with commas between them.

    Raises:
        PortError: It takes others; says which it has to take.
    """
    _refuse(misfit(function, name, given))


def require_function(function: Callable[..., object], what: str, given: str, **how: Any) -> None:
    """Check that a function from which an adapter makes a port can be called.

    Args:
        function: The function.
        what: Of which component it is what, for the error.
        given: Names of its arguments, with commas between them.
        how: Those that are given by name.

    Raises:
        PortError: It takes others; says which it has to take.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if wrong := misfit(function, name, given, **how):
        message = f"{what}: {wrong}"
        raise PortError(message)


def _refuse(wrong: str) -> None:
    if wrong:
        message = f"the port's {wrong}"
        raise PortError(message)


def _replaces(hello: Hello, execution: Execution) -> bool:
    return hello.replace and execution.shows_probes


def _may_be_island(golden: Golden, execution: Execution) -> bool:
    return execution.dtype == "float64" and TIME_PROJ in golden.probes


def supplied_embedding(
    hello: Hello, case: Case, golden: Golden, execution: Execution, inputs: Arrays
) -> Arrays | None:
    """Return the timestep embedding to put in, so that a float32 island stays one.

    Args:
        hello: What the port says of itself.
        case: The case.
        golden: Its golden.
        execution: How it is run.
        inputs: Of the case.

    Returns:
        In float64 the embedding; None where there is nothing to put in, or no way to.
    """
    if _may_be_island(golden, execution) and _replaces(hello, execution):
        return {TIME_PROJ: time_proj_values(case, inputs)}
    return None


def refuse_island(
    hello: Hello, records: list[Record], golden: Golden, execution: Execution
) -> None:
    """Without `replace`, a float32 timestep embedding would spoil everything after it.

    Raises:
        UnsupportedError: The port computes it so, or may do so unseen.
    """
    if not _may_be_island(golden, execution) or _replaces(hello, execution):
        return
    own = next((record for record in records if record.name == TIME_PROJ), None)
    if own is None or own.note == ISLAND:
        message = (
            f"{hello.name} {'computes' if own else 'may compute'} its timestep embedding "
            "in float32 and has no `replace`: float64 would judge that alone"
        )
        raise UnsupportedError(message)
