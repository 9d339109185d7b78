"""Starting the command line: what it does not import, and that its list of commands is true."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import pytest

from conformance import cli

HEAVY = {"numpy", "jinja2", "jsonschema", "safetensors", "tqdm", "torch"}


def imported(*arguments: str) -> set[str]:
    """Return the packages that a command has imported when it ends."""
    code = (
        "import json, sys\n"
        "from conformance.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps([name.partition('.')[0] for name in sys.modules]), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [], ["nonsense"]], ids=["help", "version", "", "wrong"]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """Saying what commands there are takes none of the packages that they work with."""
    assert imported(*arguments) & (HEAVY | {"sd1_impl"}) == set()


def test_a_command_imports_no_other() -> None:
    """`list` takes NumPy, but neither the report's templates nor a model."""
    found = imported("list", "-k", "unet/tiny/base")
    assert "numpy" in found
    assert found & {"jinja2", "torch", "sd1_impl"} == set()


def declared(parser: argparse.ArgumentParser) -> dict[str, str | None]:
    """Return the commands of a parser and their lines of `--help`."""
    (group,) = parser._subparsers._group_actions
    return {action.dest: action.help for action in group._choices_actions}


def test_lines_of_help_are_those_of_the_commands() -> None:
    """What `--help` says without the commands is what they say themselves, and none is left out."""
    assert declared(cli._parser([])) == declared(cli._parser())
    assert list(declared(cli._parser([]))) == list(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_declared_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has its own options when it alone is asked for."""
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: sd1-conformance {name} ")
    assert cli.COMMANDS[name][1] in " ".join(out.split())
