"""What is said of where an error is: each rule on a planted error, and silence on noise."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.evidence.captions import caption
from conformance.evidence.error_map import Errors
from conformance.evidence.error_places import Probe
from conformance.evidence.tensor_axes import axes_of

MAP, TOKENS, VECTORS = (2, 8, 8, 12), (2, 24, 32), (3, 32)
CONV = Probe("down_blocks.0.resnets.0.conv1")
NORM = Probe("down_blocks.0.resnets.0.norm1", groups=4)
QUERY = Probe("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", heads=4)
UP = Probe("up_blocks.0.upsamplers.0.conv")
SIZE = 1000.0
"""Of the truth, in units of noise."""


def truth_of(shape, seed=0):
    """Draw what is right, in units of noise; a table has the unit of each entry."""
    if len(shape) == 1:
        return np.full(shape, SIZE)
    return SIZE * np.random.default_rng(seed).standard_normal(shape)


def errors_of(got, truth, name=""):
    """Put a tensor beside the truth, with honest noise of ratio 1."""
    noise = np.random.default_rng(1).standard_normal(truth.shape)
    return Errors(got + noise, truth, axes_of(name, truth.shape))


def planted(shape, place, size, probe):
    """Return the caption of errors of one size at some places."""
    truth = truth_of(shape)
    got = truth.copy()
    got[place] += size * np.random.default_rng(2).choice([-1.0, 1.0], size=got[place].shape)
    return caption(errors_of(got, truth), probe)


ALL = slice(None)
BORDER = np.ones((8, 12), bool)
BORDER[1:-1, 1:-1] = False
WIDE = np.ones((8, 12), bool)
WIDE[2:-2, 2:-2] = False
DIAGONAL = np.indices((8, 12)).sum(0) % 2 == 1
BLOB = np.zeros((8, 12), bool)
BLOB[2, 3] = BLOB[4, 5] = BLOB[5, 9] = True

PLACES = {
    "last-column": (MAP, (..., -1), CONV, "last column only: padding"),
    "first-two": (
        MAP,
        (ALL, ALL, (BORDER & ~np.pad(np.ones((7, 11), bool), ((1, 0), (1, 0)))), ...),
        CONV,
        "first row and first column only: padding",
    ),
    "border": (MAP, (ALL, ALL, BORDER), CONV, "border only: padding"),
    "wide-border": (MAP, (ALL, ALL, WIDE), CONV, "border only, 2 wide: padding"),
    "no-padding-in-a-norm": (MAP, (..., -1), NORM, "last column only"),
    "row": (MAP, (ALL, ALL, 3), CONV, "row 3 only"),
    "rows": (MAP, (ALL, ALL, slice(2, 5)), CONV, "rows 2 to 4 only"),
    "checkerboard": (MAP, (ALL, ALL, DIAGONAL), UP, "checkerboard: upsampling"),
    "second-row": (MAP, (ALL, ALL, slice(1, None, 2)), CONV, "every second row, from 1"),
    "blob": (MAP, (ALL, ALL, BLOB), CONV, "3 of 96 places of the map only"),
    "second-channel": (MAP, (ALL, slice(0, None, 2)), CONV, "every second channel, from 0"),
    "group": (MAP, (ALL, slice(2, 4)), NORM, "channels 2 and 3 only: one group of the norm"),
    "groups": (MAP, (ALL, slice(2, 6)), NORM, "channels 2 to 5 only: 2 groups of the norm"),
    "no-group": (MAP, (ALL, slice(1, 4)), NORM, "channels 1 to 3 only"),
    "channels": (MAP, (ALL, [1, 4, 6]), CONV, "channels 1, 4 and 6 only"),
    "many-channels": (MAP, (ALL, [0, 1, 3, 4, 6]), CONV, "5 of 8 channels only"),
    "but-one-channel": (MAP, (ALL, [0, 1, 2, 4, 5, 6, 7]), CONV, "every channel but 3"),
    "batch-item": (MAP, 1, CONV, "batch item 1 only"),
    "two-facts": (MAP, (1, 5), CONV, "batch item 1 only, channel 5 only"),
    "three-facts": (
        MAP,
        (1, 5, 7),
        CONV,
        "batch item 1 only, channel 5 only, last row only: padding",
    ),
    "head": (TOKENS, (..., slice(24, 32)), QUERY, "head 3 only"),
    "not-a-head": (TOKENS, (..., slice(24, 26)), QUERY, "features 24 and 25 only"),
    "token": (TOKENS, (ALL, -1), QUERY, "last token only"),
    "but-the-first": (TOKENS, (ALL, slice(1, None)), QUERY, "every token but the first"),
    "one-element": (TOKENS, (1, 5, 9), QUERY, "one element"),
    "entry": ((1000,), 500, Probe("betas"), "step 500 only"),
}


@pytest.mark.parametrize(("shape", "place", "probe", "words"), PLACES.values(), ids=PLACES)
def test_where(shape, place, probe, words):
    """Where alone the error is, is said, whatever its size."""
    for size in (30.0, 1e6) if words != "one element" else (200.0, 1e6):
        assert planted(shape, place, size, probe) == words


def told(change, shape=MAP, probe=CONV, seed=0):
    """Return the caption where a port computes a function of the truth."""
    truth = truth_of(shape, seed)
    return caption(errors_of(change(truth.copy()), truth), probe)


def with_bias(truth):
    """Add an offset to each channel."""
    return truth + 50 * np.arange(1, 9)[:, None, None]


def with_eps(truth):
    """Scale each channel about its bias, as another eps does."""
    centre = 300 * np.random.default_rng(3).standard_normal((1, 8, 1, 1))
    factor = np.random.default_rng(4).uniform(0.8, 0.95, (2, 8, 1, 1))
    return centre + factor * (truth - centre)


def with_token_eps(truth):
    """Scale each token about a bias of the features."""
    centre = 300 * np.random.default_rng(3).standard_normal(truth.shape[-1])
    factor = np.random.default_rng(4).uniform(0.8, 0.95, (*truth.shape[:-1], 1))
    return centre + factor * (truth - centre)


def swapped(truth):
    """Exchange two heads."""
    heads = truth.reshape(2, 24, 4, 8)
    return heads[:, :, [0, 2, 1, 3]].reshape(truth.shape)


def growing(truth):
    """Err more from row to row."""
    noise = np.random.default_rng(5).choice([-1.0, 1.0], truth.shape)
    return truth + noise * 40 * np.arange(1, 9)[:, None]


def with_unbiased_variance(truth):
    """Scale all channels alike, each about a bias of its own."""
    centre = 300 * np.random.default_rng(3).standard_normal((1, 8, 1, 1))
    return centre + 0.95 * (truth - centre)


OF_NORM = ": weights, variance or eps of the norm"
KINDS = {
    "scale": (lambda t: 1.01 * t, "everything alike, 1 % too large: a scale"),
    "factor": (lambda t: 0.5 * t, "everything alike, times 0.5: a scale"),
    "offset": (lambda t: t + 40, "everything alike, one offset"),
    "bias": (with_bias, "each channel has an offset of its own: a bias"),
    "range": (lambda t: t / 2 + 700, "everything alike, times 0.5 and an offset: a range"),
    "sign": (lambda t: -t, "the sign is wrong"),
    "zeros": (lambda t: 0 * t, "all zeros"),
    "halves": (lambda t: np.roll(t, 4, 1), "the halves of the channels are exchanged"),
    "upside-down": (lambda t: t[:, :, ::-1], "rows in reverse"),
    "first-for-all": (lambda t: np.stack([t[0]] * 2), "every batch item is like the first"),
    "trend": (growing, "grows with the row"),
    "unrelated": (
        lambda t: truth_of(t.shape, seed=9),
        "unrelated to what is right: other weights, or another order",
    ),
}


@pytest.mark.parametrize(("change", "words"), KINDS.values(), ids=KINDS)
def test_what_it_is_like(change, words):
    """What the error is like is said, where that explains it."""
    assert told(change) == words


def test_factors_of_norms():
    """A norm's eps shows as a factor of each channel, or of each token, about its bias."""
    assert (
        told(with_eps, probe=NORM) == f"each channel of each item has a factor of its own{OF_NORM}"
    )
    assert told(with_unbiased_variance, probe=NORM) == (
        f"5 % too small about the mean of each channel{OF_NORM}"
    )
    layer_norm = Probe("transformer_blocks.0.norm1")
    assert told(with_token_eps, TOKENS, layer_norm) == (
        f"each token has a factor of its own{OF_NORM}"
    )


def test_where_and_how():
    """A channel that is scaled is found, and then what it is scaled by."""

    def change(truth):
        truth[:, 3] *= 1.02
        return truth

    assert told(change) == "channel 3 only, 2 % too large: a scale"
    assert told(swapped, TOKENS, QUERY) == "heads 1 and 2 only, exchanged"


def test_a_scheduler_has_no_weights():
    """Where nothing is made with weights, other weights are no cause."""
    step = Probe("samples#3", weighted=False)
    assert told(lambda t: truth_of(t.shape, seed=9), probe=step) == "unrelated to what is right"


def test_square_maps_turned():
    """Rows for columns is told on square maps."""
    assert told(lambda t: np.swapaxes(t, 2, 3), (2, 8, 8, 8)) == "rows and columns are exchanged"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((ALL, ALL), "no value is finite"),
        ((..., -1), "not finite: last column only: padding"),
        ((0, 2, 1, 1), "not finite: batch item 0 only, channel 2 only, row 1 only, column 1 only"),
    ],
    ids=["all", "column", "one"],
)
def test_not_finite(place, words):
    """Where values are not finite is said, and nothing of the others."""
    truth = truth_of(MAP)
    got = truth.copy()
    got[place] = np.nan
    assert caption(Errors(got, truth, axes_of("", MAP)), CONV) == words


HONEST = {
    "white": lambda rng, truth: rng.standard_normal(truth.shape),
    "of-the-size-of-values": lambda rng, truth: rng.standard_normal(truth.shape) * truth / SIZE,
    "heavy-tailed": lambda rng, truth: rng.standard_t(3, truth.shape) / np.sqrt(3),
    "small": lambda rng, truth: 0.1 * rng.standard_normal(truth.shape),
}


@pytest.mark.parametrize("noise", HONEST.values(), ids=HONEST)
@pytest.mark.parametrize("probe", [CONV, NORM, QUERY, UP], ids=["conv", "norm", "query", "up"])
def test_silent_on_noise(noise, probe):
    """Noise, at the limit or a thousand times it, large channels or not: nothing is said."""
    said = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shape = TOKENS if probe is QUERY else MAP
        truth = truth_of(shape, seed)
        truth[:, 3] *= rng.choice([1, 30])  # an outlier channel, or token
        for times in (1.0, 4.0, 6.0, 20.0, 4000.0):
            errors = Errors(truth + times * noise(rng, truth), truth, axes_of("", shape))
            said.append(caption(errors, probe))
    assert {words for words in said if "unrelated" not in words} == {""}


def test_silent_on_tiny_tensors():
    """Where there is too little to tell from, nothing is said."""
    rng = np.random.default_rng(0)
    for shape in [(), (1,), (3,), (1, 4), (2, 4, 1, 1), (2, 4, 2, 3)]:
        truth = truth_of(shape)
        errors = Errors(truth + 6 * rng.standard_normal(shape), truth, axes_of("", shape))
        assert caption(errors, CONV) == ""
