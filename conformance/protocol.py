"""The words of the port protocol: its JSON Schema, and whether a message follows it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import PortError, choices_text, nearest
from conformance.report.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

VERSION = 1
"""Of the protocol: the `protocol` of a `hello`."""

ECHO = "echo"
"""Reserved component that gives back its inputs: tests how tensors travel."""

_PATH = Path(__file__).parent / "schemas" / "protocol.schema.json"
_WORDS = 200
_VALUE = 80


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of every message, under `$defs`."""
    return dict(json.loads(_PATH.read_text(encoding="utf-8")))


@cache
def _validator(kind: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # late: beside Jupyter it takes over a second

    whole = schema()
    return Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": whole["$defs"]})


def check(kind: str, message: Any, what: str) -> None:
    """Check a message against its schema.

    Args:
        kind: A name of `$defs`: `reply`, `offer`, `answer`, `request`, ...
        message: The message, parsed.
        what: What it is, for the error: "the reply of the port to hello".

    Raises:
        PortError: It does not follow the schema; names the field.
    """
    from jsonschema.exceptions import best_match

    error = best_match(_validator(kind).iter_errors(message))
    if error is None:
        return
    where = ".".join(map(str, error.absolute_path))
    problem = f"{what}{f': field {where}' if where else ''} {_told(error)} (docs/protocol.md)"
    raise PortError(problem)


def _told(error: ValidationError) -> str:
    """Say what is wrong with a field, or with a whole message, and what it has to be."""
    teller = _TELLERS.get(str(error.validator))
    if teller is None:
        return f"is {_given(error.instance)}, which is wrong: {one_line(error.message, _WORDS)}"
    return teller(error.instance, error.validator_value, error.schema)


def _given(value: Any) -> str:
    return one_line(json.dumps(value), _VALUE)


def _unknown_field(value: Any, _: Any, own: Any) -> str:
    known = list(own.get("properties", ()))
    name = next(name for name in value if name not in known)
    meant = "".join(f"did you mean {near}?" for near in nearest(name, known))
    choice = meant or (f"choose from {', '.join(known)}" if known else "it has to have none")
    return f"has a field {one_line(name, _VALUE)!r}, which is none: {choice}"


def _missing_field(value: Any, wanted: Any, own: Any) -> str:
    name = next(name for name in wanted if name not in value)
    return f"lacks the field {name!r}, {_kind(_resolved(own['properties'][name]))}"


def _wrong_type(value: Any, wanted: Any, own: Any) -> str:
    advice = f": [{_given(value)}]" if wanted == "array" and isinstance(value, str) else ""
    return f"is {_given(value)}, and has to be {_kind(own)}{advice}"


def _no_choice(value: Any, wanted: Any, _: Any) -> str:
    known = [name for name in wanted if name is not None]
    return f"is {_given(value)}: {choices_text(str(value), known)}"


_TELLERS: dict[str, Callable[[Any, Any, Any], str]] = {
    "additionalProperties": _unknown_field,
    "required": _missing_field,
    "type": _wrong_type,
    "enum": _no_choice,
    "uniqueItems": lambda value, *_: f"is {_given(value)}: one of them is there twice",
    "minLength": lambda *_: "is empty",
    "minItems": lambda *_: "is empty",
    "maxLength": lambda _, most, *__: f"is longer than {most} characters",
    "minimum": lambda value, least, *_: f"is {value}, and has to be at least {least}",
    "maxProperties": lambda value, *_: f"is {_given(value)}, and has to be {{}}",
    "anyOf": lambda value, *_: f"is {_given(value)}, and has to be that of the request",
    "oneOf": lambda value, *_: (
        f"is {_given(value)}, and has to have the `id` of the request and one of `ok`, `error` and "
        "`unsupported`"
    ),
}
"""By the word of JSON Schema that is broken: told what is given, what is asked, and the schema."""

_KINDS = {
    "string": "a string",
    "array": "a list",
    "object": "an object",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
}


def _kind(own: Mapping[str, Any]) -> str:
    """Name what a field has to be."""
    kinds = own.get("type", "string")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return " or ".join(_KINDS[kind] for kind in kinds)


def _resolved(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the definition that a field refers to, or its own."""
    name = str(field.get("$ref", "")).rpartition("/")[2]
    return dict(schema()["$defs"][name]) if name else field
