"""Hints: what usually goes wrong at a probe or output."""

from __future__ import annotations

import pytest

from conformance import spec
from conformance.case import NETWORKS
from conformance.hints import hint_for

LAYER = "text_model.encoder.layers.1"


@pytest.mark.parametrize(
    ("probe", "hint"),
    [
        ("text_model.embeddings.token_embedding", "token embedding: ids off by one"),
        ("text_model.embeddings", "position embedding: missing"),
        (f"{LAYER}.layer_norm1", "eps is 1e-5"),
        (f"{LAYER}.self_attn.out_proj.input", "causal mask and no other"),
        (f"{LAYER}.layer_norm2.input", "first residual sum of a CLIP layer"),
        (f"{LAYER}.layer_norm2", "LayerNorm of CLIP: eps is 1e-5"),
        (f"{LAYER}.mlp.fc2.input", "x * sigmoid(1.702 x)"),
        ("text_model.final_layer_norm", "the last layer's output enters it, once"),
        ("text_model.encoder.layers.2", "a fully probed case"),
        ("last_hidden_state", "no layer skipped"),
        ("pooler_output", "first EOS"),
        ("encoder.down_blocks.0.resnets.0.norm1", "GroupNorm of the VAE: eps is 1e-6"),
        ("encoder.mid_block.attentions.0.group_norm", "GroupNorm of the VAE: eps is 1e-6"),
        ("decoder.conv_norm_out", "GroupNorm of the VAE: eps is 1e-6"),
        ("encoder.conv_in", "channel order (RGB), range -1..1"),
        ("decoder.conv_in", "input of the decoder"),
        ("quant_conv", "1x1 convolution between latents and the network"),
        ("post_quant_conv", "1x1 convolution between latents and the network"),
        ("encoder.mid_block.attentions.0", "VAE attention: residual sum"),
        ("image", "the image is not clamped"),
        ("encoder.down_blocks.0.downsamplers.0", "one row below and one column right"),
        ("encoder.down_blocks.2.downsamplers.0.conv", "one row below and one column right"),
        ("decoder.up_blocks.1.upsamplers.0.conv", "nearest, twice the size"),
        ("decoder.mid_block.attentions.0.to_out.0.input", "one head"),
        ("post_quant_conv.input", "divided by 0.18215"),
        ("mean", "first four channels of quant_conv"),
        ("logvar", "clamped to -30..20"),
        ("latents", "0.18215 * (mean + exp(logvar / 2) * noise)"),
        ("down_blocks.0.downsamplers.0", "padding 1 on every side"),
        ("down_blocks.1.resnets.0.norm1", "GroupNorm of a resnet: eps is 1e-5"),
        ("conv_norm_out", "last GroupNorm: eps is 1e-5"),
        ("up_blocks.1.upsamplers.0.conv", "to the size of the skip"),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.input",
            "number of heads (8)",
        ),
        ("down_blocks.1.attentions.0.transformer_blocks.0.norm2.input", "residual sum of the tra"),
    ],
)
def test_hint(probe: str, hint: str) -> None:
    """A hint is that of its own network: one head in the VAE, eight in the UNet."""
    assert hint in hint_for(probe)


@pytest.mark.parametrize("probe", ["", "nothing", "text_model", "encoder", "input_ids"])
def test_no_hint(probe: str) -> None:
    """An unknown probe has none; nor have token ids, whose text says what it hunts."""
    assert hint_for(probe) == ""


@pytest.mark.parametrize("component", NETWORKS)
def test_norms_and_attention_cores_have_hints(component: str) -> None:
    """No norm and no attention core of any network goes without."""
    names = spec.probe_names(component, "odd" if component != "text_encoder" else "sd1")
    watched = [n for n in names if "norm" in n or n.endswith(("to_out.0.input", "out_proj.input"))]
    assert len(watched) > 10
    assert [name for name in watched if not hint_for(name)] == []
