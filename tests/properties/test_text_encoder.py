"""The text encoder: what holds for every batch of ids; above all, that it looks only back."""

import os

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = settings(
    max_examples=int(os.environ.get("SD1_EXAMPLES", "20")), deadline=None, derandomize=True
)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
START, END = 49_406, 49_407
LONGEST = 77


@st.composite
def texts(draw: st.DrawFn, most: int = 3, shortest: int = 1) -> Tensor:
    """Draw rows of any ids, ends of text among them or not."""
    shape = draw(st.integers(1, most)), draw(st.integers(shortest, LONGEST))
    seed = draw(st.integers(0, 2**32 - 1))
    ids = torch.randint(0, START, shape, generator=torch.Generator().manual_seed(seed))
    for row in ids:
        ends = draw(st.lists(st.integers(0, shape[1] - 1), max_size=3))
        row[ends] = END
    return ids


@EXAMPLES
@given(texts(), DTYPES, st.sampled_from([torch.int64, torch.int32]))
def test_every_text_gives_a_state_per_token(network, ids, dtype, integer):
    """Any batch and length up to 77: a state per token and one per text, in the weights' dtype."""
    encoder = network("text_encoder", dtype)
    out = encoder(input_ids=ids.to(integer))
    hidden, pooled = out["last_hidden_state"], out["pooler_output"]
    assert hidden.shape == (*ids.shape, 64)
    assert pooled.shape == (len(ids), 64)
    assert hidden.dtype == pooled.dtype == dtype
    assert hidden.device == pooled.device == ids.device
    assert hidden.is_contiguous()
    assert bool(hidden.isfinite().all())


@EXAMPLES
@given(st.data(), texts(), DTYPES)
def test_a_batch_is_its_texts(network, data, ids, dtype):
    """Any rows of a batch, in any order and repeated, give those rows of its output."""
    encoder = network("text_encoder", dtype)
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=4), label="rows")
    whole, part = encoder(input_ids=ids), encoder(input_ids=ids[rows])
    for name, tensor in part.items():
        encoder.assert_within_noise(tensor, whole[name][rows], name)


@EXAMPLES
@given(st.data(), texts(shortest=2))
def test_a_token_never_sees_a_later_one(network, data, ids):
    """Later tokens change no bit of a state, and whether there are any none but by rounding."""
    encoder = network("text_encoder")
    place = data.draw(st.integers(0, ids.shape[1] - 2), label="place")
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    other = ids.clone()
    later = other[:, place + 1 :]
    later.random_(0, START, generator=torch.Generator().manual_seed(seed))
    before = encoder(input_ids=ids)["last_hidden_state"][:, : place + 1]
    after = encoder(input_ids=other)["last_hidden_state"][:, : place + 1]
    alone = encoder(input_ids=ids[:, : place + 1])["last_hidden_state"]
    assert torch.equal(after, before)
    encoder.assert_within_noise(alone, before, "last_hidden_state")


@EXAMPLES
@given(st.data(), texts())
def test_every_later_token_sees_it(network, data, ids):
    """Another token changes its own state and each one after."""
    encoder = network("text_encoder")
    place = data.draw(st.integers(0, ids.shape[1] - 1), label="place")
    word = data.draw(st.integers(0, END), label="word")
    assume(bool((ids[:, place] != word).all()))
    before = encoder(input_ids=ids)["last_hidden_state"]
    other = ids.clone()
    other[:, place] = word
    after = encoder(input_ids=other)["last_hidden_state"]
    assert bool((after != before).any(dim=-1)[:, place:].all())


@EXAMPLES
@given(texts())
def test_the_pooled_output_is_the_state_at_the_first_end(network, ids):
    """Later ends are padding; where there is no end it is the state at the start."""
    out = network("text_encoder")(input_ids=ids)
    for row, states, pooled in zip(ids, *out.values(), strict=True):
        ends = (row == END).nonzero().flatten().tolist()
        assert torch.equal(pooled, states[ends[0] if ends else 0])


@EXAMPLES
@given(texts())
def test_what_follows_the_first_end_does_not_reach_the_pooled_output(network, ids):
    """Padding with anything but the end of text gives the same bits."""
    encoder = network("text_encoder")
    padded = ids.clone()
    for row in padded:
        ends = (row == END).nonzero().flatten().tolist()
        row[ends[0] + 1 if ends else len(row) :] = 0
    wanted = encoder(input_ids=ids)["pooler_output"]
    assert torch.equal(encoder(input_ids=padded)["pooler_output"], wanted)
