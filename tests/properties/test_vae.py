"""The autoencoder: sizes, the posterior, and which pixels a latent sees."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

EXAMPLES = settings(
    max_examples=int(os.environ.get("SD1_EXAMPLES", "8")), deadline=None, derandomize=True
)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])
SEEDS = st.integers(0, 2**32 - 1)
PIXELS, LATENTS = st.integers(8, 40), st.integers(1, 5)
SCALE = 0.18215


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal data, another for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pictures(seed: int, batch: int, size: tuple[int, int], dtype=torch.float32) -> dict:
    """Return pictures and the noise of their latents."""
    return {
        "image": drawn(seed, batch, 3, *size, dtype=dtype).clamp(-1, 1),
        "noise": drawn(seed + 1, batch, 4, size[0] // 8, size[1] // 8, dtype=dtype),
    }


@EXAMPLES
@given(SEEDS, st.integers(1, 3), st.tuples(PIXELS, PIXELS), DTYPES)
def test_a_picture_has_an_eighth_of_latents_rounded_down(network, seed, batch, size, dtype):
    """Any size of at least 8 by 8; dtype and device are the picture's."""
    given_ = pictures(seed, batch, size, dtype)
    for name, tensor in network("vae_encoder", dtype)(**given_).items():
        assert tensor.shape == (batch, 4, size[0] // 8, size[1] // 8), name
        assert (tensor.dtype, tensor.device) == (dtype, given_["image"].device), name
        assert bool(tensor.isfinite().all()), name


@EXAMPLES
@given(SEEDS, st.integers(1, 3), st.tuples(LATENTS, LATENTS), DTYPES)
def test_latents_have_a_picture_of_eight_times_their_size(network, seed, batch, size, dtype):
    """Any size; dtype and device are the latents'; the picture has as many latents again."""
    latents = drawn(seed, batch, 4, *size, dtype=dtype)
    image = network("vae_decoder", dtype)(latents=latents)["image"]
    assert image.shape == (batch, 3, 8 * size[0], 8 * size[1])
    assert (image.dtype, image.device) == (dtype, latents.device)
    assert bool(image.isfinite().all())
    again = network("vae_encoder", dtype)(image=image, noise=torch.zeros_like(latents))
    assert again["mean"].shape == latents.shape


@EXAMPLES
@given(SEEDS, st.integers(1, 3), st.tuples(LATENTS, LATENTS), DTYPES, FORMATS)
def test_the_memory_format_is_kept(ours, seed, batch, size, dtype, memory):
    """Contiguous or channels-last, if weights and inputs are; diffusers makes both the latter."""
    latents = drawn(seed, batch, 4, *size, dtype=dtype).to(memory_format=memory)
    decoder, encoder = ours("vae_decoder", dtype), ours("vae_encoder", dtype)
    with decoder.laid_out(memory), encoder.laid_out(memory):
        image = decoder(latents=latents)["image"]
        again = encoder(image=image, noise=latents)["latents"]
    assert image.is_contiguous(memory_format=memory)
    assert again.is_contiguous(memory_format=memory)


@EXAMPLES
@given(st.data(), SEEDS, st.integers(1, 4), st.tuples(PIXELS, PIXELS), DTYPES)
def test_a_batch_is_its_pictures(network, data, seed, batch, size, dtype):
    """Any rows of a batch, in any order and repeated, give those rows of its output."""
    rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4), label="rows")
    given_ = pictures(seed, batch, size, dtype)
    encoder, decoder = network("vae_encoder", dtype), network("vae_decoder", dtype)
    whole, part = encoder(**given_), encoder(**{n: t[rows] for n, t in given_.items()})
    for name, tensor in part.items():
        encoder.assert_within_noise(tensor, whole[name][rows], name)
    latents = whole["latents"].contiguous()
    image, own = decoder(latents=latents)["image"], decoder(latents=latents[rows])["image"]
    decoder.assert_within_noise(own, image[rows], "image")


@EXAMPLES
@given(SEEDS, st.tuples(PIXELS, PIXELS), DTYPES)
def test_the_same_call_gives_the_same_bits(network, seed, size, dtype):
    """Nothing is drawn inside, when encoding or when decoding."""
    given_ = pictures(seed, 1, size, dtype)
    encoder, decoder = network("vae_encoder", dtype), network("vae_decoder", dtype)
    first, second = encoder(**given_), encoder(**given_)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    latents = first["latents"]
    assert torch.equal(decoder(latents=latents)["image"], decoder(latents=latents)["image"])


@EXAMPLES
@given(st.data(), SEEDS, st.integers(1, 2), st.tuples(PIXELS, PIXELS), DTYPES)
def test_a_sample_is_the_mean_and_deviations_times_noise(network, data, seed, batch, size, dtype):
    """No noise gives the scaled mean; noise in one place moves that latent alone."""
    vae = network("vae_encoder", dtype)
    given_ = pictures(seed, batch, size, dtype)
    out = vae(**given_)
    mean, logvar = out["mean"].double(), out["logvar"].double()
    wanted = (mean + torch.exp(logvar / 2) * given_["noise"].double()) * SCALE
    vae.assert_within_noise(out["latents"], wanted.to(dtype), "latents")
    silent = vae(image=given_["image"], noise=torch.zeros_like(given_["noise"]))["latents"]
    assert torch.equal(silent, out["mean"] * SCALE)
    place = data.draw(st.tuples(*(st.integers(0, n - 1) for n in mean.shape)), label="place")
    given_["noise"][place] += 1
    moved = vae(**given_)["latents"] != out["latents"]
    assert moved.nonzero().tolist() == [list(place)]


@EXAMPLES
@given(SEEDS, st.tuples(PIXELS, PIXELS), st.integers(0, 12), st.booleans())
def test_the_logarithm_of_the_variance_is_held(network, seed, size, octaves, negative):
    """However far the moments go, it stays in -30..20, and inside it is as it was."""
    vae = network("vae_encoder", torch.float64)
    seen: list[Tensor] = []

    def swell(_: nn.Module, __: tuple, moments: Tensor) -> Tensor:
        seen.append(moments * 2**octaves * (-1 if negative else 1))
        return seen[0]

    with vae.hooked({"quant_conv": swell}):
        out = vae(**pictures(seed, 1, size, torch.float64))
    mean, logvar = seen[0].chunk(2, dim=1)
    assert torch.equal(out["mean"], mean)
    assert torch.equal(out["logvar"], logvar.clamp(-30, 20))


# What convolutions alone do: norms and attention see the whole map, and are left out below.
ENCODER = "c" + "cccc" + "d" + "cccc" + "d" + "cccc" + "d" + "cccc" + "cccc" + "c"
DECODER = "c" + "cccc" + "cccccc" + "uc" + "cccccc" + "uc" + "cccccc" + "uc" + "cccccc" + "c"
"""c: a convolution of three taps; d: rows 2 i to 2 i + 2 become row i; u: row i becomes two."""
HALVES = {"vae_encoder": ("encoder", ENCODER), "vae_decoder": ("decoder", DECODER)}


@contextmanager
def convolutions(vae, half: str) -> Iterator[None]:
    """Leave norms and attention out for a while."""
    module = vae.layer(half)
    norms = {n: m for n, m in module.named_modules() if isinstance(m, nn.GroupNorm)}
    through = {f"{half}.mid_block.attentions.0": lambda _, args, __: args[0]}
    for name in norms:
        module.set_submodule(name, nn.Identity())
    try:
        with vae.hooked(through):
            yield
    finally:
        for name, norm in norms.items():
            module.set_submodule(name, norm)


def reached(layers: str, row: int, rows: int) -> tuple[int, int, int]:
    """Return the first and last row that a row reaches, and how many rows there are then."""
    first = last = row
    for layer in layers:
        if layer == "d":
            first, last, rows = (first - 1) // 2, last // 2, rows // 2
        elif layer == "u":
            first, last, rows = 2 * first, 2 * last + 1, 2 * rows
        else:
            first, last = first - 1, last + 1
        first, last = max(first, 0), min(last, rows - 1)
    return first, last, rows


def run(vae, tensor: Tensor) -> Tensor:
    """Return the mean of a picture, or the picture of latents."""
    if vae.component == "vae_decoder":
        return vae(latents=tensor)["image"]
    noise = torch.zeros(len(tensor), 4, *(side // 8 for side in tensor.shape[-2:]))
    return vae(image=tensor, noise=noise.to(tensor.dtype))["mean"]


def strip(component: str, seed: int, rows: int, *, upright: bool) -> Tensor:
    """Return a narrow picture, or latents, of that many rows, or of as many columns."""
    channels, narrow = (3, 8) if component == "vae_encoder" else (4, 1)
    size = (rows, narrow) if upright else (narrow, rows)
    return drawn(seed, 1, channels, *size, dtype=torch.float64)


@pytest.mark.parametrize("component", HALVES)
@EXAMPLES
@given(st.data(), SEEDS, st.booleans())
def test_a_row_reaches_what_the_convolutions_let_it(network, component, data, seed, upright):
    """Exactly those: rows are halved with zeros below and right alone, and the rest is even."""
    vae, (half, layers) = network(component, torch.float64), HALVES[component]
    rows = data.draw(st.integers(8, 260) if half == "encoder" else st.integers(1, 36), label="rows")
    ends = st.sampled_from([0, rows - 1])
    row = data.draw(ends | st.integers(0, rows - 1), label="row")
    tensor = strip(component, seed, rows, upright=upright)
    other = tensor.clone()
    other.select(2 if upright else 3, row).add_(1)
    with convolutions(vae, half):
        moved = (run(vae, other) != run(vae, tensor))[0].any(0).any(1 if upright else 0)
    first, last, count = reached(layers, row, rows)
    assert moved.tolist() == [first <= i <= last for i in range(count)]


@pytest.mark.parametrize("component", HALVES)
@EXAMPLES
@given(SEEDS, st.integers(1, 4), st.booleans())
def test_eight_pixels_are_a_latent(network, component, seed, step, upright):
    """A picture moved by 8 pixels has its latents moved by one, where no border is seen; back, too.

    Of the convolutions: norms and attention take the whole picture into account, borders included.
    """
    vae, (half, layers) = network(component, torch.float64), HALVES[component]
    into, out_of = (8, 1) if half == "encoder" else (1, 8)
    rows = 44 * into  # the middle sees no border
    first, last = reached(layers, 0, rows)[1] + 1, reached(layers, rows - 1, rows)[0] - 1
    long, axis = strip(component, seed, rows + step * into, upright=upright), 2 if upright else 3
    with convolutions(vae, half):
        still = run(vae, long.narrow(axis, 0, rows))
        moved = run(vae, long.narrow(axis, step * into, rows))
    shift = step * out_of
    seen = last - first + 1 - shift
    assert seen > 0
    a, b = still.narrow(axis, first + shift, seen), moved.narrow(axis, first, seen)
    vae.assert_within_noise(b, a, "mean" if half == "encoder" else "image")
