"""The recipe against the published generator, and the properties that make its values exact."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from conformance.recipe import (
    Kind,
    TensorRecipe,
    digest,
    int8_stream,
    int24_stream,
    weight_exponent,
    words,
)
from conformance.variants import parse_variant

# Philox 4x64 as published: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
# 1, 2, 3", SC 2011.
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
MASK = 2**64 - 1

PI = 0x243F6A8885A308D3_13198A2E03707344_A4093822299F31D0_082EFA98EC4E6C89
PI_KEY = 0x452821E638D01377_BE5466CF34E90C6C

CONV_IN = "unet/conv_in.weight"
TOKENS = "text_encoder/text_model.embeddings.token_embedding.weight"
BORDER = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
"""Which elements of a 4x5 tensor a border of one keeps."""
ATTENTION = "attentions.0.transformer_blocks.0.attn1"


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Return one block of Philox 4x64-10 in Python's own integers."""
    for _ in range(10):
        first, second = MULTIPLIERS[0] * counter[0], MULTIPLIERS[1] * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ key[0],
            second & MASK,
            (first >> 64) ^ counter[3] ^ key[1],
            first & MASK,
        ]
        key = [(k + w) & MASK for k, w in zip(key, WEYL, strict=True)]
    return counter


def split(number: int, count: int) -> list[int]:
    """Cut a number into 64-bit words, the highest first."""
    return [number >> 64 * i & MASK for i in reversed(range(count))]


def plain_words(seed: int, name: str, count: int) -> list[int]:
    """Return what the recipe says, without NumPy."""
    hashed = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    key = [int.from_bytes(hashed[i : i + 8], "little") for i in (0, 8)]
    blocks = [philox([block, 0, 0, 0], key) for block in range(1, count // 4 + 2)]
    return [word for block in blocks for word in block][:count]


def float16_exact(array: np.ndarray) -> bool:
    """Say whether every value survives float16."""
    return np.array_equal(array.astype(np.float16).astype(np.float32), array)


def bfloat16_exact(array: np.ndarray) -> bool:
    """Say whether the low half of every float32 is zero."""
    return not np.any(array.view(np.uint32) & 0xFFFF)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param(
            0,
            0,
            0x16554D9ECA36314C_DB20FE9D672D0FDC_D7E772CEE186176B_7E68B68AEC7BA23B,
            id="zeros",
        ),
        pytest.param(
            2**256 - 1,
            2**128 - 1,
            0x87B092C3013FE90B_438C3C67BE8D0224_9CC7D7C69CD777B6_A09CAEBF594F0BA0,
            id="ones",
        ),
        pytest.param(
            PI,
            PI_KEY,
            0xA528F45403E61D95_38C72DBD566E9788_A5A1610E72FD18B5_57BD43B5E52B7FE6,
            id="pi",
        ),
    ],
)
def test_published_vectors(counter: int, key: int, expected: int) -> None:
    """The reference written here is Philox: it gives Random123's known answers."""
    assert philox(split(counter, 4), split(key, 2)) == split(expected, 4)


@pytest.mark.parametrize("count", [1, 4, 5, 101])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [CONV_IN, "sketch/64", ""], ids=["weight", "sketch", "empty"])
def test_words_are_philox(seed: int, name: str, count: int) -> None:
    """The words are those of the published generator, from counter 1, for any name and length."""
    assert words(seed, name, count).tolist() == plain_words(seed, name, count)


def test_word_vector() -> None:
    """The first words of the first weight are those of docs/recipe.md."""
    assert words(1, CONV_IN, 4).tolist() == [
        0x34F955C374B82ED3,
        0x9CBA6282FD906497,
        0x4B34D3FF88709F08,
        0x9E002159AB173C62,
    ]


def test_int8_vector() -> None:
    """Words are read byte by byte, the lowest first, two's complement."""
    expected = [-45, 46, -72, 116, -61, 85, -7, 52, -105, 100, -112, -3]
    assert int8_stream(1, CONV_IN, 12).tolist() == expected


def test_int24_vector() -> None:
    """Words are read as two 32-bit halves, the lower first, without their lowest byte."""
    expected = [7649326, 3471701, -159644, -6505886, -7835489, 4928723]
    assert int24_stream(1, CONV_IN, 6).tolist() == expected


@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_streams_are_prefixes(count: int) -> None:
    """A shorter tensor is the beginning of a longer one, whatever its length."""
    assert np.array_equal(int8_stream(1, "a", count), int8_stream(1, "a", 64)[:count])
    assert np.array_equal(int24_stream(1, "a", count), int24_stream(1, "a", 64)[:count])


@pytest.mark.parametrize(
    ("name", "shape", "kind", "dense", "numerators", "exponent"),
    [
        (CONV_IN, (32, 4, 3, 3), "weight", False, [-89, 93, -143, 233], 10),
        (CONV_IN, (32, 4, 3, 3), "weight", True, [15298653, 6943403, -319287, -13011771], 26),
        ("unet/conv_norm_out.weight", (32,), "norm", False, [129, 112, 121, 137], 7),
        (
            "unet/conv_norm_out.weight",
            (32,),
            "norm",
            True,
            [8985009, 8296729, 9204979, 8105823],
            23,
        ),
        ("unet/conv_in.bias", (32,), "bias", False, [-33, 119, 1, 77], 11),
        ("unet/conv_in.bias", (32,), "bias", True, [4980855, -3983541, 8704865, 3517751], 27),
        ("inputs/unet/base/sample", (2, 4), "input", False, [47, 177, 151, -211], 7),
        ("inputs/unet/base/sample", (2, 4), "input", True, [-13855055, 8630963, 2776725], 23),
        (TOKENS, (49408, 4), "embedding", False, [-3, -119, -31, 221], 7),
        (TOKENS, (49408, 4), "embedding", True, [14541193, 12822723, 9368955, -4953001], 23),
    ],
    ids=[
        f"{k}-{d}"
        for k in ("weight", "norm", "bias", "input", "embedding")
        for d in ("lattice", "dense")
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_value_vectors(name, shape, kind, dense, numerators, exponent, dtype) -> None:
    """The first values of each kind are these integers over a power of two, exactly."""
    values = TensorRecipe(name, shape, Kind(kind), dense).draw(dtype)
    assert values.dtype == dtype
    assert values.shape == shape
    first = values.reshape(-1)[: len(numerators)]
    assert first.tolist() == [n / 2**exponent for n in numerators]


@pytest.mark.parametrize(
    "variant", ["tiny", "tiny-lowvar", "tiny-sharp", "tiny-outlier", "tiny-offset"]
)
def test_weights_survive_half_types(variant: str) -> None:
    """No weight of a lattice regime is rounded in bfloat16 or float16."""
    weights = parse_variant(variant).weights("unet")
    for name, array in weights.items():
        assert array.dtype == np.float32
        assert bfloat16_exact(array), name
        assert float16_exact(array), name


@pytest.mark.parametrize("kind", list(Kind))
def test_dense_needs_24_bits(kind: Kind) -> None:
    """Dense values need all 24 bits of float32, and no more."""
    recipe = TensorRecipe("dense", (64, 64), kind, dense=True)
    values = recipe.draw(np.float64)
    assert np.array_equal(recipe.draw(np.float32), values)
    numerators = np.abs(values) / np.min(np.spacing(np.abs(values).max().astype(np.float32)))
    assert np.all(numerators % 2 == 1)
    assert int(numerators.max()).bit_length() == 24
    assert not float16_exact(values.astype(np.float32))


@pytest.mark.parametrize("fan_in", [1, 2, 3, 32, 36, 288, 2880, 23040, 10**9])
def test_gain_is_near_one(fan_in: int) -> None:
    """Fan-in times the weights' variance lies in (1/2, 2]."""
    variance = np.mean((2.0 * np.arange(-128, 128) + 1) ** 2) / 4.0 ** weight_exponent(fan_in)
    assert 0.5 < fan_in * variance <= 2


@pytest.mark.parametrize("dense", [False, True], ids=["lattice", "dense"])
@pytest.mark.parametrize("kind", [Kind.WEIGHT, Kind.BIAS, Kind.INPUT])
def test_values_are_symmetric(kind: Kind, *, dense: bool) -> None:
    """The mean is zero within 4 standard errors, far below the half step of plain integers."""
    values = TensorRecipe("mean", (2**10, 2**10), kind, dense).draw(np.float64)
    assert abs(values.mean()) < 4 * values.std() / 2**10
    assert values.max() == pytest.approx(-values.min(), rel=1e-4)
    assert not np.any(values == 0)


def test_border_of_an_image() -> None:
    """A border is one of rows and columns: every image and channel has it."""
    recipe = TensorRecipe("image", (2, 3, 7, 9), Kind.INPUT, border=2)
    array = recipe.draw()
    assert not array[:, :, 2:-2, 2:-2].any()
    assert np.count_nonzero(array) == 2 * 3 * (7 * 9 - 3 * 5)


@pytest.mark.parametrize(
    ("fan_in", "exponent"), [(36, 10), (320, 11), (2880, 13), (11520, 14), (1, 7)]
)
def test_exponent_vector(fan_in: int, exponent: int) -> None:
    """The exponents are those of docs/recipe.md."""
    assert weight_exponent(fan_in) == exponent


def test_variance_is_as_declared() -> None:
    """Drawn weights have the variance that the exponent was chosen for."""
    values = TensorRecipe("variance", (1024, 256), Kind.WEIGHT).draw(np.float64)
    expected = 21845 / 4.0 ** weight_exponent(256)
    assert values.var() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "apply"),
    [
        ({"shift": -5}, lambda v: v / 32),
        ({"row_shifts": ((3, 6),)}, lambda v: v * np.array([1, 1, 1, 64])[:, None]),
        ({"shift": 3, "row_shifts": ((0, 6), (3, -1))}, lambda v: v * [[512], [8], [8], [4]]),
        ({"constant": 12.0}, lambda v: np.full_like(v, 12)),
        ({"signs": True}, np.sign),
        ({"signs": True, "shift": 2}, lambda v: 4 * np.sign(v)),
        ({"border": 1}, lambda v: v * BORDER),
        ({"mean": 0.75}, lambda v: v + 0.75),
        ({"shift": -5, "mean": -3.0}, lambda v: v / 32 - 3),
        (
            {"shift": 1, "signs": True, "border": 1, "mean": 1.0},
            lambda v: 2 * np.sign(v) * BORDER + 1,
        ),
    ],
    ids=["shift", "row", "shift-and-rows", "constant", "signs", "signs-and-shift", "border",
         "mean", "mean-and-shift", "all"],
)  # fmt: skip
def test_modifiers(changes, apply) -> None:
    """Shift, row shifts, constant, signs, border and mean do what they say, in this order."""
    plain = TensorRecipe("modified", (4, 5), Kind.INPUT)
    modified = TensorRecipe("modified", (4, 5), Kind.INPUT, **changes)
    assert np.array_equal(modified.draw(np.float64), apply(plain.draw(np.float64)))


@pytest.mark.parametrize(
    ("regime", "name", "factor"),
    [
        ("lowvar", "conv_in.weight", 2.0**-7),
        ("lowvar", "down_blocks.0.attentions.0.proj_out.bias", 2.0**-7),
        ("lowvar", "down_blocks.0.attentions.0.proj_out.weight", 1),
        ("lowvar", "down_blocks.0.resnets.0.norm1.weight", 1),
        ("sharp", f"mid_block.{ATTENTION}.to_q.weight", 4),
        ("sharp", f"mid_block.{ATTENTION}.to_v.weight", 1),
        ("sharp", f"up_blocks.1.{ATTENTION}.to_q.weight", 1),
        ("outlier", "conv_in.weight", 1),
        ("offset", "conv_in.weight", 1),
    ],
)
def test_regime_scales(regime: str, name: str, factor: float) -> None:
    """A regime multiplies the layers that docs/recipe.md names, and no others."""
    unit, other = (parse_variant(v).weights("unet")[name] for v in ("tiny", f"tiny-{regime}"))
    assert np.array_equal(other, factor * unit)


def test_regime_outlier_rows() -> None:
    """The outlier regime multiplies rows 3 and n/2 + 1 by 64."""
    name = "down_blocks.0.resnets.0.conv2.weight"
    unit, other = (parse_variant(v).weights("unet")[name] for v in ("tiny", "tiny-outlier"))
    ratio = (other / unit).reshape(32, -1)
    assert np.all(ratio[[3, 17]] == 64)
    assert np.all(np.delete(ratio, [3, 17], axis=0) == 1)


def test_regime_offset_biases() -> None:
    """The offset regime sets the biases in front of norms to 12."""
    unit, other = (parse_variant(v).weights("unet") for v in ("tiny", "tiny-offset"))
    changed = {name for name in unit if unit.recipes[name] != other.recipes[name]}
    assert {name.split(".")[-2] for name in changed} == {"conv_in", "conv1", "proj_in"}
    assert all(np.all(other[name] == 12) for name in changed)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (np.arange(4, dtype="<f4"), np.arange(4, dtype=">f4"), True),
        (
            np.arange(6.0).reshape(2, 3).T,
            np.ascontiguousarray(np.arange(6.0).reshape(2, 3).T),
            True,
        ),
        (np.zeros(4, np.float32), np.zeros((2, 2), np.float32), False),
        (np.zeros(4, np.float32), np.zeros(4, np.int32), False),
        (np.zeros(1), np.float64(0), False),
        (np.zeros(4), -np.zeros(4), False),
    ],
    ids=["byte-order", "strides", "shape", "dtype", "rank", "negative-zero"],
)
def test_digest(first: np.ndarray, second: np.ndarray, *, same: bool) -> None:
    """A digest depends on dtype, shape and bits, and on nothing else."""
    assert (digest(first) == digest(np.asarray(second))) is same
