"""Mutants of the checkpoint's way into the model: what was loaded is in the wrong place."""

from __future__ import annotations

from typing import Any

from torch import nn

from conformance.mutants.mutant import Mutant, NotRun
from conformance.mutants.schedulers import configured
from sd1_impl.attention import CrossAttention


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
)

_LAYOUTS = "lands with checkpoint layouts: a port is given weights by their canonical names"

NOT_RUN: tuple[NotRun, ...] = (
    NotRun("ckpt-ema-vs-nonema", f"{_LAYOUTS}, and one set of them"),
    NotRun("ckpt-flag-ignored", "sd1_impl never offers upcast_attention: SD v1 does not set it"),
    NotRun("ckpt-vae-attn-keys", f"{_LAYOUTS}, and need not rename any"),
    NotRun("ckpt-vae-attn-conv-to-linear", f"{_LAYOUTS}, and in their canonical shapes"),
    NotRun("ckpt-lenient-load", f"{_LAYOUTS}, and none is missing or misspelt"),
    NotRun("ckpt-shared-or-mmap", f"{_LAYOUTS}, in memory: no file is read or overwritten"),
    NotRun("ckpt-zero-dim-or-dup", f"{_LAYOUTS}, each once, and none is a scalar"),
)
