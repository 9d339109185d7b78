"""How a port begins: the timestep embedding and one residual block of the UNet, in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]
See = Callable[[str, Array], Array]
"""Shows the suite a value on the way, by its name; returns what the computation goes on with."""

EPS = 1e-5


def factory() -> Port:
    """Return the port: what `sd1-conformance run port.py:factory` judges."""
    return Port()


class Port:
    """Two blocks of the UNet of Stable Diffusion v1, and nothing else yet."""

    def hello(self) -> dict[str, Any]:
        """Say what is offered."""
        return {
            "name": "block",
            "version": "1.0",
            "components": [*BLOCKS],
            "arithmetics": ["float32", "float64"],
        }

    def load(
        self,
        component: str,
        variant: Any,
        weights: Mapping[str, Array],
        arithmetic: str,
        device: str,  # noqa: ARG002 - "cpu" is all that is offered
    ) -> Loaded:
        """Keep the weights of a block, in the arithmetic asked for."""
        own = {name: weights[name].astype(arithmetic) for name in weights}
        groups = variant.architecture(component)["norm_num_groups"]
        return Loaded(component, Layers(own, groups), np.dtype(arithmetic))


class Loaded:
    """A block with its weights."""

    def __init__(self, component: str, layers: Layers, dtype: np.dtype) -> None:
        self.forward, self.layers, self.dtype = BLOCKS[component], layers, dtype

    def run(
        self, inputs: Arrays, probes: Collection[str] = (), replace: Arrays | None = None
    ) -> tuple[Arrays, Arrays]:
        """Compute the block: note what the suite asks to see, put in what it gives instead."""
        seen: Arrays = {}

        def see(name: str, value: Array) -> Array:
            if name in probes:
                seen[name] = value
            return replace[name].astype(self.dtype) if replace and name in replace else value

        arguments = [inputs[str(i)].astype(self.dtype) for i in range(len(inputs))]
        return {"out": self.forward(self.layers, see, *arguments)}, seen


def time_embedding(layers: Layers, see: See, sinusoids: Array) -> Array:
    """Two layers with SiLU between them: (B, width) -> (B, 4 width)."""
    hidden = see("linear_1", layers.linear("linear_1", sinusoids))
    return see("linear_2", layers.linear("linear_2", silu(hidden)))


def resnet(layers: Layers, see: See, sample: Array, time: Array) -> Array:
    """Two convolutions, each after GroupNorm and SiLU, around the time; added to the input.

    The sample (B, C, H, W) and the time (B, 4 width) make (B, C, H, W).
    """
    hidden = see("norm1", layers.group_norm("norm1", sample))
    hidden = see("conv1", layers.convolution("conv1", silu(hidden)))
    shift = see("time_emb_proj", layers.linear("time_emb_proj", silu(time)))
    hidden = see("norm2.input", hidden + shift[:, :, None, None])
    hidden = see("norm2", layers.group_norm("norm2", hidden))
    hidden = see("conv2", layers.convolution("conv2", silu(hidden)))
    return sample + hidden


BLOCKS: dict[str, Callable[..., Array]] = {
    "block/time_embedding": time_embedding,
    "block/down_blocks.0.resnets.0": resnet,
}


def silu(x: Array) -> Array:
    """Return x sigmoid(x)."""
    return x / (1 + np.exp(-x))


class Layers:
    """The three kinds of layers; each finds its weight and bias by its name."""

    def __init__(self, weights: Arrays, groups: int) -> None:
        self.weights, self.groups = weights, groups

    def linear(self, name: str, x: Array) -> Array:
        """Multiply by a matrix (out, in), add the bias: (B, in) -> (B, out)."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def group_norm(self, name: str, x: Array) -> Array:
        """Bring each group of channels to mean 0 and variance 1; scale and shift each channel."""
        rows = x.reshape(len(x), self.groups, -1)
        centred = rows - rows.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        normal = (centred / np.sqrt(variance + EPS)).reshape(x.shape)
        scale, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return normal * scale[:, None, None] + shift[:, None, None]

    def convolution(self, name: str, x: Array) -> Array:
        """Slide 3x3 kernels (out, in, 3, 3) over a map with zeros around it, add the bias."""
        kernels, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        height, width = x.shape[2:]
        padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
        out = np.zeros((len(x), len(bias), height, width), x.dtype)
        for row in range(3):
            for column in range(3):
                part = padded[:, :, row : row + height, column : column + width]
                out += np.einsum("oi,bihw->bohw", kernels[:, :, row, column], part)
        return out + bias[:, None, None]
