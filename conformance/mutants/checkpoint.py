"""Mutants of the checkpoint's way into the model: what was loaded is in the wrong place.

A patch changes what reads a file, never what writes it: the port that it spoils does both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from conformance.adapters import sd1_impl_files as files
from conformance.mutants.checkpoint_files import (
    averaged_of_two,
    old_names,
    plain_of_two,
    shared_storages,
)
from conformance.mutants.mutant import Mutant, NotRun, Patch, wrapped
from conformance.mutants.schedulers import configured
from sd1_impl import checkpoint
from sd1_impl.attention import CrossAttention
from sd1_weights import layouts, names, torch_file
from sd1_weights.layouts import Network
from sd1_weights.sizes import Shapes, names_of
from sd1_weights.stored import Stored
from sd1_weights.torch_names import Tensor

Tensors = dict[str, Stored]


def _keys_for_values(unet: Any) -> None:
    """Exchange to_k and to_v of every self-attention; their shapes are the same."""
    for name, module in unet.named_modules():
        if isinstance(module, CrossAttention) and name.endswith("attn1"):
            key, value = module.to_k, module.to_v
            key.weight, value.weight = value.weight, key.weight


def _kernels_transposed(unet: Any) -> None:
    """Exchange height and width of every kernel that has both."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            transposed = module.weight.detach().transpose(2, 3).contiguous()
            module.weight = nn.Parameter(transposed, requires_grad=False)


def _reading(**forced: Any) -> Callable[[Any], Any]:
    """Read with these options, whatever was asked for."""
    return lambda plain: lambda path, **asked: plain(path, **asked | forced)


def _small_twins(plain: Any) -> Any:
    """Let averaged tensors of one axis take the names, and the places, of the others."""

    def read(path: Path) -> tuple[Tensors, list[str]]:
        tensors, others = plain(path)
        for name in names_of("unet"):
            key = names.prefix("unet") + names.compvis_key("unet", name)
            twin = tensors.get(names.ema_key(name))
            if twin is not None and len(twin.shape) < 2:
                tensors[key] = replace(twin, key=key)
        return tensors, others

    return read


def _without_offsets(plain: Any) -> Any:
    """Read every tensor from the beginning of its storage."""

    def stored(key: str, value: Any, *rest: Any) -> Stored:
        lost = replace(value, offset=0) if isinstance(value, Tensor) else value
        return plain(key, lost, *rest)

    return stored


def _axes_exchanged(plain: Any) -> Any:
    """Turn a linear layer's weight that was a 1x1 kernel: `(i, o)` for `(o, i)`."""

    def fitted(self: Network, name: str, shape: tuple[int, ...]) -> Stored:
        tensor = plain(self, name, shape)
        if tensor.shape == self.tensors[name].shape:
            return tensor
        return replace(tensor, read=lambda: tensor.bits().T)

    return fitted


def _lenient(plain: Any) -> Any:
    """Leave what is missing as it was initialised, and drop what is unexpected."""

    def fitted(self: Network, wanted: Shapes) -> Tensors:
        found = {name: self.tensors.get(name) or _initial(name, wanted) for name in wanted}
        return plain(replace(self, tensors=found, unexpected=[]), wanted)

    return fitted


def _initial(name: str, shapes: Shapes) -> Stored:
    """Return what PyTorch gives a layer to begin with: uniform within 1 / sqrt(inputs)."""
    inputs = math.prod(shapes[f"{name.rpartition('.')[0]}.weight"][1:])
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.uniform(-1, 1, shapes[name]) / math.sqrt(inputs)
    return Stored(name, "F32", shapes[name], lambda: values.astype(np.float32))


def _old_names_unknown(patch: Patch) -> None:
    """Take every name for a current one, and load leniently."""
    patch.setattr(names, "current_name", lambda _, name: name)
    patch.wrap(Network, "fitted", _lenient)


def _shortcut_not_renamed(patch: Patch) -> None:
    """Leave the skip connections' row out of the table, and load leniently."""

    def make(plain: Any) -> Any:
        def named(name: str, own: Any, file: str, canonical: Any, unread: list[str]) -> Network:
            def known(key: str) -> str | None:
                return None if "skip_connection" in key else canonical(key)

            return plain(name, own, file, known, unread)

        return named

    patch.wrap(layouts, "_named", make)
    patch.wrap(Network, "fitted", _lenient)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="ckpt-qkv-swap",
        component="unet",
        wrong="The weights of to_k and to_v of every self-attention are exchanged",
        cases=("tiny/base", "odd/base"),
        evidence="I",
        size="catastrophic",
        module=_keys_for_values,
    ),
    Mutant(
        id="ckpt-conv-layout",
        component="unet",
        wrong="Height and width of every kernel are exchanged at load",
        cases=("tiny/base", "odd/base"),
        seen="mlx-examples model_io.py and keras-cv transpose at load; diffusers#535",
        evidence="C",
        size="catastrophic",
        module=_kernels_transposed,
    ),
    Mutant(
        id="ckpt-config-defaults-override",
        component="scheduler/ddim",
        wrong="The scheduler keeps its class's defaults where its configuration says otherwise",
        cases=("-/base", "-/steps7"),
        seen="sdnext#2424, diffusers#6068, #3947, #1667",
        evidence="R",
        size="visible",
        patch=configured(clip_sample=True, set_alpha_to_one=True, steps_offset=0),
    ),
    Mutant(
        id="ckpt-ema-vs-nonema",
        component="unet",
        wrong="Of a file with two sets of weights the averaged ones are read, without being asked",
        cases=("tiny/base", "odd/base"),
        seen="diffusers#1937 (4093878)",
        evidence="R",
        size="visible",
        patch=wrapped(checkpoint, "read_checkpoint", _reading(ema=True)),
        port=plain_of_two,
    ),
    Mutant(
        id="ckpt-flag-ignored",
        component="unet",
        wrong="The option for the averaged weights is taken, and the others are read all the same",
        cases=("tiny/base", "odd/base"),
        seen="diffusers#1942 (9147c4c), of upcast_attention, which SD v1 does not set",
        evidence="R",
        size="visible",
        patch=wrapped(checkpoint, "read_checkpoint", _reading(ema=False)),
        port=averaged_of_two,
    ),
    Mutant(
        id="ckpt-zero-dim-or-dup",
        component="unet",
        wrong="Names lose their prefixes, and of two alike the averaged wins if it has one axis",
        cases=("tiny/base", "odd/base"),
        seen="stable-diffusion.cpp#844, 1d2af5c",
        evidence="R",
        size="visible",
        patch=wrapped(layouts, "read_file", _small_twins),
        port=plain_of_two,
    ),
    Mutant(
        id="ckpt-lenient-load",
        component="unet",
        wrong="skip_connection is not renamed, and lenient loading leaves these layers random",
        cases=("tiny/base", "odd/base"),
        seen="tinygrad#3681; diffusers#2847",
        evidence="R",
        size="catastrophic",
        patch=_shortcut_not_renamed,
        port=files.compvis,
    ),
    Mutant(
        id="ckpt-vae-attn-keys",
        component="vae_decoder",
        wrong="Old names of attention are not renamed, and lenient loading leaves it random",
        cases=("tiny/base", "odd/base"),
        seen="diffusers#11078, #1206 (3f7edc5)",
        evidence="R",
        size="catastrophic",
        patch=_old_names_unknown,
        port=old_names,
    ),
    Mutant(
        id="ckpt-vae-attn-conv-to-linear",
        component="vae_encoder",
        wrong="1x1 kernels of attention become linear weights with their axes exchanged",
        cases=("tiny/base", "odd/base"),
        seen="diffusers#6933 (371f765), mlx-examples#85",
        evidence="R",
        size="catastrophic",
        patch=wrapped(Network, "_fitted", _axes_exchanged),
        port=files.ckpt,
    ),
    Mutant(
        id="ckpt-shared-or-mmap",
        component="text_encoder",
        wrong="Of tensors that share a storage each is read from its beginning: k and v are q",
        cases=("tiny/base", "odd/base"),
        seen="safetensors#265, #98; bghira/SimpleTuner#2714",
        evidence="R",
        size="catastrophic",
        patch=wrapped(torch_file, "_stored", _without_offsets),
        port=shared_storages,
    ),
)

NOT_RUN: tuple[NotRun, ...] = ()
