"""Wrong gradients of the text encoder, and wrong losses and gradients of the VAE."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from conformance.mutants.mutant import Mutant, NotRun, replaced, wrapped
from conformance.mutants.training_tools import (
    constant_mean,
    each,
    everywhere,
    last_row,
    scaled_gradient,
    without_row_sum,
)
from conformance.training import TEXT_TRAINING, VAE_TRAINING
from sd1_impl import training
from sd1_impl.text_encoder import MLP, CausalSelfAttention, TextEmbeddings
from sd1_impl.vae import AttentionBlock, AutoencoderKL, DiagonalGaussian, Upsample

KL_OF_LDM = 1e-6


def _frozen_layer(module: Any) -> None:
    """A layer in the middle is not trained, nor anything below its attention through it."""
    layer = module["text_encoder"].text_model.encoder.layers[1].self_attn
    plain = layer.forward
    layer.forward = lambda tokens: plain(tokens).detach()


def _rows_overwritten(module: Any) -> None:
    table = module["text_encoder"].text_model.embeddings.token_embedding
    table.forward = partial(last_row, table)


def _first_positions(layer: Any, input_ids: Tensor) -> Tensor:
    """Positions get the gradient of the first sample alone."""
    places = layer.position_embedding(torch.arange(input_ids.shape[1]))
    own = torch.stack([places, *[places.detach()] * (len(input_ids) - 1)])
    result: Tensor = layer.token_embedding(input_ids) + own
    return result


def _gelu_without_slope(layer: Any, tokens: Tensor) -> Tensor:
    """Quick GELU whose derivative lacks the factor of 1.702 inside the sigmoid."""
    hidden = layer.fc1(tokens)
    scaled = layer.coefficient * hidden
    gate = torch.sigmoid(scaled_gradient(scaled, 1 / layer.coefficient))
    result: Tensor = layer.fc2(hidden * gate)
    return result


def _acausal_gradient(layer: Any, tokens: Tensor) -> Tensor:
    """Keys get gradients from the padding of later tokens only: the mask is turned on the way."""
    split = layer._split_heads
    query, key, value = (split(p(tokens)) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    attended = layer.attend(query, key.detach(), value, is_causal=True)
    result: Tensor = layer.out_proj(attended.transpose(1, 2).flatten(2))
    return result


def _without_row_sum(module: nn.Module) -> None:
    for layer in each(module, AttentionBlock):
        layer.attend = without_row_sum


def _unclamped_gradient(plain: Any) -> Any:
    """The gradient passes the clamp of the log-variance, as with a straight-through estimator."""

    def encode(vae: Any, image: Tensor) -> DiagonalGaussian:
        found = plain(vae, image)
        _, free = vae.quant_conv(vae.encoder(image)).chunk(2, dim=1)
        return DiagonalGaussian(found.mean, free + (found.logvar - free).detach())

    return encode


def _kl(of_posterior: Any) -> Any:
    """Return what puts another divergence in the place of the posterior's."""
    return replaced(training, "kl_divergence", of_posterior)


def _terms(posterior: DiagonalGaussian) -> Tensor:
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def _reversed_kl(posterior: DiagonalGaussian) -> Tensor:
    """The divergence of the standard normal distribution from the posterior."""
    mean, logvar = posterior.mean, posterior.logvar
    terms = 0.5 * ((mean.square() + 1) / logvar.exp() - 1 + logvar)
    return terms.sum(dim=(1, 2, 3)).mean()


def _ldm_weight(plain: Any) -> Any:
    return lambda vae, image, noise, kl_weight: plain(vae, image, noise, 0 * kl_weight + KL_OF_LDM)


def _constant_noise(posterior: Any, noise: Tensor) -> Tensor:
    """The deviation is no part of the graph: the sample is not reparametrised."""
    result: Tensor = posterior.mean + (torch.exp(0.5 * posterior.logvar) * noise).detach()
    return result


def _averaged(layer: Any, hidden: Tensor) -> Tensor:
    """A pixel gets the average of its four copies' gradients, not their sum."""
    enlarged = scaled_gradient(hidden, 0.25).repeat_interleave(2, -1).repeat_interleave(2, -2)
    result: Tensor = layer.conv(enlarged)
    return result


def _text(name: str, wrong: str, **changes: Any) -> Mutant:
    return Mutant(
        id=f"train-text-{name}", component=TEXT_TRAINING, wrong=wrong,
        cases=("tiny/base",), evidence="I", size="visible", **changes,
    )  # fmt: skip


def _vae(name: str, wrong: str, *cases: str, **changes: Any) -> Mutant:
    cases = cases or ("tiny/base",)
    changes = {"size": "visible", "evidence": "I", **changes}
    return Mutant(
        id=f"train-vae-{name}", component=VAE_TRAINING, wrong=wrong, cases=cases, **changes
    )


MUTANTS: tuple[Mutant, ...] = (
    _text("layer-frozen", "The attention of one layer is cut off from its gradient",
          module=_frozen_layer),
    _text("rows-overwritten", "Of a token that occurs often only the last gradient arrives",
          module=_rows_overwritten),
    _text("positions-first-sample", "Positions get the gradient of the first sample alone",
          module=everywhere(TextEmbeddings, _first_positions)),
    _text("gelu-slope", "The derivative of quick GELU lacks the factor 1.702",
          module=everywhere(MLP, _gelu_without_slope)),
    _text("keys-detached", "Keys get no gradient",
          module=everywhere(CausalSelfAttention, _acausal_gradient)),
    _vae("kl-sign", "The KL divergence is subtracted",
         patch=_kl(lambda posterior: -_terms(posterior).sum(dim=(1, 2, 3)).mean())),
    _vae("kl-mean", "The KL divergence is averaged over the latents, not summed",
         patch=_kl(lambda posterior: _terms(posterior).mean())),
    _vae("kl-batch-sum", "The KL divergence is summed over the batch, not averaged",
         patch=_kl(lambda posterior: _terms(posterior).sum())),
    _vae("kl-double", "The KL divergence lacks its factor of one half",
         patch=_kl(lambda posterior: 2 * _terms(posterior).sum(dim=(1, 2, 3)).mean())),
    _vae("kl-reversed", "The KL divergence is the other way round", patch=_kl(_reversed_kl)),
    _vae("kl-weight", "The weight of the KL divergence is not read: it is always 1e-6",
         patch=wrapped(training, "autoencoder_loss", _ldm_weight)),
    _vae("absolute", "The reconstruction is judged by its mean absolute error", evidence="C",
         seen="ldm/modules/losses/contperceptual.py",
         patch=replaced(training, "mean_squared_error", lambda p, t: (p - t).abs().mean())),
    _vae("clamp-passes", "The gradient passes the clamp of the log-variance",
         "tiny-outlier/base", patch=wrapped(AutoencoderKL, "encode", _unclamped_gradient)),
    _vae("not-reparametrised", "The posterior's deviation gets no gradient from the sample",
         patch=replaced(DiagonalGaussian, "sample", _constant_noise)),
    _vae("upsample-average", "The gradients of a pixel's four copies are averaged, not summed",
         module=everywhere(Upsample, _averaged)),
    _vae("gn-constant-mean", "GroupNorm's backward pass leaves the mean's share out",
         module=everywhere(nn.GroupNorm, constant_mean)),
    _vae("softmax-row-sum", "Attention's backward pass leaves the row's sum out of the softmax's",
         module=_without_row_sum),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = ()
