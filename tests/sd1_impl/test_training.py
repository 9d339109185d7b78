"""The losses of training against their formulas and diffusers; gradient checkpointing."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd1_impl import (
    SD_V1_DDPM,
    SD_V1_TEXT_ENCODER,
    SD_V1_UNET,
    SD_V1_VAE,
    AutoencoderKL,
    CLIPTextEncoder,
    DDPMScheduler,
    DiagonalGaussian,
    UNet,
)
from sd1_impl.recomputation import recompute
from sd1_impl.training import (
    autoencoder_loss,
    denoising_loss,
    kl_divergence,
    mean_squared_error,
    prediction_target,
)

SCHEDULE = DDPMScheduler(SD_V1_DDPM)
VELOCITY = DDPMScheduler(replace(SD_V1_DDPM, prediction_type="v_prediction"))
UNET = replace(
    SD_V1_UNET, block_out_channels=(16, 16, 32, 32), cross_attention_dim=12, norm_num_groups=4
)
VAE = replace(SD_V1_VAE, block_out_channels=(8, 8, 16, 16), norm_num_groups=4)
TEXT = replace(
    SD_V1_TEXT_ENCODER,
    vocab_size=50,
    eos_token_id=49,
    hidden_size=16,
    intermediate_size=32,
    num_layers=3,
    num_heads=4,
)
T = torch.tensor([3, 700])


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return float64 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def built(kind: type[nn.Module], config: object) -> nn.Module:
    """Return a small network in float64, its weights from a seed."""
    torch.manual_seed(0)
    return kind(config).double()


LATENTS, NOISE = normal(2, 4, 16, 8), normal(2, 4, 16, 8, seed=1)  # 2x1 at the bottom


class Echo(nn.Module):
    """A UNet that says what it was asked, and remembers it."""

    def forward(self, sample: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        """Return the sample."""
        self.asked = (timestep, states)
        return sample


@pytest.mark.parametrize("scheduler", [SCHEDULE, VELOCITY], ids=["epsilon", "velocity"])
def test_loss_is_the_mean_squared_error_of_the_target(scheduler):
    """LDM, equation 3: noise is added at each sample's own timestep, the mean is over all."""
    unet, states = Echo(), normal(2, 5, 12)
    found = denoising_loss(unet, scheduler, LATENTS, T, NOISE, states)
    alpha_bar = torch.tensor(scheduler.alphas_cumprod[T.numpy()]).reshape(2, 1, 1, 1)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    target = NOISE if scheduler is SCHEDULE else a * NOISE - s * LATENTS
    torch.testing.assert_close(found.noisy_latents, a * LATENTS + s * NOISE)
    torch.testing.assert_close(found.target, target)
    torch.testing.assert_close(found.loss, (found.noisy_latents - target).square().mean())
    assert unet.asked == (T, states)


def test_targets_are_diffusers():
    """Noisy latents and velocity are those of diffusers' scheduler, up to its float32 tables."""
    theirs = pytest.importorskip("diffusers").DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    own = prediction_target(VELOCITY, LATENTS, T, NOISE)
    torch.testing.assert_close(own, theirs.get_velocity(LATENTS, NOISE, T), rtol=0, atol=3e-5)
    noisy = SCHEDULE.add_noise(LATENTS, NOISE, T)
    torch.testing.assert_close(noisy, theirs.add_noise(LATENTS, NOISE, T), rtol=0, atol=3e-5)


def test_loss_of_half_tensors_is_float32():
    """The mean of many squares needs more than eight bits."""
    halves = (LATENTS.bfloat16(), NOISE.bfloat16())
    assert mean_squared_error(*halves).dtype is torch.float32
    assert mean_squared_error(*halves) == F.mse_loss(halves[0].float(), halves[1].float())
    posterior = DiagonalGaussian(*halves)
    assert kl_divergence(posterior).dtype is torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": T[:1]}, "timesteps have shape"),
        ({"timesteps": torch.tensor(3)}, "timesteps have shape"),
        ({"noise": NOISE[:1]}, "noise has shape"),
        ({"timesteps": torch.tensor([3, 1000])}, "expected 0 to 999"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    """Nothing is broadcast: one timestep for a batch would train on the same level."""
    inputs = {"latents": LATENTS, "timesteps": T, "noise": NOISE} | changes
    with pytest.raises(ValueError, match=message):
        denoising_loss(Echo(), SCHEDULE, **inputs, encoder_hidden_states=normal(2, 5, 12))


def test_a_unet_that_predicts_x0_is_refused():
    """LDM trains with epsilon, later models with v; nobody with x_0."""
    scheduler = DDPMScheduler(replace(SD_V1_DDPM, prediction_type="sample"))
    with pytest.raises(ValueError, match="expected 'epsilon' or 'v_prediction'"):
        prediction_target(scheduler, LATENTS, T, NOISE)


def test_kl_is_that_of_normal_distributions():
    """Summed over the latents of a sample, averaged over the batch; torch.distributions agrees."""
    posterior = DiagonalGaussian(normal(3, 4, 2, 5), normal(3, 4, 2, 5, seed=1))
    own = torch.distributions.Normal(posterior.mean, torch.exp(0.5 * posterior.logvar))
    unit = torch.distributions.Normal(torch.zeros_like(own.mean), torch.ones_like(own.mean))
    terms = torch.distributions.kl_divergence(own, unit)
    torch.testing.assert_close(kl_divergence(posterior), terms.sum(dim=(1, 2, 3)).mean())
    assert kl_divergence(DiagonalGaussian(unit.mean, unit.mean)) == 0


def test_autoencoder_loss_is_reconstruction_plus_weighted_kl():
    """The sample is mean + std noise, decoded without any scale."""
    vae, image, noise = built(AutoencoderKL, VAE), normal(2, 3, 16, 24), normal(2, 4, 2, 3)
    found = autoencoder_loss(vae, image, noise, kl_weight=0.25)
    posterior = vae.encode(image)
    decoded = vae.decode(vae.sample_latents(posterior, noise))
    torch.testing.assert_close(found.reconstruction, decoded)
    expected = (decoded - image).square().mean() + 0.25 * kl_divergence(posterior)
    torch.testing.assert_close(found.loss, expected)


def test_an_image_that_is_not_reconstructed_whole_is_refused():
    """Of 20 rows 16 come back."""
    vae = built(AutoencoderKL, VAE)
    with pytest.raises(ValueError, match="reconstruction has shape"):
        autoencoder_loss(vae, normal(1, 3, 20, 16), normal(1, 4, 2, 2), kl_weight=1.0)


def of_unet(unet: nn.Module) -> Tensor:
    """Return the loss of a UNet."""
    return denoising_loss(unet, SCHEDULE, LATENTS, T, NOISE, normal(2, 5, 12)).loss


def of_text_encoder(text_encoder: nn.Module) -> Tensor:
    """Return some loss of a text encoder."""
    return text_encoder(torch.tensor([[48, 7, 7, 49, 49], [48, 1, 2, 3, 49]]))[0].square().mean()


def of_vae(vae: nn.Module) -> Tensor:
    """Return the loss of an autoencoder."""
    return autoencoder_loss(vae, normal(2, 3, 16, 16), normal(2, 4, 2, 2), kl_weight=0.1).loss


NETWORKS = {
    "unet": (UNet, UNET, of_unet),
    "text_encoder": (CLIPTextEncoder, TEXT, of_text_encoder),
    "vae": (AutoencoderKL, VAE, of_vae),
}


def backward(
    network: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[list[Tensor], int, Counter]:
    """Return loss and gradients, the bytes kept for the way back, and how often layers ran."""
    kept: dict[int, int] = {}
    runs: Counter = Counter()

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def count(layer: nn.Module, *_: object) -> None:
        runs[layer] += 1

    leaves = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss(network)
    gradients = torch.autograd.grad(value, list(network.parameters()))
    for handle in handles:
        handle.remove()
    return [value, *gradients], sum(kept.values()), runs


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_changes_no_bit_of_a_gradient(name):
    """Gradient checkpointing gives the loss and the gradients that there are without it."""
    kind, config, loss = NETWORKS[name]
    network = built(kind, config)
    plain, kept, runs = backward(network, loss)
    recompute(network)
    again, kept_then, runs_then = backward(network, loss)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert kept_then < kept / 2  # and most layers ran twice for it:
    assert set(runs.values()) == {1}
    assert Counter(runs_then.values())[2] > 0.7 * len(runs)
    recompute(network, on=False)
    assert backward(network, loss)[1:] == (kept, runs)


def test_nothing_is_recomputed_without_gradients(monkeypatch):
    """Sampling with a network that was trained so costs nothing."""
    unet = built(UNet, UNET)
    recompute(unet)
    monkeypatch.setattr("sd1_impl.recomputation.checkpoint", None)
    with torch.no_grad():
        of_unet(unet)
    with pytest.raises(TypeError):
        of_unet(unet)


def test_every_parameter_learns():
    """No gradient is missing or zero but those of the keys' biases, which softmax does not see."""
    for name, (kind, config, loss) in NETWORKS.items():
        network = built(kind, config)
        loss(network).backward()
        dead = {n for n, p in network.named_parameters() if p.grad is None or p.grad.norm() < 1e-15}
        zero = {
            n for n, _ in network.named_parameters() if n.endswith(("k_proj.bias", "to_k.bias"))
        }
        assert dead == zero, name
