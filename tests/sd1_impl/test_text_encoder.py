"""The text encoder against transformers' CLIPTextModel: keys, numbers; causality, pooling, manners.

Small widths, random weights, the real vocabulary.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd1_impl import SD_V1_TEXT_ENCODER, CLIPTextEncoder, TextEncoderConfig

START, END = 49_406, 49_407
TINY = replace(SD_V1_TEXT_ENCODER, hidden_size=64, intermediate_size=256, num_layers=3, num_heads=4)
ODD = replace(TINY, hidden_size=72, intermediate_size=304, num_layers=2, num_heads=6)
ROUNDING = 64 * torch.finfo(torch.float64).eps
EXAMPLES = settings(max_examples=15, deadline=None)


def reference(config: TextEncoderConfig, **changes):
    """Return transformers' text encoder of this shape."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_position_embeddings,
        **changes,
    )
    return transformers.CLIPTextModel(theirs).eval()


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give transformers' keys the prefix of the published file, which transformers 5 dropped."""
    return {f"text_model.{key}": value for key, value in state.items()}


def text(batch: int, length: int) -> Tensor:
    """Return ids as a tokenizer makes them: start, words, end, and the end again as padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, START, (batch, length), generator=generator)
    ids[:, 0] = START
    for row in range(batch):
        ids[row, max(1, length // 2 - row) :] = END
    return ids


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 distance."""
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def encoder(randomise) -> CLIPTextEncoder:
    """A small text encoder in float64."""
    return randomise(CLIPTextEncoder(TINY).double())


@pytest.fixture(scope="module", params=[TINY, ODD], ids=["tiny", "odd"])
def double(request, randomise) -> tuple:
    """Our encoder and transformers' in float64 with the same random weights, loaded strictly."""
    theirs = randomise(reference(request.param).double())
    ours = CLIPTextEncoder(request.param).double()
    ours.load_state_dict(published(theirs.state_dict()), strict=True)
    return ours, theirs


@pytest.mark.parametrize("config", [SD_V1_TEXT_ENCODER, ODD], ids=["sd1", "odd"])
def test_keys_and_shapes_are_the_checkpoints(config: TextEncoderConfig):
    """A published state dict needs no rename table, down to the order of its keys."""
    with torch.device("meta"):
        ours, theirs = CLIPTextEncoder(config), reference(config)
    shapes = [(key, value.shape) for key, value in ours.state_dict().items()]
    wanted = published(theirs.state_dict())
    assert shapes == [(key, value.shape) for key, value in wanted.items()]


def test_the_full_size_has_the_published_number_of_parameters():
    """ViT-L/14's text encoder: 123,060,480 parameters and no buffer."""
    with torch.device("meta"):
        model = CLIPTextEncoder(SD_V1_TEXT_ENCODER)
    assert sum(parameter.numel() for parameter in model.parameters()) == 123_060_480
    assert not list(model.buffers())


@torch.no_grad()
def test_built_without_memory_it_takes_over_the_weights(encoder):
    """A model made on the meta device and given its weights computes: nothing else has a value."""
    with torch.device("meta"):
        other = CLIPTextEncoder(TINY)
    other.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    for got, wanted in zip(other(text(2, 9)), encoder(text(2, 9)), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("size", [(1, 77), (3, 77), (2, 13), (2, 1)], ids="{0[0]}x{0[1]}".format)
@torch.no_grad()
def test_float64_output_is_transformers(double: tuple, size: tuple[int, int]):
    """Any batch and length give transformers' last hidden state and pooled output, to rounding."""
    ours, theirs = double
    ids = text(*size)
    hidden, pooled = ours(ids)
    wanted = theirs(ids)
    assert hidden.dtype == pooled.dtype == torch.float64
    assert relative_error(hidden, wanted.last_hidden_state) < ROUNDING
    assert relative_error(pooled, wanted.pooler_output) < ROUNDING


@torch.no_grad()
def test_every_module_reads_and_returns_what_transformers_does(double: tuple, calls):
    """Same modules, called once each in the same order, on the same tensors, to rounding."""
    ours, theirs = double
    with calls(ours.text_model) as got, calls(theirs) as wanted:
        ours(text(2, 20))
        theirs(text(2, 20))
    paths = [path for path, _, _ in got]
    assert len(paths) == len(set(paths))
    assert sorted(paths) == sorted(path for path, _, _ in wanted)
    theirs_seen = {path: tensors for path, *tensors in wanted}
    for path, *tensors in got:
        for a, b in zip(tensors, theirs_seen[path], strict=True):
            if not path.endswith("position_embedding"):  # one row of positions here, (1, L) there
                assert a.shape == b.shape, path
            assert relative_error(a.double(), b.double()) < ROUNDING, path


@torch.no_grad()
def test_each_constant_is_transformers_and_reaches_the_output(randomise):
    """At activations of tiny variance float64 still agrees, and no constant changes unnoticed."""
    theirs = randomise(reference(TINY).double())
    for name, parameter in theirs.named_parameters():
        if "norm" not in name:
            parameter.mul_(1 / 16)
    ours = CLIPTextEncoder(TINY).double()
    ours.load_state_dict(published(theirs.state_dict()))
    wanted = theirs(text(2, 9)).last_hidden_state
    assert relative_error(ours(text(2, 9))[0], wanted) < ROUNDING
    for change in ({"layer_norm_eps": 1e-6}, {"quick_gelu_coefficient": 1.7}):
        wrong = CLIPTextEncoder(replace(TINY, **change)).double()
        wrong.load_state_dict(ours.state_dict())
        assert relative_error(wrong(text(2, 9))[0], wanted) > 1e-6, change


@EXAMPLES
@given(place=st.integers(0, 11), later=st.lists(st.integers(0, END), min_size=12, max_size=12))
@torch.no_grad()
def test_a_token_never_sees_a_later_one(encoder, place: int, later: list[int]):
    """What comes after a token changes no bit of its state, nor whether it comes at all."""
    ids = text(2, 12)
    before, _ = encoder(ids)
    changed = ids.clone()
    changed[:, place + 1 :] = torch.tensor(later)[place + 1 :]
    after, _ = encoder(changed)
    assert torch.equal(after[:, : place + 1], before[:, : place + 1])
    cut, _ = encoder(ids[:, : place + 1])
    assert relative_error(cut, before[:, : place + 1]) < ROUNDING


@EXAMPLES
@given(place=st.integers(0, 11))
@torch.no_grad()
def test_every_later_token_sees_it(encoder, place: int):
    """Another word changes its own state and each one after."""
    ids = text(1, 12)
    before, _ = encoder(ids)
    ids[0, place] = 7
    after, _ = encoder(ids)
    assert torch.all((after != before).any(dim=-1)[0, place:])


@torch.no_grad()
def test_texts_of_a_batch_do_not_meet(encoder):
    """A text alone is encoded as in a batch."""
    ids = text(3, 20)
    hidden, pooled = encoder(ids)
    for row in range(3):
        alone, alone_pooled = encoder(ids[row : row + 1])
        assert relative_error(alone[0], hidden[row]) < ROUNDING
        assert relative_error(alone_pooled[0], pooled[row]) < ROUNDING


@EXAMPLES
@given(ends=st.lists(st.sets(st.integers(0, 8), min_size=1), min_size=1, max_size=3))
@torch.no_grad()
def test_the_pooled_output_is_the_state_at_the_first_end(encoder, ends: list[set[int]]):
    """Later ends are padding; the older rule, the first largest id, is the same place."""
    ids = torch.randint(0, END, (len(ends), 9), generator=torch.Generator().manual_seed(2))
    for row, places in enumerate(ends):
        ids[row, list(places)] = END
    hidden, pooled = encoder(ids)
    for row, places in enumerate(ends):
        assert torch.equal(pooled[row], hidden[row, min(places)])
        assert torch.equal(pooled[row], hidden[row, ids[row].argmax()])


@torch.no_grad()
def test_the_published_end_of_text_id_2_means_the_same(double: tuple):
    """Transformers reads `eos_token_id: 2` as the largest id, and pools where we do."""
    ours, theirs = double
    older = reference(ours.config, eos_token_id=2).double()
    older.load_state_dict(theirs.state_dict())
    assert relative_error(ours(text(3, 30))[1], older(text(3, 30)).pooler_output) < ROUNDING


def test_ids_are_left_alone_and_gradients_reach_every_parameter(randomise):
    """Neither forward nor backward edits the caller's tensor; no parameter is dead."""
    ours, ids = randomise(CLIPTextEncoder(TINY)), text(2, 20)
    ours(ids)[0].square().mean().backward()
    assert torch.equal(ids, text(2, 20))
    # A bias of the keys adds the same to all scores of a query, which softmax does not see.
    named = [(n, p.grad) for n, p in ours.named_parameters() if not n.endswith("k_proj.bias")]
    assert all(grad is not None and grad.any() for _, grad in named)


BAD_INPUTS = {
    "no-batch": ((77,), r"input_ids has shape \(77,\), expected \(B, L\)"),
    "no-text": ((2, 0), r"input_ids has shape \(2, 0\)"),
    "too-long": ((1, 78), "78 tokens per text, the position table has 77 rows"),
}


@pytest.mark.parametrize(("shape", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_a_wrong_shape_is_named(shape: tuple, message: str):
    """Ids that do not fit are refused with their shape and the one expected."""
    with torch.device("meta"):
        model, ids = CLIPTextEncoder(TINY), torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        model(ids)


BAD_CONFIGS = {
    "heads": ({"num_heads": 7}, "hidden_size 768 is not divisible by 7 heads"),
    "end": ({"vocab_size": 1000}, "eos_token_id 49407 is outside the vocabulary of 1000"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_wrong_config_is_refused(change: dict, message: str):
    """A config that cannot be a text encoder says why."""
    with pytest.raises(ValueError, match=message):
        replace(SD_V1_TEXT_ENCODER, **change)
