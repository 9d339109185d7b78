"""The networks, their blocks and the tokenizer of the reference, behind the port contract."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from conformance.adapters.backends import PLAIN
from conformance.adapters.torch_module import first_tensor
from conformance.errors import UnsupportedError
from conformance.execution import SAVINGS
from conformance.port import Arrays
from conformance.spec import BLOCKS
from conformance.vocabulary import CONTEXT, END, Vocabulary
from sd1_weights.configs import published_config

if TYPE_CHECKING:
    from conformance.adapters.torch_module import Build, Call
    from conformance.variants import Variant

transformers.utils.logging.set_verbosity_error()  # that torchvision is missing concerns nobody

Tensors = dict[str, Tensor]


def build_unet(variant: Variant) -> nn.Module:
    """Build diffusers' UNet of a variant on the meta device, unmodified."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(
            published_config("unet", variant.architecture("unet"))
        )


def call_unet(module: nn.Module, tensors: Tensors) -> Tensors:
    """Call diffusers' UNet with the tensors of the border."""
    (sample,) = module(
        tensors["sample"],
        tensors["timestep"],
        tensors["encoder_hidden_states"],
        return_dict=False,
    )
    return {"sample": sample}


class _Prefixed(nn.Module):
    """A text model under the name that it has in the checkpoint; newer transformers dropped it."""

    def __init__(self, text_model: nn.Module) -> None:
        super().__init__()
        self.text_model = text_model


def prefixed(model: nn.Module) -> nn.Module:
    """Return the modules of a CLIPTextModel under the names of the checkpoint."""
    return _Prefixed(getattr(model, "text_model", model))


def text_model(variant: Variant) -> nn.Module:
    """Build transformers' CLIPTextModel of a variant on the meta device, unmodified."""
    facts = published_config("text_encoder", variant.architecture("text_encoder"))
    config = CLIPTextConfig(**{k: v for k, v in facts.items() if k != "architectures"})
    with torch.device("meta"):
        model = CLIPTextModel._from_config(config, attn_implementation="sdpa")  # noqa: SLF001
    positions = torch.arange(config.max_position_embeddings)
    embeddings = getattr(model, "text_model", model).embeddings
    embeddings.position_ids = positions.expand(1, -1)  # a buffer that no file holds
    return model


def build_text_encoder(variant: Variant) -> nn.Module:
    """Build transformers' CLIP text model, named as in the checkpoint, on the meta device."""
    return prefixed(text_model(variant))


def call_text_encoder(module: nn.Module, tensors: Tensors) -> Tensors:
    """Call transformers' CLIP text model with the tensors of the border."""
    answer = module.text_model(input_ids=tensors["input_ids"])
    return {"last_hidden_state": answer.last_hidden_state, "pooler_output": answer.pooler_output}


def build_vae_encoder(variant: Variant) -> nn.Module:
    """Build diffusers' VAE of a variant on the meta device, without the half that decodes."""
    vae = build_vae(variant)
    del vae.decoder, vae.post_quant_conv
    return vae


def build_vae_decoder(variant: Variant) -> nn.Module:
    """Build diffusers' VAE of a variant on the meta device, without the half that encodes."""
    vae = build_vae(variant)
    del vae.encoder, vae.quant_conv
    return vae


def build_vae(variant: Variant) -> nn.Module:
    """Build diffusers' VAE of a variant on the meta device, unmodified."""
    with torch.device("meta"):
        return AutoencoderKL.from_config(
            published_config("vae", variant.architecture("vae_encoder"))
        )


def call_vae_encoder(module: nn.Module, tensors: Tensors) -> Tensors:
    """Encode as a pipeline does, the posterior's noise given instead of drawn."""
    posterior = module.encode(tensors["image"]).latent_dist
    sample = posterior.mean + posterior.std * tensors["noise"]
    return {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "latents": sample * module.config.scaling_factor,
    }


def call_vae_decoder(module: nn.Module, tensors: Tensors) -> Tensors:
    """Decode as a pipeline does."""
    return {"image": module.decode(tensors["latents"] / module.config.scaling_factor).sample}


def build_block(path: str, variant: Variant) -> nn.Module:
    """Build one block of diffusers' UNet of a variant on the meta device."""
    return build_unet(variant).get_submodule(path)


def call_block(module: nn.Module, tensors: Tensors) -> Tensors:
    """Call a block with its arguments in order; what it returns may be wrapped in a class."""
    return {"out": first_tensor(module(*(tensors[str(i)] for i in range(len(tensors)))))}


def use_attention(module: Any, backend: str) -> int:
    """Let the attentions of a network be `plain` or `sliced`, by the libraries' own switches.

    Args:
        module: A network or block; transformers' text model has no sliced attention.
        backend: `plain` or `sliced`.

    Returns:
        How many attentions were switched.

    Raises:
        UnsupportedError: In float64 the libraries' softmax would be a float32 island.
    """
    text = getattr(module, "text_model", None)
    attentions = [m for m in module.modules() if hasattr(m, "set_processor")]
    float32_softmax = text is not None or any(m.upcast_softmax for m in attentions)
    if float32_softmax and next(module.parameters()).dtype is torch.float64:
        message = "the libraries' plain attention has a float32 softmax: no float64"
        raise UnsupportedError(message)
    if text is not None and backend == PLAIN:
        text.config._attn_implementation = "eager"  # noqa: SLF001 - transformers' own switch
        return int(text.config.num_hidden_layers)
    for attention in attentions:
        attention.set_processor(AttnProcessor() if backend == PLAIN else SlicedAttnProcessor(1))
    return len(attentions)


_SAVINGS = dict(
    zip(SAVINGS, ("enable_slicing", "enable_tiling", "enable_gradient_checkpointing"), strict=True)
)


def save_memory(module: nn.Module, saving: str) -> int:
    """Let networks save memory, by the library's own switches.

    Args:
        module: A network, or a dict of them.
        saving: One of `execution.SAVINGS`. The UNet has slices of its own, by no such switch.

    Returns:
        How many networks save so.
    """
    switches = [getattr(part, _SAVINGS[saving], None) for part in module.modules()]
    found = [switch for switch in switches if switch is not None]
    for switch in found:
        switch()
    return len(found)


NETWORKS: dict[str, tuple[Build, Call]] = {
    "text_encoder": (build_text_encoder, call_text_encoder),
    "unet": (build_unet, call_unet),
    "vae_encoder": (build_vae_encoder, call_vae_encoder),
    "vae_decoder": (build_vae_decoder, call_vae_decoder),
    **{name: (partial(build_block, block.path), call_block) for name, block in BLOCKS.items()},
}
"""By component: builds the network or block of a variant on the meta device; calls it."""


class Tokenizer:
    """transformers' CLIPTokenizer behind the port contract."""

    def __init__(self) -> None:
        """Build it from CLIP's vocabulary, as the published checkpoint configures it."""
        vocabulary = Vocabulary.load()
        self.tokenizer = CLIPTokenizer(
            vocab=vocabulary.ids, merges=vocabulary.merges, pad_token=END, model_max_length=CONTEXT
        )

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),  # noqa: ARG002 - a tokenizer has none
        replace: Mapping[str, np.ndarray] | None = None,  # noqa: ARG002
    ) -> tuple[Arrays, Arrays]:
        """Tokenize as a pipeline does: padded and cut to 77."""
        answer: Any = self.tokenizer(
            inputs["text"].tolist(), padding="max_length", max_length=CONTEXT, truncation=True
        )
        return {"input_ids": np.array(answer["input_ids"], np.int64)}, {}
