"""The residual block that UNet and VAE are built of."""

from sd1_numpy.layers import Array, silu
from sd1_numpy.module import Module


def resnet(module: Module, x: Array, embedding: Array | None, eps: float) -> Array:
    """Add to a map what two convolutions make of it.

    Source: He et al., "Identity Mappings in Deep Residual Networks", 2016: norm and activation come
    before a convolution. The embedding is added between the two, one number a channel.

    Args:
        module: The block.
        x: Map, (B, C, H, W).
        embedding: Of the timestep, (B, width); None in the VAE, which knows no time.
        eps: Of the norms.

    Returns:
        Map, (B, out, H, W).
    """
    x = module.enter(x)
    h = module.conv("conv1", silu(module.group_norm("norm1", x, eps)))
    if embedding is not None:
        h = h + module.linear("time_emb_proj", silu(embedding))[:, :, None, None]
    h = module.conv("conv2", silu(module.group_norm("norm2", h, eps)))
    if "conv_shortcut" in module:  # wherever the number of channels changes
        x = module.conv("conv_shortcut", x)
    return module.leave(x + h)
