"""What Stable Diffusion v1 is trained for: the losses of its UNet and of its autoencoder.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equations 4 and 14; Rombach et
al., "High-Resolution Image Synthesis with Latent Diffusion Models" (LDM), 2022, equations 2 and 3,
and ``p_losses`` of ``ldm/models/diffusion/ddpm.py``; for the velocity Salimans and Ho, "Progressive
Distillation for Fast Sampling of Diffusion Models", 2022, appendix D. Of the autoencoder: Kingma
and Welling, "Auto-Encoding Variational Bayes", 2013, equation 10 and appendix B, and
``LPIPSWithDiscriminator`` of ``ldm/modules/losses/contperceptual.py``.

Nothing is drawn here: timesteps and noise are arguments, and a prompt that is dropped for
classifier-free guidance (Ho and Salimans, 2022, algorithm 1) arrives as the empty prompt's states.

A step of a training::

    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, 1000, (len(latents),))
    denoising_loss(unet, schedule, latents, timesteps, noise, states).loss.backward()
    optimizer.step()

Shapes: B batch, H W height and width of the latents, L tokens of the prompt, E their width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd1_impl.schedulers.noise_schedule import NoiseSchedule, check_shape
from sd1_impl.vae import AutoencoderKL, DiagonalGaussian


@dataclass(frozen=True, eq=False)
class DenoisingLoss:
    """The UNet's loss, and what it was computed from.

    Attributes:
        loss: ``()``, float32 or wider.
        noisy_latents: ``(B, C, H, W)``, x_t: what the UNet was given.
        target: Of the same shape, what it should have said.
        model_output: Of the same shape, what it said.
    """

    loss: Tensor
    noisy_latents: Tensor
    target: Tensor
    model_output: Tensor


def denoising_loss(
    unet: nn.Module,
    schedule: NoiseSchedule,
    latents: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    encoder_hidden_states: Tensor,
) -> DenoisingLoss:
    """Ask the UNet for the noise in latents, and measure how wrong it is (LDM, equation 3).

    Args:
        unet: Maps ``(sample, timestep, encoder_hidden_states)`` to the sample's shape.
        schedule: Any scheduler; its ``prediction_type`` says what the UNet predicts.
        latents: ``(B, C, H, W)``, x_0: clean, times 0.18215.
        timesteps: ``(B,)``, integers 0 to T - 1, one for each sample.
        noise: Standard normal, of the latents' shape and dtype.
        encoder_hidden_states: ``(B, L, E)``.

    Returns:
        The mean squared error over all elements, and its terms.

    Raises:
        ValueError: If a shape does not fit, or if the UNet predicts x_0.
    """
    check_shape("noise", noise, latents)
    if timesteps.shape != latents.shape[:1]:
        raise ValueError(
            f"timesteps have shape {tuple(timesteps.shape)}, expected ({len(latents)},)"
        )
    noisy_latents = schedule.add_noise(latents, noise, timesteps)
    target = prediction_target(schedule, latents, timesteps, noise)
    model_output = unet(noisy_latents, timesteps, encoder_hidden_states)
    loss = mean_squared_error(model_output, target)
    return DenoisingLoss(loss, noisy_latents, target, model_output)


def prediction_target(
    schedule: NoiseSchedule, latents: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """Return what a UNet should say of noisy latents: the noise, or the velocity.

    The velocity is the derivative of x_t along the angle from x_0 to the noise.

    Args:
        schedule: Its ``prediction_type`` is "epsilon" or "v_prediction".
        latents: ``(B, C, H, W)``, x_0.
        timesteps: ``(B,)``.
        noise: Of the latents' shape.

    Returns:
        ``(B, C, H, W)``: epsilon (Ho et al., equation 14), or
        ``sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0`` (Salimans and Ho).

    Raises:
        ValueError: If the schedule says that x_0 is predicted.
    """
    prediction_type = schedule.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type != "v_prediction":
        raise ValueError(
            f"prediction_type is {prediction_type!r}, expected 'epsilon' or 'v_prediction'"
        )
    return schedule.add_noise(noise, -latents, timesteps)  # the same rotation, a quarter turn on


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all elements, batch included: ``()``, in float32 or wider."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    return F.mse_loss(prediction.to(wide), target.to(wide))


@dataclass(frozen=True, eq=False)
class AutoencoderLoss:
    """The autoencoder's loss, and what it was computed from.

    Attributes:
        loss: ``()``, float32 or wider: reconstruction error plus weighted KL divergence.
        posterior: What the encoder knows of the latents.
        latents: ``(B, C, H // 8, W // 8)``, drawn from the posterior, not scaled.
        reconstruction: ``(B, 3, H, W)``, the decoded latents.
    """

    loss: Tensor
    posterior: DiagonalGaussian
    latents: Tensor
    reconstruction: Tensor


def autoencoder_loss(
    vae: AutoencoderKL, image: Tensor, noise: Tensor, kl_weight: float
) -> AutoencoderLoss:
    """Encode, draw latents, decode, and measure what was lost.

    The reconstruction is judged by its mean squared error. LDM's own training has an absolute
    error and a perceptual one there, summed over each image, and later a discriminator's verdict:
    networks of their own, which are no part of Stable Diffusion v1. Its ``kl_weight`` of 1e-6
    beside a sum over 3 H W elements is ``1e-6 / (3 H W)`` beside this mean.

    Args:
        vae: The autoencoder.
        image: ``(B, 3, H, W)`` in [-1, 1], H and W multiples of 8.
        noise: Standard normal, ``(B, C, H // 8, W // 8)``.
        kl_weight: Weight of the KL divergence.

    Returns:
        The loss and its terms.

    Raises:
        ValueError: If a shape does not fit.
    """
    posterior = vae.encode(image)
    latents = posterior.sample(noise)
    reconstruction = vae.decoder(vae.post_quant_conv(latents))
    check_shape("reconstruction", reconstruction, image)
    error = mean_squared_error(reconstruction, image)
    loss = error + kl_weight * kl_divergence(posterior)
    return AutoencoderLoss(loss, posterior, latents, reconstruction)


def kl_divergence(posterior: DiagonalGaussian) -> Tensor:
    """Return how far a posterior is from the standard normal distribution.

    Args:
        posterior: Of a batch.

    Returns:
        ``()``, float32 or wider: ``0.5 sum(mean**2 + var - 1 - logvar)`` over the latents of a
        sample (Kingma and Welling, appendix B), averaged over the batch.
    """
    wide = torch.promote_types(posterior.mean.dtype, torch.float32)
    mean, logvar = posterior.mean.to(wide), posterior.logvar.to(wide)
    per_sample = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3))  # (B,)
    return per_sample.mean()
