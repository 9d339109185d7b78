"""What `sd1_impl` does not admit: a ValueError that names the input and what is wrong with it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd1_impl import DiagonalGaussian

EXAMPLES = settings(
    max_examples=int(os.environ.get("SD1_EXAMPLES", "30")), deadline=None, derandomize=True
)
VOCABULARY = 49_408
INTEGERS = (torch.int64, torch.int32, torch.uint8, torch.bool)
Spoil = Callable[[st.DrawFn, Tensor], tuple[Tensor, str]]
"""Makes of a good input a bad one, and the words that have to be in the message."""


def shaped(tensor: Tensor, *shape: int) -> tuple[Tensor, str]:
    """Give a tensor another shape; that is what the message has to say."""
    values = torch.zeros(prod(shape), dtype=tensor.dtype)
    return values.reshape(shape), str(tuple(shape))


def other_axes(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """One axis too few, or one too many."""
    shape = tensor.shape
    return shaped(tensor, *draw(st.sampled_from([shape[1:], (1, *shape), (*shape, 1)])))


def an_empty_axis(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """Nothing at all."""
    axis = draw(st.integers(0, tensor.ndim - 1))
    return shaped(tensor, *(0 if i == axis else n for i, n in enumerate(tensor.shape)))


def another_size(axis: int, sizes: st.SearchStrategy[int]) -> Spoil:
    """Another size of one axis."""

    def spoil(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
        size = draw(sizes.filter(lambda n: n != tensor.shape[axis]))
        return shaped(tensor, *(size if i == axis else n for i, n in enumerate(tensor.shape)))

    return spoil


def whole_numbers(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """No floating point."""
    dtype = draw(st.sampled_from(INTEGERS))
    return tensor.to(dtype), str(dtype)


def another_precision(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """Floating point, but not the weights'."""
    dtype = draw(st.sampled_from([torch.float64, torch.float16, torch.bfloat16]))
    return tensor.to(dtype), str(dtype)


def another_device(_: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """Where the weights are not."""
    return tensor.to("meta"), "is on meta"


def no_ids(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """Numbers of a kind that ids never are."""
    dtype = draw(st.sampled_from([torch.float32, torch.bool, torch.uint8, torch.int16]))
    return tensor.to(dtype), str(dtype)


def no_row(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """An id that the table does not have, somewhere."""
    wrong = draw(st.integers(-(2**40), -1) | st.integers(VOCABULARY, 2**40))
    ids = tensor.clone()
    ids[draw(st.integers(0, len(ids) - 1)), draw(st.integers(0, ids.shape[1] - 1))] = wrong
    return ids, f"id {wrong}, "


def one_each_of_others(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """Neither one timestep nor one per sample, of a batch of two."""
    shape = draw(st.sampled_from([(0,), (3,), (4,), (2, 1), (1, 1), (1, 2)]))
    return shaped(tensor, *shape)


def another_batch(draw: st.DrawFn, tensor: Tensor) -> tuple[Tensor, str]:
    """Texts of more or fewer samples."""
    batch = draw(st.integers(1, 5).filter(lambda n: n != len(tensor)))
    return shaped(tensor, batch, *tensor.shape[1:])[0], f"batch size {batch}, sample has 2"


FLOATS: dict[str, Spoil] = {
    "axes": other_axes,
    "empty": an_empty_axis,
    "integers": whole_numbers,
    "precision": another_precision,
    "device": another_device,
}
CHANNELS = st.integers(1, 9)


@dataclass(frozen=True)
class Call:
    """A call that is in order.

    Attributes:
        component: As in a case's id.
        shapes: Of its floating inputs, by name.
        spoils: By input, what it does not admit.
        ids: Shape of its ids, if it reads any.
    """

    component: str
    shapes: dict[str, tuple[int, ...]]
    spoils: dict[str, dict[str, Spoil]]
    ids: tuple[int, ...] = ()

    def inputs(self) -> dict[str, Tensor]:
        """Return inputs that are accepted."""
        given_ = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        return given_ | ({"input_ids": torch.ones(self.ids, dtype=torch.int64)} if self.ids else {})


CALLS = (
    Call(
        "unet",
        {"sample": (2, 4, 3, 5), "timestep": (2,), "encoder_hidden_states": (2, 6, 64)},
        {
            "sample": FLOATS | {"channels": another_size(1, CHANNELS)},
            "timestep": {"shape": one_each_of_others},
            "encoder_hidden_states": FLOATS
            | {"width": another_size(2, st.integers(1, 800)), "batch": another_batch},
        },
    ),
    Call(
        "text_encoder",
        {},
        {
            "input_ids": {
                "axes": other_axes,
                "empty": an_empty_axis,
                "length": lambda draw, ids: (
                    ids[:, :1].repeat(1, n := draw(st.integers(78, 300))),
                    f"{n} tokens",
                ),
                "row": no_row,
                "kind": no_ids,
                "device": another_device,
            }
        },
        ids=(2, 9),
    ),
    Call(
        "vae_encoder",
        {"image": (2, 3, 16, 9), "noise": (2, 4, 2, 1)},
        {
            "image": FLOATS
            | {
                "channels": another_size(1, CHANNELS),
                "height": another_size(2, st.integers(1, 7)),
                "width": another_size(3, st.integers(1, 7)),
            },
            "noise": FLOATS | {"batch": another_size(0, st.integers(1, 3))},
        },
    ),
    Call(
        "vae_decoder",
        {"latents": (2, 4, 2, 1)},
        {"latents": FLOATS | {"channels": another_size(1, CHANNELS)}},
    ),
)
WRONG = {
    f"{call.component}-{name}-{kind}": (call, name, spoil)
    for call in CALLS
    for name, spoils in call.spoils.items()
    for kind, spoil in spoils.items()
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.component)
def test_what_is_spoilt_below_is_accepted_before(ours, call):
    """The refusals have no other reason than what was spoilt."""
    ours(call.component)(**call.inputs())


@pytest.mark.parametrize(("call", "name", "spoil"), WRONG.values(), ids=WRONG)
@EXAMPLES
@given(st.data())
def test_what_is_not_admitted_is_named(ours, call, name, spoil, data):
    """The message begins with the input's name and says what it is instead."""
    given_ = call.inputs()

    def draw(strategy: st.SearchStrategy):
        return data.draw(strategy)

    wrong, words = spoil(draw, given_[name])
    network = ours(call.component)
    with pytest.raises(ValueError, match=rf"^{name} ") as refusal, torch.no_grad():
        network.call(network.module, given_ | {name: wrong})
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_under_autocast_every_floating_dtype_is_admitted(ours):
    """Autocast casts what layers read: it is asked for by who wants mixed dtypes."""
    unet, encoder = ours("unet"), ours("vae_encoder")
    noise = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    posterior = DiagonalGaussian(torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        sample = unet.module(
            torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16), 1, torch.zeros(1, 3, 64)
        )
        mean = encoder.module.encode(torch.zeros(1, 3, 8, 8).bfloat16()).mean
        drawn = posterior.sample(noise)
    assert (sample.shape, mean.shape) == ((1, 4, 2, 2), (1, 4, 1, 1))
    assert torch.equal(drawn, noise)
