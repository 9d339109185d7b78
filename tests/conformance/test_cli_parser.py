"""What the command line says of what it cannot read: one line, with the name and the fix."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from conformance.cli import _parser
from conformance.cli_common import Listed
from conformance.cli_parser import Parser
from conformance.errors import UsageError


def parsers(
    parser: Parser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """Yield every command of a parser, and what is typed for it."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, own in action.choices.items():
                yield from parsers(own, (*words, name))


VALUED = {
    f"{' '.join(words)} {option}": (words, option, action)
    for words, parser in parsers(_parser())
    for action in parser._actions
    if action.nargs != 0
    for option in action.option_strings
}
"""Every option that takes a value, of every command."""


def test_every_option_is_walked() -> None:
    """Those of commands below commands are among them."""
    assert {"run --out", "golden trace --out", "bench suite --variant", "mutants -n"} <= set(VALUED)
    assert len(VALUED) > 90


@pytest.mark.parametrize(("words", "option", "action"), VALUED.values(), ids=VALUED)
def test_no_option_counts_twice_in_silence(
    words: tuple[str, ...], option: str, action: argparse.Action
) -> None:
    """What is given twice is refused, but for lists, which add up (`test_cli_common`)."""
    if isinstance(action, Listed):
        return
    value = str(next(iter(action.choices))) if action.choices else "2"
    with pytest.raises(UsageError, match=rf"^{option} is given twice, {value}(\.0)? and "):
        _parser(words[:1]).parse_args([*words, option, value, option, value])


@pytest.mark.parametrize("name", ["out", "repeat"])
def test_once_before_a_command_and_after_it(name: str) -> None:
    """An option of `bench` that its command has too is given once in all."""
    words = ["bench", f"--{name}", "2", "load", f"--{name}", "3"]
    with pytest.raises(UsageError, match=f"--{name} is given twice, 2 and 3: give one"):
        _parser(["bench"]).parse_args(words)


def test_a_parser_reads_more_than_one_line() -> None:
    """What was given in one line is forgotten in the next; a default is not what was given."""
    parser = _parser(["run"])
    for out in ("conformance-report", "b"):
        assert str(parser.parse_args(["run", "--out", out]).out) == out
    assert str(parser.parse_args(["run"]).out) == "conformance-report"


TOLD = {
    "command": (["runn"], "unknown command 'runn': the nearest is run; choose from run, list, "),
    "below": (
        ["golden", "recrod"],
        "unknown command 'recrod': the nearest is record; choose from record, verify, ",
    ),
    "option": (
        ["run", "numpy", "--varient", "tiny"],
        "unknown option --varient: the nearest is --variant; `sd1-conformance run --help` says",
    ),
    "option-with-value": (["list", "--varient=tiny"], "unknown option --varient: the nearest is"),
    "option-before-what-is-missing": (
        ["weights", "export", "--varient", "tiny"],
        "unknown option --varient: the nearest is --variant",
    ),
    "like-nothing": (["run", "--xyz"], "unknown option --xyz: `sd1-conformance run --help` says"),
    "too-many": (["run", "a", "b"], "unexpected 'b': `sd1-conformance run --help` says more"),
    "unquoted": (
        ["run", "exec:python", "serve.py"],
        "unexpected 'serve.py': quote the command: \"exec:python serve.py ...\"",
    ),
    "choice": (["run", "--level", "5"], "--level '5': choose from 1, 2, 3"),
    "choice-of-numbers": (["run", "--level", "two"], "--level 'two': choose from 1, 2, 3"),
    "near-choice": (
        ["run", "--executor", "locl"],
        "--executor 'locl': the nearest is local; choose from local, ray",
    ),
    "number": (["run", "--timeout", "abc"], "--timeout 'abc': give a number"),
    "whole-number": (["audit", "--samples", "1.5"], "--samples '1.5': give a whole number"),
    "own-words": (["mutants", "-n", "0"], "-n/--jobs: '0' is no number of processes, 1 or more"),
    "no-value": (["run", "--out"], "--out needs a value; `sd1-conformance run --help` says more"),
    "no-case": (
        ["show"],
        "the following arguments are required: CASE; `sd1-conformance show --help` says more",
    ),
    "nothing": ([], "the following arguments are required: COMMAND; `sd1-conformance --help`"),
}


@pytest.mark.parametrize(("words", "message"), TOLD.values(), ids=TOLD)
def test_one_line(main, words: list[str], message: str) -> None:
    """A mistake is one line, exit 2: what is wrong, the nearest or the fix, and no usage text."""
    code, out, err = main(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"sd1-conformance: {message}")
