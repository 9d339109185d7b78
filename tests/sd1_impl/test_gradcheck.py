"""The operators' gradients against finite differences, in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sd1_impl import SD_V1_DDPM, SD_V1_TEXT_ENCODER, SD_V1_UNET, SD_V1_VAE, DDPMScheduler, vae
from sd1_impl.attention import GEGLU, BasicTransformerBlock, CrossAttention, SpatialTransformer
from sd1_impl.embeddings import TimestepEmbedding
from sd1_impl.resnet import Downsample, ResnetBlock, Upsample
from sd1_impl.text_encoder import MLP, CausalSelfAttention, EncoderLayer
from sd1_impl.training import denoising_loss, kl_divergence, mean_squared_error

UNET = replace(
    SD_V1_UNET,
    block_out_channels=(4, 4, 4, 4),
    norm_num_groups=2,
    cross_attention_dim=3,
    time_embed_ratio=1,
    feed_forward_ratio=1,
)
TEXT = replace(SD_V1_TEXT_ENCODER, hidden_size=4, intermediate_size=5, num_heads=2)
VAE = replace(SD_V1_VAE, block_out_channels=(4, 4, 4, 4), norm_num_groups=2)


def normal(*shape: int) -> Tensor:
    """Return a float64 input that wants a gradient."""
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


LAYERS = {
    "self-attention": (lambda: CrossAttention(4, 4, 2), [(2, 3, 4)]),
    "cross-attention": (lambda: CrossAttention(4, 3, 2), [(2, 3, 4), (2, 5, 3)]),
    "causal-attention": (lambda: CausalSelfAttention(TEXT), [(2, 3, 4)]),
    "geglu": (lambda: GEGLU(3, 2), [(2, 2, 3)]),
    "quick-gelu": (lambda: MLP(TEXT), [(2, 2, 4)]),
    "clip-layer": (lambda: EncoderLayer(TEXT), [(1, 3, 4)]),
    "transformer-block": (lambda: BasicTransformerBlock(UNET, 4, 2), [(1, 3, 4), (1, 2, 3)]),
    "spatial-transformer": (
        lambda: SpatialTransformer(UNET, 4, 3),  # three heads: the tokens are narrower
        [(1, 4, 2, 3), (1, 2, 3)],
    ),
    "time-embedding": (lambda: TimestepEmbedding(4, 3), [(2, 4)]),
    "resnet": (lambda: ResnetBlock(UNET, 4, 4), [(1, 4, 3, 2), (1, 4)]),
    "resnet-shortcut": (lambda: ResnetBlock(UNET, 2, 4), [(1, 2, 3, 2), (1, 4)]),
    "downsample-odd": (lambda: Downsample(2), [(1, 2, 5, 3)]),
    "upsample-even": (lambda: partial(Upsample(2), size=(4, 6)), [(1, 2, 2, 3)]),
    "upsample-odd": (lambda: partial(Upsample(2), size=(3, 5)), [(1, 2, 2, 3)]),
    "vae-resnet": (lambda: vae.ResnetBlock(VAE, 2, 4), [(1, 2, 3, 2)]),
    "vae-attention": (lambda: vae.AttentionBlock(VAE, 4), [(1, 4, 2, 2)]),
    "vae-downsample-even": (lambda: vae.Downsample(2), [(1, 2, 4, 2)]),
    "vae-downsample-odd": (lambda: vae.Downsample(2), [(1, 2, 5, 3)]),
    "vae-upsample": (lambda: vae.Upsample(2), [(1, 2, 2, 3)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    """A layer's gradient by its inputs and by all of its parameters."""
    make, shapes = LAYERS[name]
    layer = make()
    module = getattr(layer, "func", layer)
    assert isinstance(module, nn.Module)
    module.double()
    parameters = dict(module.named_parameters())
    inputs = [normal(*shape) for shape in shapes]

    def call(*tensors: Tensor) -> Tensor:
        own = dict(zip(parameters, tensors[len(inputs) :], strict=True))
        options = getattr(layer, "keywords", {})
        return torch.func.functional_call(module, own, tensors[: len(inputs)], options)

    assert torch.autograd.gradcheck(call, (*inputs, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_denoising_loss(prediction_type):
    """The loss's gradient by what the UNet says, and by the latents that it was made from."""
    scheduler = DDPMScheduler(replace(SD_V1_DDPM, prediction_type=prediction_type))
    scale, noise = normal(1), normal(2, 1, 2, 3).detach()

    def loss(latents: Tensor, scale: Tensor) -> Tensor:
        def unet(sample: Tensor, *_: object) -> Tensor:
            return torch.sin(sample) * scale

        timesteps = torch.tensor([3, 700])
        return denoising_loss(unet, scheduler, latents, timesteps, noise, noise).loss

    assert torch.autograd.gradcheck(loss, (normal(2, 1, 2, 3), scale))


def test_autoencoder_losses():
    """Divergence, sample and mean square, by mean and log-variance."""
    noise, target = normal(2, 2, 1, 3).detach(), normal(2, 2, 1, 3).detach()

    def loss(mean: Tensor, logvar: Tensor) -> Tensor:
        posterior = vae.DiagonalGaussian(mean, logvar)
        return mean_squared_error(posterior.sample(noise), target) + kl_divergence(posterior)

    assert torch.autograd.gradcheck(loss, (normal(2, 2, 1, 3), normal(2, 2, 1, 3)))


def test_a_wrong_gradient_is_seen():
    """The check itself: a gate that is cut off from its gradient does not pass."""

    class Cut(GEGLU):
        def forward(self, tokens: Tensor) -> Tensor:
            value, gate = self.proj(tokens).chunk(2, dim=-1)
            return value * torch.nn.functional.gelu(gate).detach()

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(Cut(3, 2).double(), normal(2, 2, 3), fast_mode=True)
