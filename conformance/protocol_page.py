"""docs/protocol.md, written from the JSON Schema: `python -m conformance.protocol_page`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance.protocol import schema

PAGE = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"

_HEAD = """# The port protocol

This page is written from `conformance/schemas/protocol.schema.json`, version 1 of the protocol, by
`python -m conformance.protocol_page`. How to use it: [porting.md](porting.md). Names of components,
inputs, outputs and probes: [contract.md](contract.md).

A port is a program that the suite starts (`exec:COMMAND`) and keeps. It reads requests from its standard
input and writes replies to its standard output: one JSON object (UTF-8) a line, one request at a time. Standard
error is its log; the suite shows the last line of it when the port breaks. Each reply repeats the `id` of its request and has
one other field:

| reply | field | meaning |
|---|---|---|
| `ok` | an object | the request was carried out |
| `error` | a string | it failed: that case is an `error`. The child goes on |
| `unsupported` | a string | the port declines (`load` and `run`): that case is a `skip` |

Tensors travel as [safetensors](https://github.com/huggingface/safetensors) files: 8 bytes, the length N of the header as a little-endian
integer; N bytes of JSON, `{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}`;
then the data, little-endian, rows first, offsets counted from the end of the header. Expected values are never sent.

## Limits

| limit | value |
|---|---|
| time of a call | `--timeout S`, default 300 s; `hello`, `load` and the first `run` after it have 4 times that |
| memory of the child and what it starts | `--memory SIZE`, default three quarters of the machine's (Linux) |
| length of a reply | 1 MiB; tensors go to files |
| files of a reply | regular files in the scratch folder, at most 8 GiB |

The suite starts children on Linux and macOS; memory is watched on Linux. With `-n` the machine's share is divided.

A child that breaks a limit or the protocol, hangs or dies is killed with all that it started (its process group),
and started again for the next case. A component that hangs three times in a row is not asked again; nor is a port
that fails three times in a row to start.

"""

_EXAMPLE = """## A conversation

```
→ {"id": 1, "op": "hello", "protocol": 1, "scratch": "/tmp/x/scratch"}
← {"id": 1, "ok": {"name": "my port", "version": "1.0", "components": ["vae_decoder"], "probes": false, "replace": false}}
→ {"id": 2, "op": "load", "component": "vae_decoder", "variant": {"name": "tiny", "size": "tiny", "regime": "unit"},
   "architecture": {"vae": {"block_out_channels": [32, 64, 128, 128], ...}}, "weights": "/tmp/x/weights",
   "layout": "diffusers", "arithmetic": "float32", "device": "cpu"}
← {"id": 2, "ok": {}}
→ {"id": 3, "op": "run", "inputs": {"tensors": "/tmp/x/scratch/inputs.safetensors", "strings": {}, "config": null},
   "probes": [], "replace": null}
← {"id": 3, "ok": {"outputs": "outputs.safetensors"}}
→ {"id": 4, "op": "bye"}
← {"id": 4, "ok": {}}
```

(Each message is one line; the long one is broken here.) The component `echo`, which a port may offer with `"echo": true`, has no weights
and gives back its input tensors as outputs, of whatever dtype and shape: `sd1-conformance smoke` tests the harness with it.
"""

_REQUESTS = {
    "hello": "offer",
    "load": "nothing",
    "run": "answer",
    "unload": "nothing",
    "bye": "nothing",
}


def page() -> str:
    """Return the text of the page."""
    definitions = schema()["$defs"]
    parts = [_HEAD, "## Requests\n"]
    for request, reply in _REQUESTS.items():
        parts.append(f"\n### `{request}`\n\n{definitions[request]['description']}\n")
        parts.append(_table(definitions[request], definitions, leave_out=("id",)))
        parts.append(f"\nIts `ok`: [{reply}](#{reply}).\n")
    parts.append("\n## Replies\n")
    for reply in ("offer", "answer", "nothing", "error", "unsupported"):
        parts.append(f"\n### `{reply}`\n\n{definitions[reply]['description']}\n")
        if definitions[reply].get("properties"):
            parts.append(_table(definitions[reply], definitions))
    parts.append("\n" + _EXAMPLE)
    return "".join(parts)


def _table(
    definition: dict[str, Any], definitions: dict[str, Any], leave_out: tuple[str, ...] = ()
) -> str:
    """Return the fields of a message as a table; those of a field of it follow indented."""
    rows = ["\n| field | type | needed | meaning |\n|---|---|---|---|\n"]
    for name, given in definition["properties"].items():
        if name in leave_out:
            continue
        facts = _resolved(given, definitions)
        needed = "yes" if name in definition.get("required", ()) else _default(given)
        meaning = given.get("description") or facts.get("description", "")
        rows.append(f"| `{name}` | {_type(facts)} | {needed} | {meaning} |\n")
        for inner, own in facts.get("properties", {}).items():
            own_facts = _resolved(own, definitions)
            told = own.get("description", "")
            needed = "yes" if inner in facts.get("required", ()) else _default(own)
            rows.append(f"| `{name}.{inner}` | {_type(own_facts)} | {needed} | {told} |\n")
    return "".join(rows)


def _resolved(given: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a field's schema, what it refers to included."""
    if "$ref" not in given:
        return given
    return {**definitions[given["$ref"].rpartition("/")[2]], **given}


def _default(given: dict[str, Any]) -> str:
    return f"no: `{json.dumps(given['default'])}`" if "default" in given else "no"


def _type(facts: dict[str, Any]) -> str:
    """Describe a type in words."""
    if "const" in facts:
        return f"`{json.dumps(facts['const'])}`"
    if "enum" in facts:
        return ", ".join(f"`{json.dumps(value)}`" for value in facts["enum"])
    if "anyOf" in facts:
        return "integer or null"
    kinds = facts["type"] if isinstance(facts["type"], list) else [facts["type"]]
    return " or ".join("list" if kind == "array" else kind for kind in kinds)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
