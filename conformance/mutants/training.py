"""Wrong losses and wrong gradients of the UNet's training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conformance.mutants.mutant import Change, Mutant, NotRun, replaced, wrapped
from conformance.mutants.training_tools import (
    constant_mean,
    constant_variance,
    each,
    everywhere,
    first_sample_bias,
    scaled_gradient,
    without_row_sum,
)
from conformance.training import TRAINING
from sd1_impl import training
from sd1_impl.attention import GEGLU, CrossAttention, SpatialTransformer
from sd1_impl.resnet import ResnetBlock, Upsample
from sd1_impl.schedulers.noise_schedule import NoiseSchedule
from sd1_impl.unet import UpBlock


def _target(make: Any) -> Change:
    """Return what puts `make(schedule, latents, timesteps, noise)` in the place of the target."""
    return replaced(training, "prediction_target", make)


def _velocity(make: Any) -> Change:
    """Return what does so where the velocity is predicted."""

    def target(schedule: Any, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Any:
        velocity = schedule.config.prediction_type == "v_prediction"
        return make(schedule, latents, timesteps, noise) if velocity else noise

    return _target(target)


def _loss(of_errors: Any) -> Change:
    """Return what puts another loss of prediction and target in the place of the mean square."""
    return replaced(training, "mean_squared_error", of_errors)


def _asked(change: Any) -> Change:
    """Return what changes the arguments with which the loss is computed."""

    def make(plain: Any) -> Any:
        def loss(
            network: Any, schedule: Any, latents: Any, timesteps: Any, noise: Any, states: Any
        ) -> Any:
            timesteps, noise = change(timesteps, noise)
            return plain(network, schedule, latents, timesteps, noise, states)

        return loss

    return wrapped(training, "denoising_loss", make)


def _level_after(plain: Any) -> Any:
    """Noise levels of the timestep after: counted from 1, as the paper does."""
    return lambda self, t, run: plain(self, (t + 1).clip(max=len(self.betas) - 1), run)


def _swapped(schedule: NoiseSchedule, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """The velocity with its coefficients exchanged."""
    return -schedule.add_noise(latents, -noise, timesteps)


def _unturned(schedule: NoiseSchedule, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """The velocity with x_0 added."""
    return schedule.add_noise(noise, latents, timesteps)


def _detached_skips(plain: Any) -> Any:
    """Nothing goes back through the skip connections."""

    def forward(block: Any, hidden: Any, temb: Any, context: Any, skips: Any, size: Any) -> Tensor:
        result: Tensor = plain(block, hidden, temb, context, [s.detach() for s in skips], size)
        return result

    return forward


def _detached_time(plain: Any) -> Any:
    """Nothing goes back from a residual block to the time embedding."""
    return lambda block, hidden, temb: plain(block, hidden, temb.detach())


def _detached_gate(layer: Any, tokens: Tensor) -> Tensor:
    """The gate of GEGLU is a constant on the way back."""
    value, gate = layer.proj(tokens).chunk(2, dim=-1)
    result: Tensor = value * F.gelu(gate).detach()
    return result


def _averaged(layer: Any, hidden: Tensor, size: Any) -> Tensor:
    """A pixel gets the average of its four copies' gradients, not their sum."""
    enlarged = F.interpolate(scaled_gradient(hidden, 0.25), size=tuple(size), mode="nearest")
    result: Tensor = layer.conv(enlarged)
    return result


def _without_row_sum(module: nn.Module) -> None:
    for layer in each(module, CrossAttention):
        layer.attend = without_row_sum


def _first_sample_bias(module: nn.Module) -> None:
    for block in each(module, ResnetBlock):
        block.conv1.forward = partial(first_sample_bias, block.conv1)


Compute = Callable[..., Any]


def _checkpointed(call: Callable[..., Any]) -> Callable[[nn.Module], None]:
    """Return what lets the layers of a UNet be called by `call(compute, *inputs)`."""

    def spoil(module: nn.Module) -> None:
        for layer in (*each(module, ResnetBlock), *each(module, SpatialTransformer)):
            layer.forward = partial(call, layer.forward)

    return spoil


def _detached_inputs(compute: Compute, hidden: Tensor, *others: Tensor) -> Any:
    """Checkpointing hands on the gradient of a block's first input alone."""
    return compute(hidden, *(other.detach() for other in others))


def _other_dropout(compute: Compute, *inputs: Tensor) -> Any:
    """What is computed again draws another dropout."""
    calls = count()

    def dropping(hidden: Tensor, *others: Tensor) -> Any:
        mask = torch.ones_like(hidden)
        if next(calls):
            mask.view(-1)[::17] = 0
        return compute(hidden * mask, *others)

    return checkpoint(dropping, *inputs, use_reentrant=False)


def _squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def _row(name: str, wrong: str, *cases: str, **changes: Any) -> Mutant:
    changes = {"evidence": "I", "size": "visible", **changes}
    return Mutant(
        id=f"train-{name}",
        component=TRAINING,
        wrong=wrong,
        cases=cases or ("tiny/base",),
        **changes,
    )


MUTANTS: tuple[Mutant, ...] = (
    _row("target-x0", "The UNet is to predict the clean latents",
         patch=_target(lambda _, latents, __, ___: latents)),
    _row("target-sign", "The UNet is to predict the noise with the opposite sign",
         patch=_target(lambda _, __, ___, noise: -noise)),
    _row("target-residual", "The UNet is to predict the noise less the latents, as rectified flows",
         patch=_target(lambda _, latents, __, noise: noise - latents)),
    _row("v-swapped", "The coefficients of the velocity are exchanged", "tiny/v_prediction",
         patch=_velocity(_swapped)),
    _row("v-unturned", "The velocity has x_0 with the opposite sign", "tiny/v_prediction",
         patch=_velocity(_unturned)),
    _row("v-ignored", "prediction_type is not read: the target is the noise", "tiny/v_prediction",
         patch=_velocity(lambda _, __, ___, noise: noise)),
    _row("alphas-off-by-one", "Timesteps count from 1 where noise is added", size="subtle",
         patch=wrapped(NoiseSchedule, "levels", _level_after)),
    _row("loss-sum", "The squared errors are summed, not averaged",
         patch=_loss(lambda p, t: _squared(p, t).sum())),
    _row("loss-per-sample", "The squared errors are summed over a sample, averaged over the batch",
         patch=_loss(lambda p, t: _squared(p, t).sum(dim=(1, 2, 3)).mean())),
    _row("loss-half", "The loss is half of the mean square",
         patch=_loss(lambda p, t: 0.5 * _squared(p, t).mean())),
    _row("loss-absolute", "The loss is the mean absolute error",
         patch=_loss(lambda p, t: (p - t).abs().mean())),
    _row("loss-huber", "The loss is Huber's", patch=_loss(F.smooth_l1_loss)),
    _row("noise-scaled", "The noise is scaled by 1.1, as with an offset", size="subtle",
         patch=_asked(lambda timesteps, noise: (timesteps, 1.1 * noise))),
    _row("timesteps-shared", "The first sample's timestep is that of the whole batch",
         patch=_asked(lambda timesteps, noise: (timesteps[:1].expand_as(timesteps), noise))),
    _row("skip-detached", "Nothing goes back through the skip connections",
         patch=wrapped(UpBlock, "forward", _detached_skips)),
    _row("time-detached", "Nothing goes back to the time embedding",
         patch=wrapped(ResnetBlock, "forward", _detached_time)),
    _row("gn-constant-mean", "GroupNorm's backward pass leaves the mean's share out",
         module=everywhere(nn.GroupNorm, constant_mean)),
    _row("gn-constant-variance", "GroupNorm's backward pass leaves the variance's share out",
         module=everywhere(nn.GroupNorm, constant_variance)),
    _row("softmax-row-sum", "Attention's backward pass leaves the row's sum out of the softmax's",
         module=_without_row_sum),
    _row("geglu-gate", "The gate of GEGLU gets no gradient",
         module=everywhere(GEGLU, _detached_gate)),
    _row("upsample-average", "The gradients of a pixel's four copies are averaged, not summed",
         module=everywhere(Upsample, _averaged)),
    _row("bias-first-sample", "Biases get the gradient of the first sample alone",
         module=_first_sample_bias),
    _row("ckpt-inputs", "Checkpointed blocks hand back the gradient of their first input alone",
         module=_checkpointed(_detached_inputs)),
    _row("ckpt-dropout", "Checkpointed blocks draw another dropout when they are computed again",
         module=_checkpointed(_other_dropout)),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = ()
