"""CLIP's text encoder: the ids of a prompt to the vectors that the UNet attends to.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al.,
2021), section 2.4, in the size of ViT-L/14: a transformer whose norms come before what they feed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sd1_numpy.layers import Array, attention, quick_gelu
from sd1_numpy.module import Module
from sd1_numpy.tokenizer import END

EPS = 1e-5


def text_encoder(module: Module, sizes: Mapping[str, Any], input_ids: Array) -> dict[str, Array]:
    """Encode prompts.

    Args:
        module: The network.
        sizes: `num_layers`, `num_heads`.
        input_ids: int64, (B, 77).

    Returns:
        `last_hidden_state` (B, 77, C), which the UNet reads; `pooler_output` (B, C), its row where
        the text ends.
    """
    model = module["text_model"]
    x = embeddings(model["embeddings"], input_ids)
    for i in range(sizes["num_layers"]):
        x = layer(model[f"encoder.layers.{i}"], x, sizes["num_heads"])
    x = model.layer_norm("final_layer_norm", x, EPS)
    ends = (input_ids == END).argmax(axis=1)  # the first one: the rest is padding
    return {"last_hidden_state": x, "pooler_output": x[np.arange(len(x)), ends]}


def embeddings(module: Module, input_ids: Array) -> Array:
    """Look up what each token means, and add where it stands."""
    token, position = module["token_embedding"], module["position_embedding"]
    return module.leave(token.leave(token.weight[input_ids]) + position.weight)


def layer(module: Module, x: Array, heads: int) -> Array:
    """Let every token look at those before it, then think for itself; add both to what it was."""
    x = x + self_attention(module["self_attn"], module.layer_norm("layer_norm1", x, EPS), heads)
    x = module["layer_norm2"].enter(x)
    x = x + mlp(module["mlp"], module.layer_norm("layer_norm2", x, EPS))
    return module.leave(x)


def self_attention(module: Module, x: Array, heads: int) -> Array:
    """Attend to the tokens up to one's own; padding is attended to, as in training."""
    q, k, v = (module.linear(name, x) for name in ("q_proj", "k_proj", "v_proj"))
    later = np.triu(np.full((x.shape[1], x.shape[1]), -np.inf, x.dtype), k=1)
    return module.leave(module.linear("out_proj", attention(q, k, v, heads, later)))


def mlp(module: Module, x: Array) -> Array:
    """Widen, activate, narrow."""
    return module.leave(module.linear("fc2", quick_gelu(module.linear("fc1", x))))
