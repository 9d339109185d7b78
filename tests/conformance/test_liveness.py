"""Dead weights: found where they are, and none in what is recorded."""

import pytest

pytest.importorskip("diffusers")

from conformance.case import find_case
from conformance.liveness import dead_parameters


def ignore(_):
    """Say nothing."""


def test_a_one_pixel_mid_block_has_dead_taps():
    """At 8x8 the lowest level is one pixel: all taps but the centre, and q and k, do nothing."""
    dead = " ".join(dead_parameters([find_case("unet/tiny/small")], ignore))

    assert "mid_block.resnets.0.conv1.weight: 131072 of 147456 elements are dead" in dead
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in dead
    assert "down_blocks.0.resnets.0.conv1.weight" not in dead


def test_base_wakes_every_weight():
    """The case that every variant has leaves no weight of `tiny` without effect."""
    assert dead_parameters([find_case("unet/tiny/base")], ignore) == []
