"""Modules: places in a network with their weights, and whoever watches what they compute.

Names are the paths of the published checkpoint: `down_blocks.0.resnets.1.conv1` is a module,
`down_blocks.0.resnets.1.conv1.weight` its weight. As a probe the path means what the module
returns, and `down_blocks.0.resnets.1.conv1.input` what enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sd1_numpy import layers
from sd1_numpy.layers import Array

See = Callable[[str, Array], Array]


class Recorder:
    """Watches a run: copies what is asked for, and puts other values in its place.

    A network shows everything that it computes, by name, and goes on with what it gets back. That
    is all that probes and splice mode need, in any language.
    """

    def __init__(
        self, probes: Collection[str] = (), replace: Mapping[str, Array] | None = None
    ) -> None:
        """Take the names to copy, and by name values to put in place of a network's own."""
        self.wanted = frozenset(probes)
        self.values = replace or {}
        self.seen: dict[str, Array] = {}

    def see(self, name: str, array: Array) -> Array:
        """Look at a value; return what the network goes on with.

        Raises:
            ValueError: The value that is to take its place has another shape, or the name was
                shown before: a second look would see what the first one put there.
        """
        if name in self.wanted:
            if name in self.seen:
                raise ValueError(f"{name} is shown twice")
            self.seen[name] = array.copy()
        value = self.values.get(name)
        if value is None:
            return array
        if value.shape != array.shape:
            raise ValueError(f"{name} has shape {array.shape}: it cannot become {value.shape}")
        return value.astype(array.dtype)


@dataclass(frozen=True)
class Module:
    """A module of a network.

    Attributes:
        weights: Those of the whole network, by name.
        see: Is shown what enters and what leaves a module; gives back what goes on.
        groups: Into how many groups the network's GroupNorms divide the channels.
        path: Where the module is; empty for the network itself.
    """

    weights: Mapping[str, Array]
    see: See
    groups: int
    path: str = ""

    def __getitem__(self, name: str) -> Module:
        path = f"{self.path}.{name}" if self.path else name
        return Module(self.weights, self.see, self.groups, path)

    def __contains__(self, name: str) -> bool:
        return f"{self[name].path}.weight" in self.weights

    @property
    def weight(self) -> Array:
        """Return the weight of this module, which is a layer."""
        return self.weights[f"{self.path}.weight"]

    @property
    def bias(self) -> Array:
        """Return its bias."""
        return self.weights[f"{self.path}.bias"]

    def enter(self, x: Array) -> Array:
        """Show what enters this module, before anything reads it."""
        return self.see(self["input"].path, x)

    def leave(self, x: Array) -> Array:
        """Show what this module returns."""
        return self.see(self.path, x)

    def linear(self, name: str, x: Array, *, bias: bool = True) -> Array:
        """Apply a linear layer of this module."""
        layer = self[name]
        own = layer.bias if bias else None
        return layer.leave(layers.linear(layer.enter(x), layer.weight, own))

    def conv(
        self, name: str, x: Array, stride: int = 1, pad: tuple[int, int] | None = None
    ) -> Array:
        """Apply a convolution of this module."""
        layer = self[name]
        return layer.leave(layers.conv2d(layer.enter(x), layer.weight, layer.bias, stride, pad))

    def group_norm(self, name: str, x: Array, eps: float) -> Array:
        """Apply a GroupNorm of this module."""
        layer = self[name]
        x = layer.enter(x)
        return layer.leave(layers.group_norm(x, layer.weight, layer.bias, self.groups, eps))

    def layer_norm(self, name: str, x: Array, eps: float) -> Array:
        """Apply a LayerNorm of this module.

        What enters is for the caller to show: it is added to later, and both must read the same.
        """
        layer = self[name]
        return layer.leave(layers.layer_norm(x, layer.weight, layer.bias, eps))


def unwatched(_name: str, array: Array) -> Array:
    """See nothing."""
    return array


@dataclass(frozen=True)
class Network:
    """A network that can be called.

    Attributes:
        forward: Called with the network's module, its sizes, and the inputs by name.
        weights: By name, all of the dtype that it computes in.
        sizes: Those of its architecture.
    """

    forward: Callable[..., dict[str, Array]]
    weights: Mapping[str, Array]
    sizes: Mapping[str, Any]

    def __call__(self, see: See = unwatched, **inputs: Array) -> dict[str, Array]:
        """Evaluate it once, watched by `see`."""
        module = Module(self.weights, see, self.sizes.get("norm_num_groups", 0))
        return self.forward(module, self.sizes, **inputs)
