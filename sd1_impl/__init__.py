"""Stable Diffusion v1, from scratch, in plain PyTorch: one file per part, written to be read.

Attribute names are the keys of the published diffusers checkpoints, so that
``load_state_dict(strict=True)`` needs no rename table. Nothing here imports diffusers or
transformers. Start with `sd1_impl.unet`: its forward pass is the figure in the paper.
"""

from sd1_impl.config import SD_V1_INPAINT_UNET, SD_V1_UNET, UNetConfig
from sd1_impl.unet import UNet

__all__ = ["SD_V1_INPAINT_UNET", "SD_V1_UNET", "UNet", "UNetConfig"]
