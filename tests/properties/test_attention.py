"""Attention: weights that sum to one, over a set; of tokens, of pixels, of the prompt."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = settings(
    max_examples=int(os.environ.get("SD1_EXAMPLES", "15")), deadline=None, derandomize=True
)
SEEDS = st.integers(0, 2**32 - 1)
TRANSFORMER = "down_blocks.1.attentions.0.transformer_blocks.0"
ATTENTIONS = {
    "self": ("unet", f"{TRANSFORMER}.attn1", 64, 64),
    "cross": ("unet", f"{TRANSFORMER}.attn2", 64, 64),
    "mid": ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1", 128, 128),
    "pixels": ("vae_encoder", "encoder.mid_block.attentions.0", 128, 128),
    "text": ("text_encoder", "text_model.encoder.layers.1.self_attn", 64, 64),
}
"""Component, path, width of the tokens and of the values."""
LAST = {"text": "out_proj", "pixels": "to_out.0"}
VALUES = {"text": "v_proj"}
"""What makes the output of the heads' results, and what makes the values: `to_v` elsewhere."""


def drawn(seed: int, *shape: int) -> Tensor:
    """Return normal data, another for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Attention:
    """One attention layer of either implementation, whose values can be set."""

    def __init__(self, network, name: str) -> None:
        self.name = name
        component, self.path, self.width, self.value_width = ATTENTIONS[name]
        self.network = network(component)
        self.last = f"{self.path}.{LAST.get(name, 'to_out.0')}"
        self.values = f"{self.path}.{VALUES.get(name, 'to_v')}"

    def __call__(self, tokens: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Attend: tokens (B, N, width) in and out, over a context where there is one.

        CLIP's layer is told by the model around it that it is causal: the model is run, and given
        these tokens where it makes its own.
        """
        if self.name == "text":
            norm = f"{self.path.rpartition('.')[0]}.layer_norm1"
            with self.network.hooked({norm: lambda *_: tokens}):
                self.network(input_ids=torch.zeros(tokens.shape[:2], dtype=torch.int64))
            return None
        layer = self.network.layer(self.path)
        with torch.no_grad():
            if self.name == "pixels":
                out = layer(tokens.transpose(1, 2).unsqueeze(-1))
                return out.squeeze(-1).transpose(1, 2)
            return layer(tokens) if context is None else layer(tokens, context)

    def core(self, tokens: Tensor, context: Tensor | None, values: Tensor) -> Tensor:
        """Return what the heads make of these values, (B, L, value width)."""
        seen: list[Tensor] = []
        put = {self.values: lambda *_: values, self.last: lambda _, args, __: seen.append(args[0])}
        with self.network.hooked(put):
            self(tokens, context)
        return seen[0].reshape(len(tokens), -1, self.value_width)


@pytest.fixture(scope="session", params=ATTENTIONS)
def attention(request, network) -> Attention:
    """One of the attentions."""
    return Attention(network, request.param)


def data(name: str, width: int, seed: int, batch: int, tokens: int, length: int) -> tuple:
    """Return tokens, the context or None, and how many values there are."""
    context = drawn(seed + 1, batch, length, 64) if name == "cross" else None
    return drawn(seed, batch, tokens, width), context, tokens if context is None else length


SIZES = (SEEDS, st.integers(1, 2), st.integers(1, 40), st.integers(1, 77))
"""Seed, batch, tokens, and tokens of the context."""


@EXAMPLES
@given(*SIZES)
def test_the_weights_of_a_token_sum_to_one(attention, seed, batch, tokens, length):
    """Where all values are alike, that is what is read, whatever the scores are."""
    read, context, count = data(attention.name, attention.width, seed, batch, tokens, length)
    value = drawn(seed + 2, batch, 1, attention.value_width)
    core = attention.core(read, context, value.repeat(1, count, 1))
    wanted = value.expand(core.shape)
    attention.network.assert_within_noise(core, wanted, f"{attention.last}.input")


@EXAMPLES
@given(*SIZES)
def test_the_weights_are_not_negative(attention, seed, batch, tokens, length):
    """Nothing that is read lies beyond the values, but by rounding."""
    read, context, count = data(attention.name, attention.width, seed, batch, tokens, length)
    values = drawn(seed + 2, batch, count, attention.value_width)
    core = attention.core(read, context, values)
    least, most = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    inside = torch.minimum(torch.maximum(core, least), most)
    attention.network.assert_within_noise(core, inside, f"{attention.last}.input")


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name != "text"])
@EXAMPLES
@given(st.data(), *SIZES)
def test_the_order_of_what_is_read_is_no_input(network, name, data_, seed, batch, tokens, length):
    """Tokens attend to a set: permuted, their outputs are permuted, those of a context stay."""
    attention = Attention(network, name)
    read, context, count = data(attention.name, attention.width, seed, batch, tokens, length)
    order = data_.draw(st.permutations(range(count)), label="order")
    wanted = attention(read, context)
    if context is None:
        got, wanted = attention(read[:, order]), wanted[:, order]
    else:
        got = attention(read, context[:, order])
    attention.network.assert_within_noise(got, wanted, attention.path)


@EXAMPLES
@given(*SIZES)
def test_text_reads_only_back(network, seed, batch, tokens, length):
    """The first token reads itself alone; a later value changes no bit of what is read before."""
    text = Attention(network, "text")
    read, _, count = data("text", text.width, seed, batch, tokens, length)
    values = drawn(seed + 2, batch, count, text.value_width)
    core = text.core(read, None, values)
    text.network.assert_within_noise(core[:, :1].contiguous(), values[:, :1], f"{text.last}.input")
    place = seed % count
    values[:, place] += 1
    changed = text.core(read, None, values)
    assert torch.equal(changed[:, :place], core[:, :place])
    assert bool((changed[:, place:] != core[:, place:]).any(-1).all())
