"""What weights are called in each layout, after `golden/spec/layouts.json`.

Canonical names are today's names of diffusers and transformers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from sd1_weights.errors import CheckpointError

NETWORKS = ("unet", "vae", "text_encoder")

_BESIDE = Path(__file__).resolve().parent.parent / "golden"
_BRACES = re.compile(r"\{([^}]*)\}")


def golden_root() -> Path:
    """Return the folder of the goldens: `$SD1_GOLDEN`, or `golden/` beside this package."""
    override = os.environ.get("SD1_GOLDEN")
    return Path(override) if override else _BESIDE


def compvis_key(network: str, name: str) -> str:
    """Return what the CompVis code calls a parameter or module.

    Args:
        network: One of `NETWORKS`.
        name: Its canonical name.

    Returns:
        The name within that part of a single-file checkpoint; `prefix(network)` comes before it.

    Raises:
        CheckpointError: There is nothing of that name.
    """
    return _translated(network, name, _modules(golden_root(), network), "canonical")


def canonical_key(network: str, key: str) -> str:
    """Return the canonical name of a parameter or module of the CompVis code.

    Args:
        network: One of `NETWORKS`.
        key: Its name there, without `prefix(network)`.

    Raises:
        CheckpointError: There is nothing of that name.
    """
    return _translated(network, key, _inverse(golden_root(), network), "CompVis")


def ema_key(name: str) -> str:
    """Return what the averaged copy of a parameter of the UNet is called in a single file."""
    facts = single_file()
    flat: str = (facts["ema_prefix"] + compvis_key("unet", name)).replace(".", "")
    return facts["ema"] + flat


def current_name(network: str, name: str) -> str:
    """Return the canonical name of a parameter of a diffusers folder: older ones have others."""
    module, _, parameter = name.rpartition(".")
    return f"{_old(golden_root(), network).get(module, module)}.{parameter}" if module else name


def prefix(network: str) -> str:
    """Return what all names of a part begin with in a single-file checkpoint."""
    start: str = facts_of(network)["prefix"]
    return start


def unweighted(network: str) -> tuple[str, ...]:
    """Return the CompVis names that stand for no weight: what they hold is always the same."""
    return tuple(facts_of(network)["unweighted"])


def either(network: str) -> frozenset[str]:
    """Return the weights that may be those of a linear layer or of a 1x1 convolution."""
    return _either(golden_root(), network)


def layouts(network: str) -> dict[str, list[str]]:
    """Return the modules whose weights are laid out otherwise in CompVis files.

    Returns:
        Axes, CompVis' first, `o i 1 1 -> o i`, to canonical module paths.
    """
    found: dict[str, list[str]] = {}
    for canonical, _, axes in _rows(golden_root(), network):
        if axes:
            found.setdefault(axes, []).append(canonical)
    return found


def facts_of(network: str) -> dict[str, Any]:
    """Return the table's entry of a network."""
    facts: dict[str, Any] = _facts(golden_root())[network]
    return facts


def single_file() -> dict[str, Any]:
    """Return the table's entry of what a CompVis file holds beside the networks."""
    facts: dict[str, Any] = _facts(golden_root())["single_file"]
    return facts


def _translated(network: str, name: str, modules: dict[str, str], kind: str) -> str:
    """Replace the longest known path that a name begins with."""
    path = name
    while path not in modules:
        path = path.rpartition(".")[0]
        if not path:
            raise CheckpointError(f"the {network} has nothing of the {kind} name {name!r}")
    return modules[path] + name[len(path) :]


@cache
def _modules(root: Path, network: str) -> dict[str, str]:
    return {canonical: compvis for canonical, compvis, _ in _rows(root, network)}


@cache
def _inverse(root: Path, network: str) -> dict[str, str]:
    return {compvis: canonical for canonical, compvis in _modules(root, network).items()}


@cache
def _old(root: Path, network: str) -> dict[str, str]:
    rows = _facts(root)[network]["old"]
    return {
        old: new
        for olds, news in rows
        for old, new in zip(_expanded(olds), _expanded(news), strict=True)
    }


@cache
def _either(root: Path, network: str) -> frozenset[str]:
    rows = _facts(root)[network]["either"]
    return frozenset(f"{module}.weight" for row in rows for module in _expanded(row))


def _rows(root: Path, network: str) -> Iterator[tuple[str, str, str]]:
    """Yield canonical path, CompVis path and axes of every module that is named in the table."""
    facts = _facts(root)[network]
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
    return spec_file(root, "layouts")


def spec_file(root: Path, name: str) -> dict[str, Any]:
    """Read a file of `golden/spec/`.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    path = root / "spec" / f"{name}.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): reinstall the package, or check SD1_GOLDEN"
        ) from error
    return facts
