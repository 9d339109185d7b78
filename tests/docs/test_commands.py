"""Every command that a document shows can be given: what would read it parses it."""

from __future__ import annotations

import argparse
import configparser
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance import cli, pytest_plugin

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_SHELLS = {"", "sh", "bash"}
_INLINE = re.compile(r"`((?:sd1-conformance|python -m|pytest|tox run) [^`]+)`")
_SYNOPSIS = re.compile(r"\[-|\[PORT|\[IDS?|COMMAND|ARGS|ID\.\.|\.\.\.| \.\.|I/N|DIR\.\.")
_PROGRAMS = (
    "sd1-conformance", "python", "python3", "pytest", "tox", "uv", "make", "cp", "sed", "source",
    "ruff", "mypy", "SD1_CONSTRAINTS=cu130", "PYTHONPATH=.",
)  # fmt: skip
"""What lines of a block of commands begin with."""


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page: lines of blocks, and what stands in the text."""
    text = page.read_text("utf-8")
    for language, block in _BLOCK.findall(text):
        lines = [line.strip() for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if any(line.startswith("$ ") for line in lines):  # and what it prints
            yield from (line[2:] for line in lines if line.startswith("$ "))
        elif language in _SHELLS and lines and lines[0].partition(" ")[0] in _PROGRAMS:
            yield from lines
    for line in _INLINE.findall(_BLOCK.sub("", text)):
        reference = re.fullmatch(r"sd1-conformance [a-z]+( [a-z]+)?", line)
        yield f"{line} --help" if reference else line.replace("\\|", "|")


def shown() -> list[tuple[str, str]]:
    """Return page and command, each once."""
    found = {
        (str(page.relative_to(ROOT)), part.strip())
        for page in PAGES
        for line in commands(page)
        if not _SYNOPSIS.search(line)
        for part in line.split(" && ")
    }
    return sorted(found)


def engine(words: list[str]) -> None:
    """Parse by the command line's own parser; files that are made on the way need not be there."""
    cli._parser(words[:1]).parse_args(words)


def model(words: list[str]) -> None:
    """Parse by the model's own parser."""
    pytest.importorskip("torch")
    from sd1_impl.__main__ import _parser

    _parser().parse_args(words)


def tox(words: list[str]) -> None:
    """Environments are those of tox.ini."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini", "utf-8")
    known = {name.removeprefix("testenv:") for name in config.sections()}
    known |= {"py311", "py312-notorch", "py313-notorch"}
    assert words[0] in {"run", "list"}
    own = words[: words.index("--")] if "--" in words else words
    for option, value in zip(own, [*own[1:], ""], strict=True):
        if option == "-e":
            assert set(value.split(",")) <= known


def pip(words: list[str]) -> None:
    """Files are there, extras and groups those of the project."""
    if words[0] == "list":
        return
    assert words[0] == "install"
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option in {"-r", "-c"} and value != "torch.txt":  # which the page's command before makes
            assert (ROOT / value.removeprefix("suite/")).is_file(), value
        if extras := re.search(r"\[(.*)\]", option):
            known = SETTINGS["project"]["optional-dependencies"]
            assert set(extras[1].split(",")) <= set(known)


def items(words: list[str]) -> None:
    """Paths are there, options pytest's or the plugin's, markers known."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flag in ("-n", "-m", "-k", "-p"):
        parser.add_argument(flag)
    parser.add_argument("-rs", action="store_true")
    parser.add_argument("-rP", action="store_true")
    parser.add_argument("paths", nargs="*")

    class Group:
        def addoption(self, name: str, **_: object) -> None:
            parser.add_argument(name)

    class Pytest:
        def getgroup(self, *_: object) -> Group:
            return Group()

    pytest_plugin.pytest_addoption(Pytest())
    given = parser.parse_args(words)
    assert all((ROOT / path.partition("::")[0]).exists() for path in given.paths)
    markers = {
        text.partition(":")[0] for text in SETTINGS["tool"]["pytest"]["ini_options"]["markers"]
    }
    assert set(re.findall(r"\w+", given.m or "")) - {"not", "and", "or"} <= markers


def uv(words: list[str]) -> None:
    """An environment is made, what pip would install is installed, Jupyter is started."""
    if words[0] == "pip":
        pip(words[1:])
    elif words[0] == "run":
        assert words[:4] == ["run", "--no-project", "jupyter", "lab"]
        assert (ROOT / words[4]).is_dir()
        assert "\njupyterlab==" in (ROOT / "requirements.txt").read_text("utf-8")
    else:
        assert words == ["venv"]


def make(words: list[str]) -> None:
    """The folder has a Makefile."""
    assert words[0] == "-C"
    assert (ROOT / words[1] / "Makefile").is_file()


def script(words: list[str]) -> None:
    """The file is there."""
    assert (ROOT / words[0]).is_file()


def module(words: list[str]) -> None:
    """The module is there."""
    assert importlib.util.find_spec(words[0]) is not None


def nothing(_: list[str]) -> None:
    """Of the system's own programs only the name is known."""


READERS: dict[str, Callable[[list[str]], None]] = {
    "sd1-conformance": engine,
    "python -m conformance": engine,
    "python3 -m conformance": engine,
    "python -m sd1_impl": model,
    "python -m tox": tox,
    "tox": tox,
    "python -m pip": pip,
    "pip": pip,
    "python -m pytest": items,
    "python3 -m pytest": items,
    "pytest": items,
    "uv": uv,
    "make": make,
    "python": script,
    "cc": nothing,
    "python -m venv": nothing,
    "python -c": nothing,
    "python -m": module,
    "cp": nothing,
    "sed": nothing,
    "source": nothing,
}


@pytest.mark.parametrize(("page", "command"), shown(), ids=[f"{p}: {c}" for p, c in shown()])
def test_a_command_can_be_given(page: str, command: str, capsys: pytest.CaptureFixture) -> None:
    """Every word of it means something today."""
    words = shlex.split(re.sub(r"^(?:[A-Z0-9_]+=\S+ )+", "", command), comments=True)
    for count in (3, 2, 1):
        if reader := READERS.get(" ".join(words[:count])):
            break
    else:
        pytest.fail(f"{page} shows a command that no test reads: {command}")
    try:
        reader(words[count:])
    except SystemExit as error:
        code = error.code
    else:
        code = 0
    assert code == 0, capsys.readouterr().err


def test_every_command_is_shown() -> None:
    """docs/cli.md has every command, and every kind of PORT."""
    page = (ROOT / "docs/cli.md").read_text("utf-8")
    assert [name for name in cli.COMMANDS if f"sd1-conformance {name}" not in page] == []


def test_commands_are_found() -> None:
    """The reader of pages reads: the README's own are among what it found."""
    readme = [command for page, command in shown() if page == "README.md"]
    assert "python -m tox run -e conformance" in readme
    assert any(command.startswith('sd1-conformance run "exec:') for command in readme)
    assert len(shown()) > 100
