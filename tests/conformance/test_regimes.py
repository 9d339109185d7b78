"""Regimes: which tensors each of them changes, by name, and how (docs/recipe.md)."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from conformance.case import NETWORKS, find_case
from conformance.golden_files import load_golden
from conformance.recipe import Kind
from conformance.regimes import REGIMES
from conformance.variants import Weights, parse_variant

LAYERS = [f"text_model.encoder.layers.{i}" for i in range(3)]
DOWN = [f"encoder.down_blocks.{i}.resnets.{j}" for i, j in product(range(4), range(2))]
UP = [f"decoder.up_blocks.{i}.resnets.{j}" for i, j in product(range(4), range(3))]
RESNETS = {
    "encoder": [*DOWN, "encoder.mid_block.resnets.0", "encoder.mid_block.resnets.1"],
    "decoder": [*UP, "decoder.mid_block.resnets.0", "decoder.mid_block.resnets.1"],
}
SHORTCUTS = {
    "encoder": [f"encoder.down_blocks.{i}.resnets.0.conv_shortcut" for i in (1, 2)],
    "decoder": [f"decoder.up_blocks.{i}.resnets.0.conv_shortcut" for i in (2, 3)],
}
SAMPLERS = {
    "encoder": [f"encoder.down_blocks.{i}.downsamplers.0.conv" for i in range(3)],
    "decoder": [f"decoder.up_blocks.{i}.upsamplers.0.conv" for i in range(3)],
}
HALVES = ("encoder", "decoder")


def weights(component: str, regime: str) -> Weights:
    """Return the weights of `tiny` in a regime."""
    return parse_variant(f"tiny-{regime}" if regime != "unit" else "tiny").weights(component)


def changed(component: str, regime: str) -> dict[str, float]:
    """Return the tensors that a regime changes, with the factor of all their elements, or 0."""
    unit, other = weights(component, "unit"), weights(component, regime)
    assert list(unit) == list(other)
    factors = {}
    for name in unit:
        if unit.recipes[name] != other.recipes[name]:
            ratios = np.unique(other[name] / unit[name])
            factors[name] = float(ratios[0]) if len(ratios) == 1 else 0.0
    return factors


def both(*layers: str) -> set[str]:
    """Return the names of weights and biases of layers."""
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_lowvar_of_the_text_encoder() -> None:
    """Embeddings, and what is added to the residual stream, are 32 times smaller."""
    expected = both(*(f"{i}.{n}" for i in LAYERS for n in ("self_attn.out_proj", "mlp.fc2")))
    expected |= {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
    }
    assert changed("text_encoder", "lowvar") == dict.fromkeys(expected, 2.0**-7)


@pytest.mark.parametrize("half", HALVES)
def test_lowvar_of_the_autoencoder(half: str) -> None:
    """What enters the stream or a norm is 32 times smaller; what reads the stream by bias only."""
    convolutions = [f"{resnet}.conv{i}" for resnet in RESNETS[half] for i in (1, 2)]
    expected = both(f"{half}.conv_in", f"{half}.mid_block.attentions.0.to_out.0", *convolutions)
    expected |= {f"{layer}.bias" for layer in SHORTCUTS[half] + SAMPLERS[half]}
    assert changed(f"vae_{half}", "lowvar") == dict.fromkeys(expected, 2.0**-7)


@pytest.mark.parametrize(
    ("component", "attention", "names"),
    [
        ("text_encoder", "text_model.encoder.layers.1.self_attn", ("q_proj", "k_proj")),
        ("vae_encoder", "encoder.mid_block.attentions.0", ("to_q", "to_k")),
        ("vae_decoder", "decoder.mid_block.attentions.0", ("to_q", "to_k")),
    ],
    ids=["text_encoder", "vae_encoder", "vae_decoder"],
)
def test_sharp(component: str, attention: str, names: tuple[str, str]) -> None:
    """Queries and keys of one attention are four times larger."""
    assert changed(component, "sharp") == {f"{attention}.{name}.weight": 4.0 for name in names}


@pytest.mark.parametrize(
    ("component", "names"),
    [
        ("text_encoder", [f"{layer}.mlp.fc2.weight" for layer in LAYERS]),
        (
            "vae_encoder",
            [*(f"{resnet}.conv2.weight" for resnet in RESNETS["encoder"]), "quant_conv.weight"],
        ),
        ("vae_decoder", [f"{resnet}.conv2.weight" for resnet in RESNETS["decoder"]]),
    ],
    ids=["text_encoder", "vae_encoder", "vae_decoder"],
)
def test_outlier(component: str, names: list[str]) -> None:
    """Rows 3 and n/2 + 1 of these weights are 64 times larger, and nothing else is."""
    unit, other = weights(component, "unit"), weights(component, "outlier")
    assert set(changed(component, "outlier")) == set(names)
    for name in names:
        factors = np.ones(len(unit[name]))
        factors[[3, len(factors) // 2 + 1]] = 64
        shape = (-1, *[1] * (unit[name].ndim - 1))
        assert np.array_equal(other[name], unit[name] * factors.reshape(shape)), name


def test_outlier_reaches_both_clamps() -> None:
    """The posterior's log-variance is clamped at -30 and at 20, and mostly not at all."""
    logvar = load_golden(find_case("vae_encoder/tiny-outlier/base")).outputs["logvar"]
    assert (logvar.min(), logvar.max()) == (-30, 20)
    free = np.mean((logvar > -30) & (logvar < 20))
    assert 0.5 < free < 1


@pytest.mark.parametrize(
    ("component", "names"),
    [
        ("text_encoder", [f"{LAYERS[0]}.self_attn.out_proj.bias", f"{LAYERS[0]}.mlp.fc2.bias"]),
        *(
            (
                f"vae_{half}",
                [f"{half}.conv_in.bias", *(f"{resnet}.conv1.bias" for resnet in RESNETS[half])],
            )
            for half in HALVES
        ),
    ],
    ids=["text_encoder", "vae_encoder", "vae_decoder"],
)
def test_offset(component: str, names: list[str]) -> None:
    """These biases are 12 throughout: the norms behind them read a large mean."""
    other = weights(component, "offset")
    assert set(changed(component, "offset")) == set(names)
    assert all(np.all(other[name] == 12) for name in names)


@pytest.mark.parametrize("component", NETWORKS)
def test_dense(component: str) -> None:
    """Every tensor is drawn with 24 bits, and differs in nothing else."""
    unit, other = weights(component, "unit").recipes, weights(component, "dense").recipes
    assert all(other[n].dense and not unit[n].dense for n in unit)
    assert all((unit[n].kind, unit[n].shape) == (other[n].kind, other[n].shape) for n in unit)
    assert not any(r.shift or r.row_shifts or r.constant for r in other.values())


@pytest.mark.parametrize("regime", REGIMES)
def test_halves_of_the_autoencoder_share_a_recipe(regime: str) -> None:
    """No tensor belongs to both halves, and each is named as in the checkpoint's folder."""
    encoder, decoder = (weights(f"vae_{half}", regime).recipes for half in HALVES)
    assert not set(encoder) & set(decoder)
    assert all(recipe.name == f"vae/{name}" for name, recipe in (encoder | decoder).items())


@pytest.mark.parametrize("component", NETWORKS)
def test_kinds(component: str) -> None:
    """Vectors that scale a norm, biases, the two embedding tables; all else are weights."""
    for name, recipe in weights(component, "unit").recipes.items():
        if re.fullmatch(r".*(token|position)_embedding\.weight", name):
            expected = Kind.EMBEDDING
        elif name.endswith(".bias"):
            expected = Kind.BIAS
        else:
            expected = Kind.NORM if "norm" in name else Kind.WEIGHT
        assert recipe.kind is expected, name


@pytest.mark.parametrize("name", ["token_embedding", "position_embedding"])
def test_embeddings_have_unit_gain(name: str) -> None:
    """A row is picked, not summed over: its elements have about unit variance."""
    table = weights("text_encoder", "unit")[f"text_model.embeddings.{name}.weight"]
    assert table.var() == pytest.approx(21845 / 4**7, rel=0.05)


@pytest.mark.parametrize("regime", [name for name in REGIMES if name != "dense"])
@pytest.mark.parametrize("component", ["text_encoder", "vae_encoder", "vae_decoder"])
def test_weights_survive_half_types(component: str, regime: str) -> None:
    """No weight of a lattice regime is rounded in bfloat16 or float16."""
    for name, array in weights(component, regime).items():
        assert np.array_equal(array.astype(np.float16), array), name
        assert not np.any(array.view(np.uint32) & 0xFFFF), name
