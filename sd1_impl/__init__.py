"""Stable Diffusion v1, from scratch, in plain PyTorch: one file per part, written to be read.

To draw something: ``python -m sd1_impl "a photograph of a cat"``. To read, in this order:

- `config`, `scheduler_config`: every number, and where it is written down;
- `tokenizer`: a prompt to 77 ids; `text_encoder`: ids to 77 vectors;
- `embeddings`, `resnet`, `attention`: the UNet's parts; `unet`: noisy latents, a time and the
  vectors to the noise, by a forward pass that is the figure in the paper;
- `vae`: an image to latents an eighth its size, and back;
- `schedulers`: from noise to latents, step by step, one published algorithm per file;
- `pipeline`: all of these together; `image_to_image`, `inpainting`: beginning with an image;
- `training`: the losses that the networks learned from;
- `checkpoint`: published files to networks, and back.

``tests/test_shapes.py`` has the size of every tensor on the way. Whoever wants to understand the
model can skip the rest. It changes no result but by rounding, and saves memory or time:
`attention_kernels` (attention), `savings` with `tiling` and `recomputation` (the autoencoder,
training), `packed` (a CPU's kernels); or it refuses what makes no sense: `network_inputs`,
`pipeline_inputs`; or stands in for trained weights: `synthetic`; or says
what is to be installed: `needed`.

Attribute names are the keys of the diffusers checkpoints, so that ``load_state_dict(strict=True)``
needs no rename table; `checkpoint` reads and writes the other layouts. Nothing here imports
diffusers or transformers.
"""

from sd1_impl import needed as needed  # isort: split

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
