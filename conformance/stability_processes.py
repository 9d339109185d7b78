"""New processes of a port, with variables of their own: each is started once and kept.

A port in a process of its own is started again; one that lives in this process is served by
`conformance/adapters/serve.py`, as any port of another environment would be.
"""

from __future__ import annotations

import atexit
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.adapters.process import ExecPort
from conformance.errors import UnsupportedError
from conformance.port import close, known_ports

if TYPE_CHECKING:
    from conformance.runner import Runner

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""Variables by which numerical libraries are told how many threads they may use."""

_SERVE = Path(__file__).parent / "adapters" / "serve.py"
_started: dict[tuple[str, ...], Runner] = {}
"""By command, its variables in front."""


def in_own_process(runner: Runner) -> bool:
    """Say whether the port of a runner does not live in this process."""
    return isinstance(runner.port, ExecPort)


def _command(runner: Runner) -> tuple[str, ...]:
    """Return what starts a runner's port once more.

    Raises:
        UnsupportedError: Nobody said which PORT argument names it.
    """
    if isinstance(runner.port, ExecPort):
        return tuple(runner.port.command)
    if not runner.port_spec:
        message = (
            f"{runner.hello.name} was handed over as an object: a new process needs the PORT "
            "argument that names it"
        )
        raise UnsupportedError(message)
    target = known_ports().get(runner.port_spec, runner.port_spec)
    return (sys.executable, str(_SERVE), target)


def process_of(runner: Runner, variables: Mapping[str, str], number: int = 0) -> Runner:
    """Return a runner of the same port in another process.

    Args:
        runner: Of the port.
        variables: Which the process has in place of this one's.
        number: Tells processes of the same variables apart.

    Returns:
        A runner; its process is started when it is first asked, and ends with this one.

    Raises:
        UnsupportedError: The port cannot be made anew.
    """
    command = _command(runner)
    settings = [f"{name}={value}" for name, value in variables.items()]
    key = (*settings, str(number), *command)
    if key not in _started:
        if any(other[-len(command) :] != command for other in _started):
            end_processes()  # of another port
        limits = runner.port.limits if isinstance(runner.port, ExecPort) else None
        port = ExecPort(shlex.join(["env", *settings, *command]), limits)
        _started[key] = type(runner)(port)
    return _started[key]


@atexit.register
def end_processes() -> None:
    """End all processes that were started here."""
    while _started:
        close(_started.popitem()[1].port)
