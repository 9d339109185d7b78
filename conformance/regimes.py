"""Regimes: how the weights of a variant are armed so that no bug can sleep (docs/recipe.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from conformance.recipe import Kind, TensorRecipe

UNIT = "unit"
REGIMES = (UNIT, "lowvar", "dense", "sharp", "outlier", "offset")

_LOWVAR_SHIFT = -7
_SHARP_SHIFT = 2
_OUTLIER_SHIFT = 6
_OFFSET_BIAS = 12.0


@dataclass(frozen=True)
class Layers:
    """The layers of a checkpoint folder that a regime changes, as patterns of parameter names.

    Attributes:
        feeds_a_norm: Output enters the residual stream or a norm: small in `lowvar`.
        reads_the_stream: Those of them that read the (already small) stream itself: in `lowvar`
            their weights stay as they are.
        sharp: Queries and keys of one attention per resolution: large in `sharp`.
        outlier: A few rows are large in `outlier`, as in trained networks.
        offset: Biases that lift what a norm reads to a mean of about ten deviations in `offset`.
    """

    feeds_a_norm: re.Pattern[str]
    reads_the_stream: re.Pattern[str]
    sharp: re.Pattern[str]
    outlier: re.Pattern[str]
    offset: re.Pattern[str]


_LAYERS = {
    "unet": Layers(
        re.compile(
            r"conv_in|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|proj_in|proj_out"
            r"|to_out\.0|ff\.net\.2|(down|up)samplers\.0\.conv"
        ),
        re.compile(r"conv_shortcut|proj_out|samplers\.0\.conv"),
        re.compile(
            r"((down_blocks\.[012]|mid_block)\.attentions\.0\.transformer_blocks\.0"
            r"\.attn[12]\.to_[qk]\.weight)$"
        ),
        re.compile(r"(conv2|ff\.net\.2)\.weight"),
        re.compile(r"(conv_in|conv1|proj_in)\.bias"),
    ),
    "text_encoder": Layers(
        re.compile(r"token_embedding|position_embedding|out_proj|fc2"),
        re.compile(r"(?!)"),
        re.compile(r"layers\.1\.self_attn\.[qk]_proj\.weight"),
        re.compile(r"fc2\.weight"),
        re.compile(r"layers\.0\.(self_attn\.out_proj|mlp\.fc2)\.bias"),
    ),
    "vae": Layers(
        re.compile(
            r"conv_in|resnets\.\d+\.(conv1|conv2|conv_shortcut)|to_out\.0|(down|up)samplers\.0\.conv"
        ),
        re.compile(r"conv_shortcut|samplers\.0\.conv"),
        re.compile(r"attentions\.0\.to_[qk]\.weight"),
        re.compile(r"conv2\.weight|^quant_conv\.weight"),
        re.compile(r"(conv_in|conv1)\.bias"),
    ),
}


def tensor_recipe(folder: str, name: str, shape: tuple[int, ...], regime: str) -> TensorRecipe:
    """Return the recipe of one parameter.

    Args:
        folder: The checkpoint's folder: `unet`, `text_encoder` or `vae`.
        name: The parameter's key in it.
        shape: Its shape.
        regime: One of `REGIMES`.

    Returns:
        How to draw it.
    """
    layers = _LAYERS[folder]
    kind = _kind(name, shape)
    shift = 0
    row_shifts: tuple[tuple[int, int], ...] = ()
    if regime == "lowvar" and layers.feeds_a_norm.search(name):
        keeps = kind is Kind.WEIGHT and layers.reads_the_stream.search(name)
        shift = 0 if keeps else _LOWVAR_SHIFT
    elif regime == "sharp" and layers.sharp.search(name):
        shift = _SHARP_SHIFT
    elif regime == "outlier" and layers.outlier.search(name):
        row_shifts = ((3, _OUTLIER_SHIFT), (shape[0] // 2 + 1, _OUTLIER_SHIFT))
    lifted = regime == "offset" and layers.offset.search(name)
    return TensorRecipe(
        f"{folder}/{name}",
        shape,
        kind,
        dense=regime == "dense",
        shift=shift,
        row_shifts=row_shifts,
        constant=_OFFSET_BIAS if lifted else None,
    )


def _kind(name: str, shape: tuple[int, ...]) -> Kind:
    if "embedding.weight" in name:  # token_embedding, position_embedding: one row is picked
        return Kind.EMBEDDING
    if len(shape) > 1:
        return Kind.WEIGHT
    return Kind.BIAS if name.endswith(".bias") else Kind.NORM
