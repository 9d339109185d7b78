"""The parser of the command line: a mistake is one line, and no option counts twice in silence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from conformance.errors import UsageError, choices_text, nearest

_FIXES = {int: "give a whole number", float: "give a number"}
"""By the type of a value, what to write where it cannot be read."""


class Once(argparse.Action):
    """What takes a value and makes no list: the last of two would win, and nothing would say so."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Take what is given.

        Raises:
            UsageError: The option was given before, to this command or to the one around it.
        """
        if option_string is not None and isinstance(parser, Parser):
            if self.dest in parser.given:
                both = f"{parser.given[self.dest]} and {values}"
                message = f"{option_string} is given twice, {both}: give one"
                raise UsageError(message)
            parser.given[self.dest] = values
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Reads options, each once, and raises one line for what it cannot read: no usage text.

    Attributes:
        given: What options of one value were given, by destination; a command shares it with the
            commands below it.
    """

    def __init__(self, *args: Any, given: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Make a parser.

        Args:
            args: As argparse takes them.
            given: Of the parser above it; None for the uppermost.
            kwargs: As argparse takes them.
        """
        super().__init__(*args, **kwargs)
        self.given = {} if given is None else given
        self._uppermost = given is None
        self._words: list[str] = []
        self.register("action", None, Once)
        self.register("action", "store", Once)

    def add_subparsers(self, **kwargs: Any) -> Any:
        """Make the group of the commands below this one."""
        kwargs["parser_class"] = partial(type(self), given=self.given)
        return super().add_subparsers(**kwargs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Read arguments.

        Raises:
            UsageError: One of them is wrong, or unknown.
        """
        if self._uppermost:
            self.given.clear()
        self._words = [*(sys.argv[1:] if args is None else args)]
        found, rest = super().parse_known_args(self._words, namespace)
        if rest:
            raise UsageError(self._unknown(rest[0], getattr(found, "port", None) or ""))
        return found, rest

    def _unknown(self, word: str, port: str = "") -> str:
        """Say that a word means nothing here, and what may have been meant."""
        word, option = word.partition("=")[0], word.startswith("-")
        lead = f"unknown option {word}" if option else f"unexpected {word!r}"
        if port.startswith("exec:") and " " not in port:
            return f'{lead}: quote the command: "{port} {word} ..."'
        names = [own.lstrip("-") for own in self._long_options()] if option else []
        near = [f"the nearest is --{own}" for own in nearest(word.lstrip("-"), names)]
        return f"{lead}: {'; '.join([*near, self._advice()])}"

    def _long_options(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _advice(self) -> str:
        return f"`{self.prog} --help` says more"

    def error(self, message: str) -> NoReturn:
        """Refuse what cannot be read; where an option is misspelt, that is why.

        Raises:
            UsageError: Always.
        """
        for word in (word.partition("=")[0] for word in self._words if word.startswith("--")):
            if not any(own.startswith(word) for own in self._long_options()):
                raise UsageError(self._unknown(word))
        told = message.removeprefix("argument ").replace(
            ": expected one argument", " needs a value"
        )
        raise UsageError(f"{told}; {self._advice()}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Read a value; argparse's own message names no fix."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if action.choices is not None:
                fix = choices_text(arg_string, map(str, action.choices))
            elif action.type in _FIXES:
                fix = _FIXES[action.type]
            else:
                raise UsageError(f"{_name(action)}: {error.message}") from error
            raise UsageError(f"{_name(action)} {arg_string!r}: {fix}") from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of the choices, and name the nearest."""
        if action.choices is None or value in action.choices:
            return
        command = action.nargs == argparse.PARSER
        lead = f"unknown command {value!r}" if command else f"{_name(action)} {str(value)!r}"
        raise UsageError(f"{lead}: {choices_text(str(value), map(str, action.choices))}")


def _name(action: argparse.Action) -> str:
    """Return what an argument is called."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)
