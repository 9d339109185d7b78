"""What the commands share: declaring them, and choosing cases."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from conformance.adapters.process import FIRST, TIMEOUT, Limits
from conformance.case import DEFAULT_VARIANTS, Case, all_cases, find_case, select_cases
from conformance.errors import UsageError
from conformance.levels import LADDER
from conformance.memory.sizes import read_size
from conformance.port import EXEC
from conformance.requirements import ORACLE, adding

_Value = TypeVar("_Value")


def command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int] | None, text: str
) -> argparse.ArgumentParser:
    """Declare a command; without a function it is a group of others."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    if function is not None:
        parser.set_defaults(command=function)
    return parser


def given(option: str, what: str, kind: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Return what argparse reads the value of an option by: an empty one is a variable not set.

    Args:
        option: Its name.
        what: What it names, with an article.
        kind: Reads the value.
    """

    def read(text: str) -> _Value:
        if not text.strip():
            message = f"{option} is empty: name {what}"
            raise UsageError(message)
        return kind(text)

    return read


class Listed(argparse.Action):
    """A list that may be given in parts: `--mode trace --mode splice` is `--mode trace,splice`.

    Its default is None.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Add what is given to what was given before."""
        earlier = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if earlier is None else f"{earlier},{values}")


def jobs(text: str) -> int:
    """Read a number of processes, for argparse.

    Raises:
        UsageError: It is none from 1.
    """
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        message = f"-n {text!r} is no number of processes: give one from 1, or leave it out"
        raise UsageError(message)
    return int(text)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Offer the options that choose cases."""
    words = "words in the case id with and, or, not"
    parser.add_argument("-k", metavar="EXPR", help=words)
    for option, default in (
        ("--component", ""),
        ("--variant", f"; default {','.join(DEFAULT_VARIANTS)}"),
        ("--scenario", ""),
    ):
        text = f"globs, comma-separated{default}"
        parser.add_argument(option, action=Listed, help=text)
    parser.add_argument(
        "--level",
        type=int,
        choices=[rung.level for rung in LADDER],
        help="only what this level and those below are judged by",
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Offer the limits of a port in a process of its own."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=None,
        metavar="S",
        help=f"exec: ports: seconds for a call, default {TIMEOUT:g}; {FIRST} times that to load",
    )
    parser.add_argument(
        "--memory",
        default=None,
        metavar="SIZE",
        help="exec: ports: memory that they may hold, such as 8GiB; default 3/4 of the machine's",
    )


def limits_of(arguments: argparse.Namespace) -> Limits:
    """Return the limits that the options name.

    Raises:
        UsageError: One of them is no positive number, or no size; or the port is in this process.
    """
    options = {"--timeout": arguments.timeout, "--memory": arguments.memory}
    given = next((name for name, value in options.items() if value is not None), None)
    if given and not arguments.port.startswith(EXEC):
        message = (
            f"{given} limits ports of a process of their own: serve this one, "
            f'"exec:python serve.py {arguments.port}" (docs/porting.md), or leave {given} out'
        )
        raise UsageError(message)
    if arguments.timeout is not None and not arguments.timeout > 0:
        message = f"--timeout {arguments.timeout:g}: give a positive number of seconds"
        raise UsageError(message)
    seconds = TIMEOUT if arguments.timeout is None else arguments.timeout
    memory = None if arguments.memory is None else read_size(arguments.memory, "--memory")
    return Limits(seconds, memory, children=max(1, getattr(arguments, "n", 1)))


def split(text: str | None) -> list[str] | None:
    """Split a comma-separated option; None stays None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def selected(arguments: argparse.Namespace, among: list[Case] | None = None) -> list[Case]:
    """Return the cases that the selection options name, of all or of those given."""
    cases = select_cases(
        split(arguments.component),
        split(arguments.variant),
        split(arguments.scenario),
        arguments.k,
        among,
    )
    if arguments.level is None:
        return cases
    rungs = LADDER[: arguments.level]
    chosen = [case for case in cases if any(rung.has(case.component) for rung in rungs)]
    if not chosen:
        message = f"--level {arguments.level} leaves none of the cases selected: leave it out"
        raise UsageError(message)
    return chosen


def chosen_cases(names: list[str]) -> list[Case]:
    """Return the cases that ids or globs of ids name, those with a splice mode for a glob.

    Raises:
        UsageError: A name fits no case.
    """
    chosen: dict[str, Case] = {}
    for name in names:
        fitting = (
            [find_case(name)]
            if "*" not in name
            else [
                case for case in all_cases() if fnmatchcase(case.id, name) and case.has_splice_mode
            ]
        )
        if not fitting:
            message = f"no case fits {name!r}: `sd1-conformance list --all` prints them"
            raise UsageError(message)
        chosen |= {case.id: case for case in fitting}
    return list(chosen.values())


def oracle_module(name: str) -> Any:
    """Import a module that needs the oracle.

    Raises:
        UsageError: The oracle is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"this command needs the oracle: {error} ({adding(ORACLE)})"
        raise UsageError(message) from error
