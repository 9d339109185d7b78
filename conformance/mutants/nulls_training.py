"""Null mutants of training: lawful ways to compute the same loss and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conformance.mutants.mutant import Mutant, NotRun, replaced, wrapped
from conformance.mutants.training_tools import everywhere, grouped, normalised
from conformance.training import TEXT_TRAINING, TRAINING, VAE_TRAINING
from sd1_impl import training
from sd1_impl.attention_kernels import plain, sliced
from sd1_impl.recomputation import recompute


def _summed(prediction: Tensor, target: Tensor) -> Tensor:
    difference = (prediction - target).flatten()
    return difference @ difference / difference.numel()


def _sample_by_sample(whole: Any) -> Any:
    """The loss of each sample alone, then their mean: gradients are accumulated."""

    def loss(
        network: Any, schedule: Any, latents: Tensor, timesteps: Tensor, noise: Tensor, states: Any
    ) -> Any:
        rows = [slice(i, i + 1) for i in range(len(latents))]
        found = [
            whole(network, schedule, latents[r], timesteps[r], noise[r], states[r]) for r in rows
        ]
        mean = torch.stack([one.loss for one in found]).mean()
        terms = {
            name: torch.cat([getattr(one, name) for one in found])
            for name in ("noisy_latents", "target", "model_output")
        }
        return training.DenoisingLoss(mean, **terms)

    return loss


def _manual_norm(norm: Any, hidden: Tensor) -> Tensor:
    rows = grouped(norm, hidden)
    return normalised(norm, hidden, rows.mean(-1), rows.var(-1, correction=0))


def _attending(kernel: Any) -> Any:
    def change(module: nn.Module) -> None:
        for layer in module.modules():
            if hasattr(layer, "attend"):
                layer.attend = kernel

    return change


def _kl_by_deviation(posterior: Any) -> Tensor:
    deviation = torch.exp(0.5 * posterior.logvar)
    terms = posterior.mean.square() + deviation.square() - 1 - 2 * deviation.log()
    return 0.5 * terms.sum() / len(terms)


def _null(name: str, component: str, way: str, **changes: Any) -> Mutant:
    return Mutant(
        id=f"null-train-{name}", component=component, wrong=f"Nothing: {way}",
        cases=("tiny/base", "odd/base"), evidence="null", size="none", **changes,
    )  # fmt: skip


MUTANTS: tuple[Mutant, ...] = (
    _null("loss-product", TRAINING, "the squared errors are summed by a product, then divided",
          patch=replaced(training, "mean_squared_error", _summed)),
    _null("accumulated", TRAINING, "gradients are accumulated sample by sample",
          patch=wrapped(training, "denoising_loss", _sample_by_sample)),
    _null("recomputed", TRAINING, "blocks are computed again on the way back", module=recompute),
    _null("manual-norm", TRAINING, "GroupNorm is differentiated operation by operation",
          module=everywhere(nn.GroupNorm, _manual_norm)),
    _null("plain-attention", TRAINING, "attention is differentiated operation by operation",
          module=_attending(plain)),
    _null("text-sliced", TEXT_TRAINING, "attention is computed head by head",
          module=_attending(sliced)),
    _null("text-recomputed", TEXT_TRAINING, "layers are computed again on the way back",
          module=recompute),
    _null("vae-recomputed", VAE_TRAINING, "levels are computed again on the way back",
          module=recompute),
    _null("vae-kl-deviation", VAE_TRAINING, "the KL divergence is computed from the deviation",
          patch=replaced(training, "kl_divergence", _kl_by_deviation)),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = ()
