"""Gradient checkpointing: less memory for more time.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 3. What a block
computes inside is not kept for the backward pass but computed again there, from the block's inputs.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def call(block: nn.Module, *arguments: Any, recompute: bool) -> Any:
    """Call a block.

    Args:
        block: The block.
        arguments: Its inputs.
        recompute: Whether the backward pass computes the block again, where there will be one.

    Returns:
        What the block returns; so are its gradients, bit for bit where its kernels repeat
        themselves: Stable Diffusion v1 draws nothing inside a block, there is no dropout.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return block(*arguments)


def recompute(network: nn.Module, *, on: bool = True) -> None:
    """Switch the gradient checkpointing of a network of this package on or off.

    Args:
        network: A UNet, text encoder or autoencoder, or a container of them.
        on: Whether its layers, or the autoencoder's levels, are computed again in the backward
            pass.
    """
    for module in network.modules():
        if hasattr(module, "recompute"):
            module.recompute = on
