"""The losses of SD v1, with diffusers' own schedule and distribution: reference and port."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.adapters.diffusers_networks import build_text_encoder, build_unet, build_vae
from conformance.adapters.diffusers_schedulers import MakeScheduler, dtype_of, make_scheduler
from conformance.adapters.torch_module import DTYPES, Load
from conformance.adapters.torch_training import (
    Objective,
    Observe,
    TrainingComponent,
    assembled,
)
from conformance.training import (
    FOLDERS,
    TEXT_TRAINING,
    TRAINED,
    TRAINING,
    TRAININGS,
    VAE_TRAINING,
)

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

_BUILD = {"unet": build_unet, "text_encoder": build_text_encoder, "vae": build_vae}


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all elements in float32 or wider, as diffusers' scripts train."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    return F.mse_loss(prediction.to(wide), target.to(wide), reduction="mean")


def denoising(networks: Any, tensors: Mapping[str, Any], observe: Observe) -> Tensor:
    """Compute the loss of the UNet, its noise added by the scheduler that `networks.make` makes.

    Args:
        networks: `unet`, and `text_encoder` where the prompt arrives as ids.
        tensors: The inputs of docs/contract.md.
        observe: Is told every term.

    Returns:
        The loss.
    """
    states = tensors.get("encoder_hidden_states")
    if states is None:
        answer = networks["text_encoder"].text_model(input_ids=tensors["input_ids"])
        states = answer.last_hidden_state
    latents, noise, timesteps = (tensors[n] for n in ("latents", "noise", "timesteps"))
    config = tensors["config"]
    scheduler = networks.make("ddpm", config | {"num_inference_steps": 1})
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)
    velocity = config["prediction_type"] == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    observe("noisy_latents", noisy_latents)
    observe("target", target)
    (model_output,) = networks["unet"](noisy_latents, timesteps, states, return_dict=False)
    observe("model_output", model_output)
    return mean_squared_error(model_output, target)


def autoencoding(networks: Any, tensors: Mapping[str, Any], observe: Observe) -> Tensor:
    """Compute the loss of the VAE; see `TrainingComponent.objective`."""
    vae = networks["vae"]
    posterior = vae.encode(tensors["image"]).latent_dist
    latents = posterior.mean + posterior.std * tensors["noise"]
    reconstruction = vae.decode(latents).sample
    for name, tensor in (
        ("mean", posterior.mean),
        ("logvar", posterior.logvar),
        ("latents", latents),
        ("reconstruction", reconstruction),
    ):
        observe(name, tensor)
    error = mean_squared_error(reconstruction, tensors["image"])
    return error + tensors["config"]["kl_weight"] * posterior.kl().mean()


_OBJECTIVES: dict[str, Objective] = {
    TRAINING: denoising,
    TEXT_TRAINING: denoising,
    VAE_TRAINING: autoencoding,
}


def training_component(
    component: str,
    variant: Variant,
    weights: Weights,
    dtype: torch.dtype,
    device: str = "cpu",
    make: MakeScheduler = make_scheduler,
) -> TrainingComponent:
    """Return the networks of a component with diffusers' loss.

    Args:
        component: One of `training.TRAININGS`.
        variant: Architecture.
        weights: Names begin with the folder.
        dtype: Of parameters and inputs.
        device: Where they go.
        make: Makes the scheduler that adds noise: an attribute of the component's `module`, for
            those who want another arithmetic.
    """
    build = {folder: _BUILD[folder] for folder in FOLDERS[component]}
    loaded = assembled(
        build, TRAINED[component], _OBJECTIVES[component], variant, weights, dtype, device
    )
    loaded.module.make = make
    return loaded


def _load(
    component: str, variant: Variant, weights: Weights, arithmetic: str, device: str
) -> TrainingComponent:
    dtype = DTYPES[arithmetic] if component == VAE_TRAINING else dtype_of(arithmetic)
    return training_component(component, variant, weights, dtype, device)


LOADERS: dict[str, Load] = {name: partial(_load, name) for name in TRAININGS}
