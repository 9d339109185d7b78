"""What is told of a command whose files are not there, before and after it is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conformance.adapters import serve
from conformance.adapters.process import ExecPort
from conformance.command_files import absent, require_files
from conformance.errors import PortError, UsageError

SERVE = serve.__file__
PORT = Path(__file__).parents[2] / "examples/block/port.py"

KNOWN = {
    "script": (["python", "no.py"], "exec: python is to run no.py, which does not exist"),
    "path": (["/usr/bin/python3.12", "-IX", "dev", "no.py", "x"], "python3.12 is to run no.py, "),
    "port-file": (["python", SERVE, "no.py:factory"], "but port file no.py does not exist"),
    "port-folder": (
        ["python", SERVE, f"{PORT.parent}"],
        f"but {PORT.parent} is a folder: write {PORT}:factory",
    ),
    "folder-and-factory": (["python", SERVE, f"{PORT.parent}:factory"], f": write {PORT}:factory"),
    "no-factory": (["python", SERVE, f"{PORT}"], f"names no factory: write {PORT}:factory"),
}


@pytest.mark.parametrize(("command", "told"), KNOWN.values(), ids=KNOWN)
def test_what_is_known_before(command: list[str], told: str) -> None:
    """A file that Python cannot run, or serve.py not serve, is bad usage and named."""
    with pytest.raises(UsageError) as error:
        require_files(command)
    assert told in str(error.value)


SOUND = {
    "served": ["python", "-u", SERVE, f"{PORT}:factory"],
    "module": ["python", "-Im", "no.module", "no.py"],
    "code": ["python", "-c", "pass", "no.py"],
    "served-module": ["python", SERVE, "package.module:factory"],
    "other-program": ["docker", "run", "image", "python", "serve.py", "port.py:factory"],
    "alone": ["python", "-I"],
}


@pytest.mark.parametrize("command", SOUND.values(), ids=SOUND)
def test_what_is_not_refused(command: list[str]) -> None:
    """What may be right is started: nothing is known of other programs and of modules."""
    require_files(command)


def test_scripts_that_are_absent() -> None:
    """Arguments that look like scripts of any language are looked for; others are not."""
    words = ["uv", "run", "no.py", SERVE, "no.jl", "-x.py", "p.py:factory", "out.json", "a.b.c"]
    assert absent(words) == ["no.py", "no.jl", "p.py"]


def test_a_program_that_ends_for_it() -> None:
    """Of other programs it is told after they ended, beside their own words."""
    port = ExecPort("sh no_such.sh")
    with pytest.raises(PortError, match=r"no such file: no_such\.sh\); last on its standard error"):
        port.hello()
    port.close()


def test_serve_says_so_itself() -> None:
    """serve.py, of any name, names a port file that is not there: no traceback."""
    port = ExecPort(f"env {sys.executable} {SERVE} no_such.py:factory")
    with pytest.raises(PortError) as error:
        port.hello()
    port.close()
    assert "serve.py: port file " in str(error.value)
    assert str(error.value).endswith("no_such.py does not exist")
