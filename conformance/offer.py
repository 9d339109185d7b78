"""What a port must offer before a case is run on it, and what float64 asks of it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

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


def require_backend(load: Callable[..., object], backend: str) -> None:
    """Check that a port's `load` can be told the backend.

    Args:
        load: Bound to the port.
        backend: Which one.

    Raises:
        PortError: It has no such argument.
    """
    try:
        parameters = inspect.signature(load).parameters
    except (TypeError, ValueError):  # of something compiled nothing can be read off
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and "backend" not in parameters:
        message = (
            f"hello() offers backend {backend}, but load() takes no argument backend: add "
            'backend="sdpa" to it, or leave backends out of hello()'
        )
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
