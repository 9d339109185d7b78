"""What a probe's name says about likely causes: the first thing a port author should look at."""

from __future__ import annotations

import re

_HINTS: tuple[tuple[str, str], ...] = (
    (r"time_proj", "sine/cosine order, frequency shift, precision of the timestep embedding"),
    (r"time_embedding.*", "timestep embedding: SiLU between its two layers, weights"),
    (r"conv_in", "input: channel order, layout, dtype of the sample, padding"),
    (
        r"up_blocks\.\d+\.resnets\.\d+\.input",
        "skip connection: order of the concatenation, which skip, size after upsampling",
    ),
    (r".*transformer_blocks\.0\.norm\d.input", "residual sum of the transformer block"),
    (r".*transformer_blocks\.0\.norm\d", "LayerNorm: eps is 1e-5, over channels"),
    (
        r".*resnets\.\d+\.norm2\.input",
        "time embedding: SiLU before it, broadcast, added after conv1",
    ),
    (r".*resnets\.\d+\.norm\d", "GroupNorm of a resnet: eps is 1e-5"),
    (r".*attentions\.\d+\.norm", "GroupNorm of the spatial transformer: eps is 1e-6"),
    (r"conv_norm_out", "last GroupNorm: eps is 1e-5"),
    (r".*to_out\.0\.input", "attention core: number of heads (8), scale, softmax, head order"),
    (r".*\.ff\.net\.0", "GEGLU: value first, gate second, exact (erf) GELU"),
    (r".*downsamplers\.0.*", "downsampling: stride 2, padding 1 on every side"),
    (r".*upsamplers\.0.*", "upsampling: nearest, then convolution, to the size of the skip"),
    (r".*\.conv[12]", "SiLU after the norm, then the convolution: padding, kernel layout"),
)


def hint_for(probe: str) -> str:
    """Return the usual causes of a first divergence at a probe, or an empty string."""
    for pattern, hint in _HINTS:
        if re.fullmatch(pattern, probe):
            return hint
    return ""
