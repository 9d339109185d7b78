"""Gradient checkpointing: less memory for more time.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 3. What a block
computes inside is not kept for the backward pass but computed again there, from the block's inputs.
The models do not know of it: it is put around the forward pass of their blocks.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sd1_impl import attention, resnet, text_encoder, vae

BLOCKS = (
    resnet.ResnetBlock,
    attention.SpatialTransformer,
    text_encoder.EncoderLayer,
    vae.DownBlock,
    vae.MidBlock,
    vae.UpBlock,
)
"""What is computed again: layers of UNet and text encoder, levels of the autoencoder."""


def recompute(network: nn.Module, *, on: bool = True) -> int:
    """Switch the gradient checkpointing of a network of this package on or off.

    Loss and gradients stay the same, bit for bit where kernels repeat themselves: Stable Diffusion
    v1 draws nothing inside a block, there is no dropout.

    Args:
        network: A UNet, text encoder or autoencoder, or a container of them.
        on: Whether a backward pass computes its blocks again.

    Returns:
        How many blocks it has.
    """
    blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        if on:
            block.forward = partial(_checkpointed, block)
        else:
            vars(block).pop("forward", None)
    return len(blocks)


def _checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """Compute a block, so that a backward pass, where there will be one, computes it again."""
    compute = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return compute(*inputs)
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
