"""Dead weights: found where they are, and none in what is recorded."""

import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from conformance.case import find_case
from conformance.recording import liveness
from conformance.recording.liveness import dead_parameters

NETWORKS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
NEVER = re.compile("(?!)")


def ignore(_):
    """Say nothing."""


def complaints(component):
    """Return what is said of the parameters of `tiny` in its case `base`."""
    lines = dead_parameters([find_case(f"{component}/tiny/base")], ignore)
    return sorted(line.removeprefix(f"{component}/tiny: ") for line in lines)


def test_a_one_pixel_mid_block_has_dead_taps():
    """At 8x8 the lowest level is one pixel: all taps but the centre, and q and k, do nothing."""
    dead = " ".join(dead_parameters([find_case("unet/tiny/small")], ignore))

    assert "mid_block.resnets.0.conv1.weight: 131072 of 147456 elements are dead" in dead
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in dead
    assert "down_blocks.0.resnets.0.conv1.weight" not in dead


@pytest.mark.parametrize("component", NETWORKS)
def test_base_wakes_every_weight(component):
    """The case that every variant has leaves no weight of `tiny` without effect."""
    assert dead_parameters([find_case(f"{component}/tiny/base")], ignore) == []


def test_key_biases_of_clip_are_zero(monkeypatch):
    """What is excused as structurally zero is: key biases move nothing, and nothing else is so."""
    monkeypatch.setattr(liveness, "STRUCTURALLY_ZERO", NEVER)
    assert complaints("text_encoder") == [
        f"text_model.encoder.layers.{i}.self_attn.k_proj.bias: 64 of 64 elements are dead"
        for i in range(3)
    ]


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_key_bias_of_the_autoencoder_is_zero(half, monkeypatch):
    """So it is in the one attention of each half."""
    monkeypatch.setattr(liveness, "STRUCTURALLY_ZERO", NEVER)
    expected = f"{half}.mid_block.attentions.0.to_k.bias: 128 of 128 elements are dead"
    assert complaints(f"vae_{half}") == [expected]


def test_a_wrong_excuse_is_refused(monkeypatch):
    """What is listed as structurally zero and moves the output is a problem."""
    monkeypatch.setattr(liveness, "STRUCTURALLY_ZERO", re.compile(r".*\.to_[qk]\.bias"))
    name = "decoder.mid_block.attentions.0.to_q.bias"
    expected = f"{name}: listed as structurally zero, but it moves the output"
    assert complaints("vae_decoder") == [expected]


def test_rows_of_unused_ids_are_excused(monkeypatch):
    """Token embeddings of ids in use must move the output; one that is not in use does not."""
    case = find_case("text_encoder/tiny/base")
    used = liveness._ids_in_use([case])
    assert set(used.tolist()) == set(case.inputs()["input_ids"].reshape(-1).tolist())
    unused = next(i for i in range(49_408) if i not in used)
    monkeypatch.setattr(liveness, "_ids_in_use", lambda _: torch.tensor([*used, unused]))
    rows = len(used) + 1
    assert complaints("text_encoder") == [
        f"text_model.embeddings.token_embedding.weight: 64 of {64 * rows} elements are dead"
    ]
