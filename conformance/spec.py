"""The frozen facts of SD v1 in `golden/spec/`: architectures, parameter shapes, probe names."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from conformance.errors import GoldenError


def golden_root() -> Path:
    """Return the folder of the goldens: `$SD1_GOLDEN`, or `golden/` beside this package."""
    override = os.environ.get("SD1_GOLDEN")
    return Path(override) if override else Path(__file__).resolve().parent.parent / "golden"


@cache
def _load(root: Path, name: str) -> Any:
    path = root / "spec" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = (
            f"{path} is missing: reinstall the package, or set SD1_GOLDEN to a complete folder"
        )
        raise GoldenError(message) from error
    except json.JSONDecodeError as error:
        message = f"{path} is not valid JSON ({error}): restore it from the repository"
        raise GoldenError(message) from error


def architectures(component: str) -> dict[str, dict[str, Any]]:
    """Return the sizes of a component and their architecture, by size name."""
    return _load(golden_root(), "variants")[component]


def parameter_shapes(component: str, size: str) -> dict[str, tuple[int, ...]]:
    """Return canonical parameter names and shapes, in the checkpoint's order.

    Args:
        component: `unet`.
        size: A size of `architectures(component)`.

    Returns:
        Name to shape.
    """
    shapes = _load(golden_root(), "parameters")[component][size]
    return {name: tuple(shape) for name, shape in shapes.items()}


@cache
def probe_names(component: str, size: str) -> tuple[str, ...]:
    """Return the canonical probe names of a component in execution order.

    Args:
        component: `unet`.
        size: A size; a layer that this size lacks (a shortcut between equal widths) has no probe.

    Returns:
        Module paths, and paths with `.input` for what enters a module.
    """
    owners = parameter_shapes(component, size)
    prefixes = {name[:i] for name in owners for i, letter in enumerate(name) if letter == "."}
    names = _load(golden_root(), "probes")[component]["all"]
    return tuple(n for n in names if n.removesuffix(".input") in prefixes or n == "time_proj")


@cache
def block_names(component: str) -> frozenset[str]:
    """Return the probes that are named blocks rather than single layers."""
    return frozenset(_load(golden_root(), "probes")[component]["blocks"])


@cache
def execution_order(component: str) -> dict[str, int]:
    """Return the place of every probe of any size in execution order."""
    return {name: i for i, name in enumerate(_load(golden_root(), "probes")[component]["all"])}
