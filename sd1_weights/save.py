"""Weights written in a layout: whole or not at all, and never over a file that is being read.

Everything is written under another name and renamed when it is complete: who has the old file
mapped into memory keeps it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sd1_weights import names, toy
from sd1_weights.configs import SCHEDULER, model_index, published_config
from sd1_weights.errors import CheckpointError, listed
from sd1_weights.layouts import COMPVIS, CONTEXT, DIFFUSERS
from sd1_weights.safetensors_file import Watch, write_safetensors
from sd1_weights.schedule import schedule
from sd1_weights.stored import Stored, bfloat16
from sd1_weights.torch_file import write_torch

Tensors = Mapping[str, Stored]
Metadata = Mapping[str, str]

FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
"""What a folder's file of weights is called."""

SINGLE_FILES = (".safetensors", ".ckpt")


def write_single_file(
    path: Path, networks: Mapping[str, Tensors], metadata: Metadata, watch: Watch = iter
) -> None:
    """Write networks as the original code does: one file, with its noise schedule.

    Args:
        path: `*.safetensors` or `*.ckpt`; an existing file is replaced.
        networks: All three or some, by name; tensors by canonical name.
        metadata: Texts for the header of safetensors.
        watch: Passes tensors on one by one, showing progress.

    Raises:
        CheckpointError: The path has neither ending, or cannot be written.
    """
    if path.suffix not in SINGLE_FILES:
        raise CheckpointError(
            f"{path}: a file of layout {COMPVIS} ends in {' or '.join(SINGLE_FILES)}"
        )
    own = [name for name in names.NETWORKS if name in networks]
    rows = [tensor for name in own for tensor in _single_file_rows(name, networks[name])]
    rows += [_table(name, values.astype(np.float32), "F32") for name, values in schedule().items()]
    with _replacing(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".ckpt":
            write_torch(file, rows, watch=watch)
        else:
            write_safetensors(file, rows, metadata, watch)


def write_toy(path: Path, weights: Mapping[str, np.ndarray], token_ids: np.ndarray) -> None:
    """Write the toy's file, rounding to bfloat16; `sd1_weights.toy` reads it.

    Args:
        path: The file; replaced when the new one is whole.
        weights: By name, `unet/conv_in.weight`; float32, the table of tokens whole.
        token_ids: The rows of the table that are kept; ascending, int64.

    Raises:
        CheckpointError: It cannot be written.
    """
    rows = [_table(toy.TOKENS, token_ids, "I64")]
    for name, array in weights.items():
        kept = array[token_ids] if name == toy.TABLE else array
        rows.append(_table(name, bfloat16(kept), "BF16"))
    with _replacing(path) as temporary, temporary.open("wb") as file:
        write_safetensors(file, rows, {})


def _single_file_rows(name: str, tensors: Tensors) -> Iterator[Stored]:
    """Yield a network's tensors under their CompVis names and in their shapes there."""
    start = names.prefix(name)
    convolutions = {
        f"{module}.weight"
        for axes, modules in names.layouts(name).items()
        for module in modules
        if axes == "o i 1 1 -> o i"
    }
    for key, tensor in tensors.items():
        own = tensor.reshaped((*tensor.shape, 1, 1)) if key in convolutions else tensor
        yield replace(own, key=start + names.compvis_key(name, key))
    for key in names.unweighted(name):
        yield _table(start + key, np.arange(CONTEXT)[None], "I64")


def _table(key: str, array: np.ndarray, dtype: str) -> Stored:
    return Stored(key, dtype, array.shape, lambda: array)


def write_folder(
    folder: Path,
    networks: Mapping[str, Tensors],
    architectures: Mapping[str, dict[str, Any]],
    tokenizer: Mapping[str, Any],
    metadata: Metadata,
    watch: Watch = iter,
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder in diffusers' layout, which its pipelines load.

    Args:
        folder: The folder; files of the same names in it are replaced.
        networks: By name, tensors by canonical name.
        architectures: By name, as `configs.published_config` takes them.
        tokenizer: Of `configs.tokenizer_files`.
        metadata: Texts for the headers.
        watch: Passes tensors on one by one, showing progress.
        scheduler: Contents of its config; None for SD v1's PNDM.

    Raises:
        CheckpointError: It cannot be written.
    """
    if folder.suffix in SINGLE_FILES:
        raise CheckpointError(
            f"{folder}: layout {DIFFUSERS} is a folder, whose name does not end in "
            f"{folder.suffix}; layout {COMPVIS} is such a file"
        )
    for name in networks:
        _check_alone(folder / name, name)
    scheduler = SCHEDULER if scheduler is None else scheduler
    index = model_index(scheduler["_class_name"], architectures["unet"]["in_channels"])
    with _filling(folder) as temporary:
        _write_json(temporary / "model_index.json", index)
        _write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        for name, content in tokenizer.items():
            _write_json(temporary / "tokenizer" / name, content)
        for name in reversed(names.NETWORKS):
            _write_network(
                temporary / name, name, networks[name], architectures[name], metadata, watch
            )


def write_network(
    folder: Path,
    name: str,
    tensors: Tensors,
    architecture: dict[str, Any],
    metadata: Metadata,
    watch: Watch = iter,
) -> None:
    """Write the folder of one network: its config and its weights; as `write_folder`."""
    _check_alone(folder, name)
    with _filling(folder) as temporary:
        _write_network(temporary, name, tensors, architecture, metadata, watch)


def _check_alone(folder: Path, name: str) -> None:
    """Refuse a folder with other files of weights: some loaders would take those."""
    others = [
        path.name
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.name != FILES[name]
        and (path.suffix in {".safetensors", ".bin"} or path.name.endswith(".index.json"))
    ]
    if others:
        raise CheckpointError(
            f"cannot write {folder}: it has {listed('other files of weights', others)}, which "
            "loaders may take instead; choose another folder"
        )


def _write_network(
    folder: Path,
    name: str,
    tensors: Tensors,
    architecture: dict[str, Any],
    metadata: Metadata,
    watch: Watch,
) -> None:
    _write_json(folder / "config.json", published_config(name, architecture))
    rows = [replace(tensor, key=key) for key, tensor in tensors.items()]
    with (folder / FILES[name]).open("wb") as file:
        write_safetensors(file, rows, {"format": "pt", **metadata}, watch)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Let a file be written beside its place, and put it there when it is whole."""
    with _beside(path, is_folder=False) as temporary:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """Let a folder be written beside its place, and put its files there when it is whole."""
    with _beside(folder, is_folder=True) as temporary:
        yield temporary
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        places = [folder / path.relative_to(temporary) for path in files]
        for place in places:  # what is in the way is found before the first file is replaced
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{os.strerror(errno.EISDIR)}: {place}")
        for path, place in zip(files, places, strict=True):
            path.replace(place)


@contextmanager
def _beside(path: Path, *, is_folder: bool) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which is gone in the end; name what fails."""
    temporary: Path | None = None
    try:
        if path.exists() and path.is_dir() != is_folder:
            kind = "no folder" if is_folder else "a folder"
            raise CheckpointError(f"cannot write {path}: it is there, and is {kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_folder:
            if path.exists() and not os.access(path, os.W_OK):  # before the work, not after
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            temporary = Path(name)
        yield temporary
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None and is_folder:
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary is not None:
            temporary.unlink(missing_ok=True)
