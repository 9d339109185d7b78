"""CLIP's text encoder: token ids in; one vector per token, which the UNet attends to, out.

Source: CLIP (Radford et al., 2021), section 2.4; ``Transformer`` and ``encode_text`` of openai/CLIP
``clip/model.py``, which follows GPT-2 (Radford et al., 2019): normalise before, add after, attend
only backwards. Attribute names are the keys of the published transformers checkpoint, which also
holds ``text_model.embeddings.position_ids``, the numbers 0 to 76: `torch.arange` here.

Shapes: B batch, L tokens of the text (at most 77), C width (768).
"""

import torch
from torch import Tensor, nn

from sd1_impl.attention_kernels import Kernel, fused
from sd1_impl.config import TextEncoderConfig
from sd1_impl.network_inputs import check_ids


class TextEmbeddings(nn.Module):
    """What a token is plus where it stands, both looked up in learned tables.

    Args:
        config: The text encoder's numbers.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map ``(B, L)`` ids to ``(B, L, C)``."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.token_embedding(input_ids) + self.position_embedding(positions)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token reads itself and the tokens before it.

    Scaled dot-product attention (Vaswani et al., 2017, section 3.2). There is no padding mask:
    Stable Diffusion v1 was trained with the padding as part of the text.

    Args:
        config: The text encoder's numbers.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.k_proj = nn.Linear(width, width)  # k, v, q: the checkpoint's order
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.attend: Kernel = fused

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, L, C)`` to ``(B, L, C)``, to be added to the residual stream."""
        query = self._split_heads(self.q_proj(tokens))
        key = self._split_heads(self.k_proj(tokens))
        value = self._split_heads(self.v_proj(tokens))
        attended = self.attend(query, key, value, is_causal=True)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # heads back into C

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """View ``(B, L, C)`` as ``(B, heads, L, C / heads)``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Linear, quick GELU, linear.

    Quick GELU is ``x * sigmoid(1.702 x)``; it differs from the exact GELU by up to 0.02, which
    twelve layers do not forgive.

    Args:
        config: The text encoder's numbers.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.coefficient = config.quick_gelu_coefficient
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, L, C)`` to ``(B, L, C)``, to be added to the residual stream."""
        hidden = self.fc1(tokens)
        return self.fc2(hidden * torch.sigmoid(self.coefficient * hidden))


class EncoderLayer(nn.Module):
    """Self-attention, feed-forward: each normalised before, added after.

    Args:
        config: The text encoder's numbers.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.self_attn = CausalSelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform ``(B, L, C)`` tokens; same shape out."""
        tokens = tokens + self.self_attn(self.layer_norm1(tokens))
        return tokens + self.mlp(self.layer_norm2(tokens))


class Encoder(nn.Module):
    """The layers, one after the other.

    Args:
        config: The text encoder's numbers.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.num_layers)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform ``(B, L, C)`` tokens; same shape out."""
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


class TextTransformer(nn.Module):
    """Embeddings, layers, a last norm.

    Args:
        config: The text encoder's numbers.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map ``(B, L)`` ids to ``(B, L, C)``."""
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids)))


class CLIPTextEncoder(nn.Module):
    """The text encoder of Stable Diffusion v1.

    Args:
        config: Its shape.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts.

        Args:
            input_ids: ``(B, L)``, int64, 0 to ``vocab_size - 1``; from SD v1's tokenizer, L is 77:
                start, text, end, and the end again as padding.

        Returns:
            The last hidden state, ``(B, L, C)``, after the last norm: the UNet's
            ``encoder_hidden_states``. And the pooled output, ``(B, C)``: the state at the first
            end of text, the only one that has seen the text and no padding (the state at the start
            if there is no end, as in transformers). Stable Diffusion v1 does not use it.

        Raises:
            ValueError: If the shape is not ``(B, L)``, if L exceeds the position table or an id
                the token table, or if these are no ids, or on another device.
        """
        table = self.text_model.embeddings.token_embedding.weight
        check_ids("input_ids", input_ids, table, self.config.max_position_embeddings)
        last_hidden_state = self.text_model(input_ids)
        # argmax returns the first of equals; the padding has the same id.
        end = (input_ids == self.config.eos_token_id).int().argmax(dim=-1)  # (B,)
        rows = torch.arange(end.shape[0], device=end.device)
        return last_hidden_state, last_hidden_state[rows, end]
