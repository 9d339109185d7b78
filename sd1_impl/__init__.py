"""Stable Diffusion v1, from scratch, in plain PyTorch: one file per part, written to be read.

`sd1_impl.tokenizer` cuts the prompt into tokens, `sd1_impl.text_encoder` reads them,
`sd1_impl.unet` predicts the noise in the latents, `sd1_impl.schedulers` lead from noise to latents,
`sd1_impl.vae` turns latents into images and images into latents; `sd1_impl.pipeline` puts them
together, `sd1_impl.image_to_image` and `sd1_impl.inpainting` begin with an image;
`sd1_impl.training` is what they learned from. Every number is in `sd1_impl.config` and
`sd1_impl.scheduler_config`. Start with `sd1_impl.unet`: its forward pass
is the figure in the paper. Or draw something: ``python -m sd1_impl "a photograph of a cat"``.

`sd1_impl.attention_kernels` and `sd1_impl.savings` say what less memory costs:
``use_kernel(pipeline.unet, "sliced")``, ``use_saving(pipeline.vae, "tiled")``.

Attribute names are the keys of the diffusers checkpoints, so that ``load_state_dict(strict=True)``
needs no rename table; `sd1_impl.checkpoint` reads and writes the other layouts. Nothing here
imports diffusers or transformers.
"""

from sd1_impl.attention_kernels import use_kernel
from sd1_impl.checkpoint import CheckpointError, load_network, load_pipeline, save_pipeline
from sd1_impl.config import (
    SD_V1_INPAINT_UNET,
    SD_V1_TEXT_ENCODER,
    SD_V1_UNET,
    SD_V1_VAE,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from sd1_impl.image_to_image import EditedPicture, Image2Image
from sd1_impl.inpainting import Inpaint, InpaintedPicture
from sd1_impl.pipeline import Picture, Prompts, Step, Text2Image
from sd1_impl.savings import use_saving
from sd1_impl.scheduler_config import (
    SD_V1_DDIM,
    SD_V1_DDPM,
    SD_V1_DPMPP_2M,
    SD_V1_EULER,
    SD_V1_EULER_ANCESTRAL,
    SD_V1_HEUN,
    SD_V1_LMS,
    SD_V1_PNDM,
    DDIMConfig,
    DDPMConfig,
    DPMPP2MConfig,
    EulerAncestralConfig,
    EulerConfig,
    HeunConfig,
    LMSConfig,
    PNDMConfig,
)
from sd1_impl.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from sd1_impl.synthetic import synthetic_pipeline
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.tiling import Tiling
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.training import autoencoder_loss, denoising_loss
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL, DiagonalGaussian

__all__ = [
    "SD_V1_DDIM",
    "SD_V1_DDPM",
    "SD_V1_DPMPP_2M",
    "SD_V1_EULER",
    "SD_V1_EULER_ANCESTRAL",
    "SD_V1_HEUN",
    "SD_V1_INPAINT_UNET",
    "SD_V1_LMS",
    "SD_V1_PNDM",
    "SD_V1_TEXT_ENCODER",
    "SD_V1_UNET",
    "SD_V1_VAE",
    "AutoencoderKL",
    "CLIPTextEncoder",
    "CLIPTokenizer",
    "CheckpointError",
    "DDIMConfig",
    "DDIMScheduler",
    "DDPMConfig",
    "DDPMScheduler",
    "DPMPP2MConfig",
    "DPMSolverMultistepScheduler",
    "DiagonalGaussian",
    "EditedPicture",
    "EulerAncestralConfig",
    "EulerAncestralDiscreteScheduler",
    "EulerConfig",
    "EulerDiscreteScheduler",
    "HeunConfig",
    "HeunDiscreteScheduler",
    "Image2Image",
    "Inpaint",
    "InpaintedPicture",
    "LMSConfig",
    "LMSDiscreteScheduler",
    "PNDMConfig",
    "PNDMScheduler",
    "Picture",
    "Prompts",
    "Step",
    "Text2Image",
    "TextEncoderConfig",
    "Tiling",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "autoencoder_loss",
    "denoising_loss",
    "load_network",
    "load_pipeline",
    "save_pipeline",
    "synthetic_pipeline",
    "use_kernel",
    "use_saving",
]
