"""The names of the original CompVis checkpoints, after `golden/spec/compvis.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from conformance.errors import GoldenError, UsageError
from conformance.spec import golden_root

FOLDERS = ("unet", "vae", "text_encoder")

_BRACES = re.compile(r"\{([^}]*)\}")


def compvis_key(folder: str, name: str) -> str:
    """Return what the CompVis code calls a parameter or module.

    Args:
        folder: `unet`, `vae` or `text_encoder`.
        name: Its canonical name.

    Returns:
        The name within that part of a single-file checkpoint; `prefix(folder)` comes before it.

    Raises:
        UsageError: There is nothing of that name.
    """
    return _translated(folder, name, _modules(golden_root(), folder), "canonical")


def canonical_key(folder: str, key: str) -> str:
    """Return the canonical name of a parameter or module of the CompVis code.

    Args:
        folder: `unet`, `vae` or `text_encoder`.
        key: Its name there, without `prefix(folder)`.

    Raises:
        UsageError: There is nothing of that name.
    """
    return _translated(folder, key, _inverse(golden_root(), folder), "CompVis")


def prefix(folder: str) -> str:
    """Return what all names of a part begin with in a single-file checkpoint."""
    start: str = _facts(golden_root())[folder]["prefix"]
    return start


def unweighted(folder: str) -> tuple[str, ...]:
    """Return the CompVis names that stand for no weight: what they hold is always the same."""
    return tuple(_facts(golden_root())[folder]["unweighted"])


def layouts(folder: str) -> dict[str, list[str]]:
    """Return the modules whose weights are laid out otherwise.

    Returns:
        Axes, CompVis' first, `o i 1 1 -> o i`, to canonical module paths.
    """
    found: dict[str, list[str]] = {}
    for canonical, _, axes in _rows(golden_root(), folder):
        if axes:
            found.setdefault(axes, []).append(canonical)
    return found


def _translated(folder: str, name: str, modules: dict[str, str], kind: str) -> str:
    """Replace the longest known path that a name begins with."""
    path = name
    while path not in modules:
        path = path.rpartition(".")[0]
        if not path:
            message = f"the {folder} has nothing of the {kind} name {name!r}"
            raise UsageError(message)
    return modules[path] + name[len(path) :]


@cache
def _modules(root: Path, folder: str) -> dict[str, str]:
    return {canonical: compvis for canonical, compvis, _ in _rows(root, folder)}


@cache
def _inverse(root: Path, folder: str) -> dict[str, str]:
    return {compvis: canonical for canonical, compvis in _modules(root, folder).items()}


def _rows(root: Path, folder: str) -> Iterator[tuple[str, str, str]]:
    """Yield canonical path, CompVis path and axes of every module that is named in the table."""
    facts = _facts(root)[folder]
    for canonical, compvis, *kinds in facts["modules"]:
        pairs = zip(_expanded(canonical), _expanded(compvis), strict=True)
        layers = facts["layers"][kinds[0]] if kinds else []
        for ours, theirs in pairs:
            yield ours, theirs, ""
            for layer, other, *axes in layers:
                yield f"{ours}.{layer}", f"{theirs}.{other}", axes[0] if axes else ""


def _expanded(text: str) -> list[str]:
    """Expand braces as a shell does: `a{0..1}{x,y}` to a0x, a0y, a1x, a1y; `{3..0}` counts down."""
    literal = _BRACES.split(text)  # what is in braces has the odd places
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(literal)]
    return ["".join(parts) for parts in product(*choices)]


def _choices(text: str) -> list[str]:
    first, dots, last = text.partition("..")
    if not dots:
        return text.split(",")
    start, end = int(first), int(last)
    step = 1 if end >= start else -1
    return [str(i) for i in range(start, end + step, step)]


@cache
def _facts(root: Path) -> dict[str, Any]:
    path = root / "spec" / "compvis.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        message = f"{path} cannot be read ({error}): reinstall the package, or check SD1_GOLDEN"
        raise GoldenError(message) from error
    return facts
