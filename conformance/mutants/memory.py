"""Ports that compute what is right and hold too much: each dies in mode `memory` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from conformance.execution import MEMORY, SDPA
from conformance.memory.cases import BY_SAMPLE, PLAIN, RECOMPUTE, TILED
from conformance.mutants.mutant import Mutant, NotRun
from conformance.mutants.unet_tools import replaced
from conformance.training import TRAINING
from sd1_impl.attention import GEGLU, CrossAttention
from sd1_impl.attention_kernels import Kernel, fused, use_kernel
from sd1_impl.recomputation import recompute

UNET, TEXT, ENCODER, DECODER = "unet", "text_encoder", "vae_encoder", "vae_decoder"

_HALF, _SINGLE = "float16", "float32"
LATENTS = ("tiny/latent16-batch2",)
PICTURES = ("tiny/latent8-batch2",)


def _outputs_kept(
    layers: Callable[[Any], Iterable[nn.Module]], entry: str = "forward"
) -> Callable[[Any], None]:
    """Return what holds the outputs of some layers of a network until the network is done.

    Args:
        layers: Chooses them.
        entry: The method by which the network is called.
    """

    def spoil(module: Any) -> None:
        kept: list[Any] = []
        for layer in layers(module):
            layer.register_forward_hook(lambda _, __, output: kept.append(output))
        call = getattr(module, entry)

        def forgetful(*inputs: Any) -> Any:
            try:
                return call(*inputs)
            finally:
                kept.clear()

        setattr(module, entry, forgetful)

    return spoil


def _scores_written_out(module: Any) -> None:
    use_kernel(module, PLAIN)


def _copied_heads(
    attend: Kernel, query: Tensor, key: Tensor, value: Tensor, **mask: bool
) -> Tensor:
    """Attend to copies: `rearrange(t, "b n (h d) -> (b h) n d")` cannot be a view."""
    copies = (part.contiguous() for part in (query, key, value))
    return attend(*copies, **mask)


def _heads_copied(module: Any) -> None:
    for layer in module.modules():
        if isinstance(layer, CrossAttention):
            layer.attend = partial(_copied_heads, layer.attend)


def _halves_copied(layer: GEGLU, tokens: Tensor) -> Tensor:
    both = layer.proj(tokens)
    value, gate = (half.contiguous() for half in both.chunk(2, dim=-1))
    return value * F.gelu(gate)


def _norm_in_float32(layer: nn.GroupNorm, hidden: Tensor) -> Tensor:
    """Normalise as `GroupNorm32` does: `super().forward(x.float()).type(x.dtype)`."""
    weight, bias = layer.weight.float(), layer.bias.float()
    wide = F.group_norm(hidden.float(), layer.num_groups, weight, bias, layer.eps)
    return wide.to(hidden.dtype)


def _attend_in_float32(query: Tensor, key: Tensor, value: Tensor, **mask: bool) -> Tensor:
    return fused(query.float(), key.float(), value.float(), **mask).to(query.dtype)


def _attends_in_float32(module: Any) -> None:
    for layer in module.modules():
        if hasattr(layer, "attend"):
            layer.attend = _attend_in_float32


def _decoder_in_float32(module: Any) -> None:
    """Leave the decoder in float32 where half precision was meant."""
    module.float()
    decode = module.decode
    module.decode = lambda latents: decode(latents.float()).to(latents.dtype)


def heavy(
    name: str,
    component: str,
    wrong: str,
    *,
    cases: tuple[str, ...],
    module: Callable[[Any], Any],
    seen: str = "",
    evidence: str = "I",
    dtype: str = _HALF,
    backend: str = SDPA,
) -> Mutant:
    """Return a mutant of mode `memory`; see `Mutant`."""
    return Mutant(
        id=name,
        component=component,
        wrong=wrong,
        seen=seen,
        evidence=evidence,
        size="none",
        cases=cases,
        module=module,
        dtype=dtype,
        backend=backend,
        modes=(MEMORY,),
    )


MUTANTS: tuple[Mutant, ...] = (
    heavy(
        "mem-skips-kept",
        UNET,
        "Every skip connection is held until the end of the pass, though it was read long before",
        cases=LATENTS,
        module=_outputs_kept(lambda unet: unet.down_blocks),
    ),
    heavy(
        "mem-scores-written-out",
        UNET,
        "Attention is a product, a softmax and a product: all scores are held at once",
        seen="CompVis ldm/modules/attention.py: einsum, softmax, einsum",
        evidence="C",
        cases=LATENTS,
        module=_scores_written_out,
    ),
    heavy(
        "mem-heads-copied",
        UNET,
        "Queries, keys and values are copied to put their heads first, where views would do",
        seen="CompVis ldm/modules/attention.py: rearrange to (b h) n d",
        evidence="C",
        cases=LATENTS,
        module=_heads_copied,
        dtype=_SINGLE,
        backend=PLAIN,
    ),
    heavy(
        "mem-geglu-halves-copied",
        UNET,
        "Value and gate are copied out of the projection, which is held beside them",
        cases=LATENTS,
        module=replaced(GEGLU, _halves_copied),
    ),
    heavy(
        "mem-group-norm-float32",
        UNET,
        "Every GroupNorm widens its map to float32 and rounds the result back",
        seen="CompVis ldm/modules/diffusionmodules/util.py: GroupNorm32",
        evidence="C",
        cases=LATENTS,
        module=replaced(nn.GroupNorm, _norm_in_float32),
    ),
    heavy(
        "mem-hidden-states-kept",
        TEXT,
        "The output of every layer is held to the end, though only the last is asked for",
        seen="diffusers encode_prompt with clip_skip: output_hidden_states=True",
        evidence="C",
        cases=("tiny/batch2",),
        module=_outputs_kept(lambda encoder: encoder.text_model.encoder.layers),
    ),
    heavy(
        "mem-encoded-at-once",
        ENCODER,
        "Sample by sample is how it decodes; it encodes the whole batch at once all the same",
        cases=("tiny/image64-batch2",),
        module=lambda vae: setattr(vae, "by_sample", False),
        backend=BY_SAMPLE,
    ),
    heavy(
        "mem-slices-kept",
        DECODER,
        "Samples are decoded one after the other, and the maps of all of them are held",
        cases=PICTURES,
        module=_outputs_kept(lambda vae: vae.decoder.up_blocks, "decode"),
        backend=BY_SAMPLE,
    ),
    heavy(
        "mem-tiles-of-the-whole",
        DECODER,
        "Tiling is asked for, and the one tile is the whole picture",
        cases=("tiny/latent96-batch1",),
        module=lambda vae: setattr(vae, "tiling", None),
        dtype=_SINGLE,
        backend=TILED,
    ),
    heavy(
        "mem-attention-float32",
        DECODER,
        "Queries, keys and values are widened to float32 for the attention kernel",
        seen="diffusers#1942 (9147c4c): upcast_attention hard-coded",
        evidence="R",
        cases=PICTURES,
        module=_attends_in_float32,
    ),
    heavy(
        "vae-upcast-check-always-false",
        DECODER,
        "It stays in float32 where half precision was meant: twice the weights, twice the maps",
        seen="diffusers#4019 (d6b8614)",
        evidence="R",
        cases=PICTURES,
        module=_decoder_in_float32,
    ),
    heavy(
        "mem-recompute-off",
        TRAINING,
        "Gradient checkpointing is asked for and never switched on",
        seen="diffusers: `if self.training and self.gradient_checkpointing`, in eval mode",
        evidence="C",
        cases=LATENTS,
        module=partial(recompute, on=False),
        dtype=_SINGLE,
        backend=RECOMPUTE,
    ),
)
"""What they compute is right: each passes a trace, but for the rounding of a wider dtype."""

NOT_RUN: tuple[NotRun, ...] = ()
