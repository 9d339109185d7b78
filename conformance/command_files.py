"""Files that the command of an `exec:` port names, and that are not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from conformance.errors import UsageError
from conformance.port_files import factory_advice

_PYTHON = re.compile(r"python[\d.]*")
_SERVE = "serve.py"

# Options of Python itself, several letters in one word: those of _FLAGS stand alone.
_FLAGS = "[bBdEiIOPqRsSuvx]*"
_NO_SCRIPT = re.compile(f"-{_FLAGS}[cm].*|-")
_WITH_VALUE = re.compile(f"-{_FLAGS}[WX]|--check-hash-based-pycs")

_SCRIPT = re.compile(
    r"([^-].*\.(?:jl|js|jar|lua|mjs|php|pl|py|r|rb|sh|ts))(?::\w+)?", re.IGNORECASE
)


def require_files(command: Sequence[str]) -> None:
    """Check that Python is told to run a file that is there, and `serve.py` to serve one.

    Of other programs nothing is known: what they are given may lie on another machine.

    Args:
        command: Program and arguments.

    Raises:
        UsageError: It is not there, or names no port.
    """
    script, *rest = _script(command)
    if not script:
        return
    if not Path(script).exists():
        message = f"exec: {command[0]} is to run {script}, which does not exist"
        raise UsageError(message)
    if Path(script).name == _SERVE and rest:
        _require_port(script, rest[0])


def _script(command: Sequence[str]) -> list[str]:
    """Return the file that Python is to run and what it is given; an empty name for none."""
    if not _PYTHON.fullmatch(Path(command[0]).name):
        return [""]
    words = iter(command[1:])
    for word in words:
        if _NO_SCRIPT.fullmatch(word):
            return [""]
        if _WITH_VALUE.fullmatch(word):
            next(words, None)
        elif not word.startswith("-"):
            return [word, *words]
    return [""]


def _require_port(script: str, spec: str) -> None:
    """Check that `serve.py` is given the port of a file that is there."""
    path, lead = Path(spec.rpartition(":")[0] or spec), f"exec: {script} is to serve {spec}"
    if path.is_dir():
        raise UsageError(f"{lead}, but {path} is a folder: {factory_advice(path)}")
    if path.suffix == ".py" and not path.is_file():
        raise UsageError(f"{lead}, but port file {path} does not exist")
    if spec.endswith(".py"):
        raise UsageError(f"{lead}, which names no factory: {factory_advice(path)}")


def absent(command: Sequence[str]) -> list[str]:
    """Return the scripts among the arguments of a command that do not exist on this machine."""
    found = [_SCRIPT.fullmatch(word) for word in command[1:]]
    return [match[1] for match in found if match and not Path(match[1]).exists()]
