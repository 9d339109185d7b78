"""The search for the fewest layers in float32, on networks that are one formula."""

from __future__ import annotations

import pytest

from conformance.audit.policy import keeping
from conformance.audit.search import Search, outermost

COSTS = {f"{block}.{i}": cost for block, cost in (("a", 8), ("b", 4), ("c", 1)) for i in range(4)}
GROUPS = [[name for name in COSTS if name.startswith(block)] for block in "abc"]
WHOLE = sum(COSTS.values())


def ratio(kept) -> float:
    """Return what is left of a ratio of 1 if every layer costs its part."""
    return 1 - sum(COSTS[name] for name in kept) / WHOLE


def block_ratio(kept) -> float:
    """Return the same where a block gains only when it is kept as a whole."""
    return ratio([name for group in GROUPS if set(group) <= set(kept) for name in group])


TARGETS = {"one": (0.85, 1), "few": (0.5, 4), "two-blocks": (0.2, 7), "all": (0.01, 12)}


@pytest.mark.parametrize(("target", "count"), TARGETS.values(), ids=TARGETS)
def test_fewest_layers(target: float, count: int) -> None:
    """What is found reaches the target, and no layer of it can be left out."""
    found = Search(ratio, target).run(GROUPS)
    assert found.reached
    assert found.minimal
    assert len(found.layers) == count
    assert ratio(found.layers) == found.ratio <= target
    assert all(ratio(set(found.layers) - {name}) > target for name in found.layers)


def test_blocks_that_gain_as_a_whole() -> None:
    """Layers of which each gains nothing alone are found together, and no others with them."""
    found = Search(block_ratio, 0.65).run(GROUPS)
    assert sorted(found.layers) == GROUPS[0]


def test_globs_name_what_was_found() -> None:
    """Whole modules are named as such; the globs fit `--keep` and match nothing else."""
    everything = ["a.x.0", "a.x.1", "a.y", "b.z", "c"]
    assert outermost(["a.x.1", "a.x.0", "b.z", "c"], everything) == ["a.x.*", "b.*", "c"]
    found = Search(block_ratio, 0.65).run(GROUPS)
    assert found.globs == ["a.*"]
    assert sorted(keeping(found.globs).of(COSTS)) == sorted(found.layers)


def test_out_of_reach() -> None:
    """A target that even all layers miss is said to be missed, after two evaluations."""
    found = Search(lambda kept: 1 - len(kept) / 100, 0.5).run(GROUPS)
    assert (found.reached, found.evaluations) == (False, 2)
    assert found.with_all == pytest.approx(0.88)


def test_nothing_to_do() -> None:
    """A ratio that is under the target needs no layer."""
    found = Search(ratio, 1.5).run(GROUPS)
    assert (found.reached, found.layers) == (True, [])


def test_cut_short() -> None:
    """With too few evaluations the answer reaches the target, and may be too large."""
    found = Search(ratio, 0.5, most=4).run(GROUPS)
    assert found.reached
    assert not found.minimal
    assert found.evaluations <= 5
