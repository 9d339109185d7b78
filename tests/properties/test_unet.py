"""The UNet: what holds for every batch, size, text length and time."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = settings(
    max_examples=int(os.environ.get("SD1_EXAMPLES", "8")), deadline=None, derandomize=True
)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 20)
TIMES = st.integers(0, 1000) | st.integers(0, 8000).map(lambda eighths: eighths / 8)
LEVELS = 4
"""Each but the last halves the map."""


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal data, another for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(seed: int, batch: int, size: tuple[int, int], tokens: int, dtype=torch.float32) -> dict:
    """Return a sample and a context; the width is that of `tiny`."""
    return {
        "sample": drawn(seed, batch, 4, *size, dtype=dtype),
        "encoder_hidden_states": drawn(seed + 1, batch, tokens, 64, dtype=dtype),
    }


@EXAMPLES
@given(SEEDS, st.integers(1, 4), st.tuples(SIDES, SIDES), st.integers(1, 77), DTYPES, FORMATS)
def test_every_shape_gives_its_own(network, seed, batch, size, tokens, dtype, memory):
    """Any batch, height, width and text length: the sample's shape, dtype, device and layout."""
    unet = network("unet", dtype)
    given_ = inputs(seed, batch, size, tokens, dtype)
    sample = given_.pop("sample").to(memory_format=memory)
    with unet.laid_out(memory):
        out = unet(**given_, sample=sample, timestep=10)["sample"]
    assert (out.shape, out.dtype, out.device) == (sample.shape, dtype, sample.device)
    assert out.is_contiguous(memory_format=memory)
    assert bool(out.isfinite().all())


@EXAMPLES
@given(st.data(), SEEDS, st.integers(1, 4), st.tuples(SIDES, SIDES), DTYPES)
def test_a_batch_is_its_samples(network, data, seed, batch, size, dtype):
    """Any rows of a batch, in any order and repeated, give those rows of its output."""
    unet = network("unet", dtype)
    given_ = inputs(seed, batch, size, 7, dtype)
    times = torch.tensor(data.draw(st.lists(TIMES, min_size=batch, max_size=batch), label="times"))
    rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4), label="rows")
    whole = unet(**given_, timestep=times)["sample"]
    part = unet(**{name: t[rows] for name, t in given_.items()}, timestep=times[rows])["sample"]
    unet.assert_within_noise(part, whole[rows], "sample")


@EXAMPLES
@given(SEEDS, st.integers(1, 3), TIMES, DTYPES)
def test_a_time_may_come_in_every_form(network, seed, batch, time, dtype):
    """An int, a float, a tensor of one for all or one each: the same bits."""
    unet = network("unet", dtype)
    given_ = inputs(seed, batch, (3, 4), 5, dtype)
    wanted = unet(**given_, timestep=time)["sample"]
    one = torch.tensor(time)
    forms = [float(time), one, one.double(), one[None], one.expand(batch).float()]
    for form in [*forms, *([int(time), one.int()] if time == int(time) else [])]:
        assert torch.equal(unet(**given_, timestep=form)["sample"], wanted), form


@EXAMPLES
@given(st.data(), SEEDS, st.integers(1, 38), st.booleans())
def test_the_order_of_the_text_is_no_input(network, data, seed, tokens, twice):
    """Permuted tokens, and each of them as often again, give the same: the text encoder orders."""
    unet = network("unet")
    given_ = inputs(seed, 2, (8, 8), tokens)
    context = given_.pop("encoder_hidden_states")
    order = data.draw(st.permutations(range(tokens)), label="order") * (1 + twice)
    wanted = unet(**given_, encoder_hidden_states=context, timestep=10)["sample"]
    got = unet(**given_, encoder_hidden_states=context[:, order], timestep=10)["sample"]
    unet.assert_within_noise(got, wanted, "sample")


@EXAMPLES
@given(SEEDS, st.integers(1, 70), st.integers(1, 12), st.booleans())
def test_sizes_are_halved_upwards_and_come_back(network, seed, long, short, upright):
    """A level has half of the one above, rounded up; going up its maps get that size again."""
    unet = network("unet")
    size = (long, short) if upright else (short, long)
    sizes = [size]
    for _ in range(LEVELS - 1):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        return lambda _, __, out: seen.update({name: tuple(out.shape[-2:])})

    wanted = {f"down_blocks.{i}.downsamplers.0": sizes[i + 1] for i in range(LEVELS - 1)}
    wanted |= {f"up_blocks.{i}.upsamplers.0": sizes[LEVELS - 2 - i] for i in range(LEVELS - 1)}
    with unet.hooked({path: note(path) for path in wanted}):
        out = unet(**inputs(seed, 1, size, 2), timestep=10)["sample"]
    assert seen == wanted
    assert out.shape[-2:] == size


@pytest.mark.parametrize("batch", [1, 3])
def test_every_input_matters(network, batch):
    """Another sample, time or text is another output: the properties above are not those of 0."""
    unet = network("unet")
    given_ = inputs(1, batch, (8, 8), 7) | {"timestep": torch.tensor(10)}
    wanted = unet(**given_)["sample"]
    for name, tensor in given_.items():
        assert not torch.equal(unet(**given_ | {name: tensor + 1})["sample"], wanted), name
