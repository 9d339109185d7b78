"""The frozen facts of SD v1 in `golden/spec/`: architectures, parameter shapes, probe names."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from conformance.errors import GoldenError
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.sampling import place as sampling_place
from conformance.training import FOLDERS, GRADIENT, TRAINED, TRAININGS
from conformance.training import place as training_place
from sd1_weights.names import golden_root

TOKENIZER = "tokenizer"


class Block(NamedTuple):
    """One block of the UNet alone, with which a port may begin.

    Attributes:
        path: Its module in the UNet; names of its weights and probes are relative to it.
        arguments: What the module is called with, in order: `map`, `time`, `sinusoids`, `text`.
        hunts: The bugs that its case is there to expose, in one line.
    """

    path: str
    arguments: tuple[str, ...]
    hunts: str


_BLOCKS = (
    Block(
        "time_embedding",
        ("sinusoids",),
        "SiLU missing, or after the second layer; a bias forgotten, a matrix transposed",
    ),
    Block(
        "down_blocks.0.resnets.0",
        ("map", "time"),
        "wrong eps, groups, padding; SiLU, time or shortcut missing or misplaced; a bias forgotten",
    ),
)
BLOCKS = {f"block/{block.path}": block for block in _BLOCKS}
"""By component."""

CHECKPOINT_FOLDERS = {
    "text_encoder": "text_encoder",
    "unet": "unet",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
    **dict.fromkeys(BLOCKS, "unet"),
}
"""The folder of a checkpoint that holds a network's weights: both halves of the VAE share one."""

FOLDER_COMPONENTS = {
    folder: component for component, folder in CHECKPOINT_FOLDERS.items() if component not in BLOCKS
}
"""A network whose weights are in a folder: either half of the VAE stands for both."""

ASSEMBLED = {**dict.fromkeys(PIPELINES, tuple(FOLDER_COMPONENTS)), **FOLDERS}
"""Components made of whole networks, and the folders of a checkpoint that hold them: the names of
their weights begin with the folder."""

_PARTS = {
    "vae_encoder": ("encoder.", "quant_conv."),
    "vae_decoder": ("decoder.", "post_quant_conv."),
}
"""Keys of a shared folder that belong to a network."""


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
    """Return the sizes of a network, for a block the UNet's, and their architecture, by size."""
    return _load(golden_root(), "variants")[CHECKPOINT_FOLDERS[component]]


INPAINT_SUFFIX = "-inpaint"
"""Of sizes whose UNet reads a mask and a masked picture too."""


def known_size(known: Collection[str], size: str) -> str:
    """Return the name of a size among those of a network: only a UNet has its own to inpaint."""
    return size if size in known else size.removesuffix(INPAINT_SUFFIX)


def checkpoint_shapes(folder: str, size: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of one folder of a checkpoint, in the checkpoint's order.

    Args:
        folder: `text_encoder`, `unet` or `vae`.
        size: A size of the network.

    Returns:
        Name to shape.
    """
    facts = _load(golden_root(), "parameters")[folder]
    shapes = facts["shapes"]
    rows = zip(facts["names"], shapes[known_size(shapes, size)], strict=True)
    return {name: tuple(shape) for name, shape in rows if shape is not None}


def parameter_shapes(component: str, size: str) -> dict[str, tuple[int, ...]]:
    """Return canonical parameter names and shapes of one network, in the checkpoint's order.

    Args:
        component: A network, or a block.
        size: A size of `architectures(component)`.

    Returns:
        Name to shape; the names of a block are relative to it.
    """
    start = name_start(component)
    parts = _PARTS.get(component, (start,))
    shapes = checkpoint_shapes(CHECKPOINT_FOLDERS[component], size)
    return {n.removeprefix(start): shape for n, shape in shapes.items() if n.startswith(parts)}


def name_start(component: str) -> str:
    """Return what a block's names lack of the UNet's; empty for what is no block."""
    return f"{BLOCKS[component].path}." if component in BLOCKS else ""


def _probes(component: str, which: str) -> list[str]:
    """Return probes of any size: `all` in execution order, or the named `blocks`."""
    start = name_start(component)
    facts = _load(golden_root(), "probes").get("unet" if start else component, {})
    names = [n.removeprefix(start) for n in facts.get(which, ()) if n.startswith(start)]
    return [name for name in names if name != "input"]  # what enters a block is given, no probe


@cache
def probe_names(component: str, size: str) -> tuple[str, ...]:
    """Return the canonical probe names of a network or block in execution order.

    Args:
        component: A network, or a block, whose names are relative to it.
        size: A size; a layer that this size lacks (a shortcut between equal widths) has no probe.

    Returns:
        Module paths, and paths with `.input` for what enters a module.
    """
    owners = parameter_shapes(component, size)
    prefixes = {name[:i] for name in owners for i, letter in enumerate(name) if letter == "."}
    names = _probes(component, "all")
    return tuple(n for n in names if n.removesuffix(".input") in prefixes or n == "time_proj")


@cache
def block_names(component: str) -> frozenset[str]:
    """Return the probes that are named blocks rather than single layers."""
    return frozenset(_probes(component, "blocks"))


def block_around(component: str, name: str) -> str:
    """Return the innermost named block that a probe is part of; empty where there is none."""
    blocks = block_names(component)
    path = name.removesuffix(".input")
    while path and path not in blocks:
        path = path.rpartition(".")[0]
    return path


@cache
def execution_order(component: str) -> dict[str, int]:
    """Return the place of every probe of any size in execution order; none for the tokenizer."""
    return {name: i for i, name in enumerate(_probes(component, "all"))}


def place(component: str, name: str) -> tuple[int, ...]:
    """Return where a probe or output stands in the order of execution of its component.

    Args:
        component: A component.
        name: A probe of any size, or an output: outputs come last, in any order.

    Returns:
        A key for sorting.
    """
    if component in SCHEDULERS or component in PIPELINES:
        return sampling_place(name)
    if component in TRAININGS:
        return training_place(name, _trained_order(component))
    order = execution_order(component)
    return (order.get(name, len(order)),)


def gradient_shapes(component: str, size: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the gradients of a component of training; of others none."""
    if component not in TRAININGS:
        return {}
    shapes = checkpoint_shapes(TRAINED[component], size)
    return {f"{GRADIENT}{name}": shape for name, shape in shapes.items()}


@cache
def _trained_order(component: str) -> dict[str, int]:
    """Return the place of every layer of a component of training in execution order."""
    networks = CHECKPOINT_FOLDERS.items()
    parts = [n for n, own in networks if own == TRAINED[component] and n not in BLOCKS]
    return {name: i for i, name in enumerate(n for part in parts for n in _probes(part, "all"))}


def golden_strings() -> dict[str, dict[str, Any]]:
    """Return the tokenizer's strings, by name: `text` (one or several) and what it `hunts`."""
    return _load(golden_root(), "strings")


def golden_prompts() -> dict[str, dict[str, Any]]:
    """Return the text encoder's inputs, by scenario: `text` and its `input_ids`, rows of 77."""
    return _load(golden_root(), "prompts")


def published_slices() -> dict[str, Any]:
    """Return the slices that diffusers' tests publish, and those left out: see witness_rows.py."""
    return _load(golden_root(), "witness")
