"""Judging how much a port holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.errors import UnsupportedError
from conformance.result import Result

if TYPE_CHECKING:
    from conformance.case import Case
    from conformance.execution import Execution
    from conformance.runner import Runner


def judge(runner: Runner, case: Case, execution: Execution) -> Result:
    """Judge what a port holds in one configuration.

    Args:
        runner: Holds the port.
        case: One of `cases.memory_cases`.
        execution: Its mode is `memory`.

    Returns:
        The result, `memory` filled in.

    Raises:
        UnsupportedError: Nothing can be said of this port; says why.
    """
    raise UnsupportedError("being written")
