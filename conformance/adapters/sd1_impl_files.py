"""sd1_impl as a port whose weights travel through files: written in a layout, then read by it.

PORT arguments: `conformance.adapters.sd1_impl_files:compvis`, `:ckpt`, `:diffusers`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from conformance import __version__, spec
from conformance.adapters import sd1_impl_networks
from conformance.adapters.torch_module import DTYPES, TorchComponent, TorchPort
from conformance.case import NETWORKS
from conformance.export import Tensors, stored
from sd1_impl.checkpoint import load_network
from sd1_weights import save

if TYPE_CHECKING:
    from conformance.port import Component
    from conformance.variants import Variant

Write = Callable[[str, "Variant", Tensors, Path], Path]
"""Writes the network of a component into a folder, from tensors by canonical name; gives a path."""

_HALVES = {"vae_encoder": "vae_decoder", "vae_decoder": "vae_encoder"}


def compvis() -> TorchPort:
    """Return sd1_impl reading single files of the original code's layout, safetensors."""
    return through("compvis", partial(_single_file, "weights.safetensors"))


def ckpt() -> TorchPort:
    """Return sd1_impl reading single files of the original code's layout, torch's."""
    return through("ckpt", partial(_single_file, "weights.ckpt"))


def diffusers() -> TorchPort:
    """Return sd1_impl reading folders of diffusers' layout."""
    return through("diffusers", _folder)


def through(
    kind: str, write: Write, components: Collection[str] = NETWORKS, *, ema: bool = False
) -> TorchPort:
    """Return sd1_impl reading files of one kind.

    Args:
        kind: What they are called in the port's name.
        write: Writes them.
        components: The networks that it writes.
        ema: Whether it is asked for a file's averaged weights.

    Returns:
        A port of these networks, without blocks, samplers and tokenizer.
    """
    loaders = {name: partial(_load, name, write, ema) for name in components}
    attention = sd1_impl_networks.use_attention
    return TorchPort(f"sd1_impl by {kind}", __version__, {}, others=loaders, attention=attention)


def _single_file(name: str, component: str, variant: Variant, tensors: Tensors, to: Path) -> Path:
    del variant  # a single file has no config
    save.write_single_file(to / name, {spec.CHECKPOINT_FOLDERS[component]: tensors}, {})
    return to / name


def _folder(component: str, variant: Variant, tensors: Tensors, to: Path) -> Path:
    architecture = variant.architecture(component)
    save.write_network(to, spec.CHECKPOINT_FOLDERS[component], tensors, architecture, {})
    return to


def _load(
    component: str,
    write: Write,
    ema: bool,  # noqa: FBT001 - bound once, by name, in `through`
    variant: Variant,
    weights: Mapping[str, np.ndarray],
    arithmetic: str,
    device: str,
) -> Component:
    """Write weights, read them and forget the file: what is mapped into memory outlives it."""
    dtype = DTYPES[arithmetic]
    with TemporaryDirectory(prefix="sd1-conformance-") as folder:
        path = write(component, variant, _whole(component, variant, weights), Path(folder))
        network = spec.CHECKPOINT_FOLDERS[component]
        module = load_network(network, path, ema=ema, dtype=dtype, device=device)
    module.eval().requires_grad_(requires_grad=False)
    call = sd1_impl_networks.NETWORKS[component][1]
    return TorchComponent(module, call, dtype, device, component=component)


def _whole(component: str, variant: Variant, weights: Mapping[str, np.ndarray]) -> Tensors:
    """Return the tensors of a component's file: a half of the VAE is not read without the other."""
    tensors = stored(weights, spec.parameter_shapes(component, variant.size))
    if component in _HALVES:
        other = variant.weights(_HALVES[component])
        tensors |= stored(other, other.shapes)
    return tensors
