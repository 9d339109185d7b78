"""The words of the port protocol: its JSON Schema, and whether a message follows it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import PortError
from conformance.report.text import one_line

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

VERSION = 1
"""Of the protocol: the `protocol` of a `hello`."""

ECHO = "echo"
"""Reserved component that gives back its inputs: tests how tensors travel."""

_PATH = Path(__file__).parent / "schemas" / "protocol.schema.json"
_WORDS = 200


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
    text = one_line(error.message, _WORDS)
    problem = f"{what}: {f'field {where}: ' if where else ''}{text} (docs/protocol.md)"
    raise PortError(problem)
