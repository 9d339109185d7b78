"""What a folder or a Python file offers as a port, read without importing it."""

from __future__ import annotations

import ast
from pathlib import Path

FACTORY = "factory"
"""The name that the examples give to what returns a port."""

_SHOWN = 3


def factory_advice(path: Path) -> str:
    """Say what names a port in a folder or a Python file.

    Args:
        path: One that exists.

    Returns:
        `write DIR/port.py:factory`, of several files that have a factory a few; without any, how a
        port is named.
    """
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    found = [f"{file}:{FACTORY}" for file in files if _has_factory(file)][:_SHOWN]
    if found:
        return f"write {' or '.join(found)}"
    example = path / "FILE.py" if path.is_dir() else path
    return f"write {example}:NAME, NAME being a function that returns the port"


def _has_factory(file: Path) -> bool:
    """Say whether a file defines, at its top, a `factory` that needs no argument."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return False
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name == FACTORY
        and len(node.args.posonlyargs + node.args.args) == len(node.args.defaults)
        for node in body
    )
