"""Files as a reader of checkpoints meets them, whose contents it can easily get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from conformance.adapters.sd1_impl_files import through
from conformance.adapters.torch_module import TorchPort
from conformance.export import Tensors, stored
from sd1_weights import names
from sd1_weights.save import write_network
from sd1_weights.stored import Stored
from sd1_weights.torch_file import STATE_DICT, write_torch

if TYPE_CHECKING:
    from conformance.variants import Variant

_SEED = 1937
"""Of the other set of weights: that of no case."""

_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def plain_of_two() -> TorchPort:
    """Return sd1_impl reading files with averaged weights of the UNet beside those of the case."""
    return through("two sets", partial(_two_sets, lambda own, other: (own, other)), ["unet"])


def averaged_of_two() -> TorchPort:
    """Return sd1_impl asked for averaged weights, those of the case, of files that have both."""
    write = partial(_two_sets, lambda own, other: (other, own))
    return through("averaged weights", write, ["unet"], ema=True)


def old_names() -> TorchPort:
    """Return sd1_impl reading the VAE's folders of the first versions of diffusers."""
    return through("old names", _old_folder, ["vae_encoder", "vae_decoder"])


def shared_storages() -> TorchPort:
    """Return sd1_impl reading text encoders whose q, k and v were saved as parts of one tensor."""
    return through("shared storages", _fused, ["text_encoder"])


Order = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def _two_sets(order: Order, component: str, variant: Variant, tensors: Tensors, to: Path) -> Path:
    """Write a training checkpoint of the UNet, as published: two sets, and counters of one number.

    Args:
        order: Says of the case's set and the other which is plain and which averaged.
        component: The UNet.
        variant: Gives the other set.
        tensors: The case's.
        to: Folder.
    """
    other = variant.weights(component, _SEED)
    plain, averaged = order(tensors, stored(other, other.shapes))
    start = names.prefix("unet")
    rows = [replace(t, key=start + names.compvis_key("unet", n)) for n, t in plain.items()]
    rows += [_number("model_ema.decay", np.float32(0.9999), "F32")]
    rows += [_number("model_ema.num_updates", np.int32(470000), "I32")]
    rows += [replace(tensor, key=names.ema_key(name)) for name, tensor in averaged.items()]
    with (to / "weights.ckpt").open("wb") as file:
        write_torch(file, rows)
    return to / "weights.ckpt"


def _number(key: str, value: np.generic, dtype: str) -> Stored:
    return Stored(key, dtype, (), lambda: np.asarray(value))


def _old_folder(component: str, variant: Variant, tensors: Tensors, to: Path) -> Path:
    """Write a folder in which the VAE's attention has the names that it was first given."""
    renamed = {_old_name(name): tensor for name, tensor in tensors.items()}
    write_network(to, "vae", renamed, variant.architecture(component), {})
    return to


def _old_name(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    block, attention, layer = module.partition(".attentions.0.")
    return f"{block}{attention}{_OLD_NAMES.get(layer, layer)}.{parameter}"


def _fused(component: str, variant: Variant, tensors: Tensors, to: Path) -> Path:
    """Write a text encoder by torch, from a port that computes q, k and v by one product."""
    del component, variant
    start = names.prefix("text_encoder")
    state = {start + name: torch.from_numpy(tensor.bits()) for name, tensor in tensors.items()}
    for name in [key for key in state if ".q_proj." in key]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        fused = torch.cat([state[part] for part in parts])
        state |= zip(parts, fused.chunk(3), strict=True)
    torch.save({STATE_DICT: state}, to / "weights.ckpt")
    return to / "weights.ckpt"
