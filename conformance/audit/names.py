"""What an audit calls things: kinds and stages of layers, the output that matters, bits."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from conformance import spec
from conformance.regimes import UNIT

COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
"""What is audited where nothing else is asked for."""

REGIMES = (UNIT, "outlier")
"""Regimes that are shown side by side: well-behaved weights, and a few channels that are large."""

EXACT = 53.0
"""Bits of what has no error: as many as its float64 truth has."""

_MAIN = {"text_encoder": "last_hidden_state", "vae_encoder": "mean"}
_STAGE = re.compile(
    r"(?:text_model\.)?(?:encoder\.|decoder\.)?((?:down_blocks|up_blocks|layers)\.\d+|[a-z_]+)"
)
_CORES = ("to_out.0.input", "out_proj.input")
_AXES = {4: "convolution", 2: "linear", 1: "norm"}


def main_output(component: str, outputs: Sequence[str]) -> str:
    """Return the output whose error is shared out; the first where none is named.

    Of the VAE's encoder it is the mean: of `latents` a few elements with a large deviation make
    nearly all of the error, and so few numbers cannot tell many layers apart.
    """
    main = _MAIN.get(component, "")
    return main if main in outputs else outputs[0]


def stage(name: str) -> str:
    """Return the part of a network that a probe is in, `down_blocks.1` or `conv_in`."""
    found = _STAGE.match(name)
    return found[1] if found else name


def kind(component: str, size: str, name: str) -> str:
    """Return the kind of work that a probe shows.

    Args:
        component: A network.
        size: Its size.
        name: A canonical probe.

    Returns:
        `convolution`, `linear`, `norm` or `embedding` for a layer, by its weight;
        `attention core`; `sum or gate` for what happens between layers.
    """
    if name.endswith(_CORES):
        return "attention core"
    if name.endswith("token_embedding") or name == "time_proj":
        return "embedding"
    shape = spec.parameter_shapes(component, size).get(f"{name}.weight")
    return _AXES[len(shape)] if shape is not None else "sum or gate"


def bits(error: float | None) -> float | None:
    """Return how many bits of a number are right, given its relative error; None if unknown.

    None has more than the 53 that a float64 truth has; a wrong number has 0 or fewer.
    """
    if error is None or math.isnan(error):
        return None
    if error == 0:
        return EXACT
    return -math.log2(error) if math.isfinite(error) else -math.inf


def finite(value: float | None) -> float | None:
    """Return a number as JSON can hold it: None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def unmatched(globs: Collection[str], names: Collection[str]) -> str:
    """Say which names are most like what matched none, for an error."""
    layers = sorted({re.sub(r"\d+", "*", name) for name in names})
    shown = ", ".join(layers[:4])
    return f"{', '.join(map(repr, globs))} matches no layer; layers are named {shown}, ..."
