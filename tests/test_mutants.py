"""Wrong ports, one item each: all must die where they are wrong, lawful ones must live.

`-m mutants` runs the catalogue as the gate does; `sd1-conformance mutants` is faster at it, and
scores the hints too. `-m full` takes those of the networks to the published size, where most ports
have no `replace`, so that each must die in plain trace mode. That takes about 20 minutes, 3.5 GiB
of disk for weights that are drawn once (twice that more where they travel through files), and at
most 8 GiB of memory.
"""

import math
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance.case import NETWORKS, all_cases
from conformance.execution import Execution
from conformance.mutants.catalogue import CATALOGUE
from conformance.mutants.gate import cases_of, localised, try_mutant
from conformance.mutants.mutant import Mutant
from conformance.mutants.port import MutantPort
from conformance.runner import Runner
from conformance.tolerance import LIMIT, badness
from conformance.variants import parse_variant

say = partial(print, flush=True)  # `pytest -rP` shows it

NOTHING = Mutant(
    id="nothing",
    component="unet",
    wrong="Nothing is",
    cases=("tiny/base",),
    evidence="null",
    size="none",
    module=lambda _: None,
)


def item(mutant, group):
    """Return a mutant as a parameter; items of a group run in one process."""
    marks = [pytest.mark.xdist_group(group)]
    if mutant.gpu:
        marks.append(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
    return pytest.param(mutant, id=mutant.id, marks=marks)


# The gate


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", [item(m, m.component) for m in CATALOGUE if not m.null])
def test_a_mutant_dies_where_it_is_wrong(mutant):
    """A case that hunts it fails by twice the limit, first at the probe that it changes first."""
    pytest.importorskip("diffusers")
    trial = try_mutant(mutant.id)

    assert not trial.error
    assert trial.row["killed_by"], f"survives: ratio {trial.row['ratio']:.3g} at the most"
    assert mutant.heavy or badness(trial.row["ratio"]) >= 2 * LIMIT
    assert trial.row["confirmed"] or not mutant.heavy
    first = trial.row["first_divergence"]
    assert localised(mutant, trial.row), f"{first} is not at {trial.row['expected_probe']}"


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", [item(m, m.component) for m in CATALOGUE if m.null])
def test_a_null_mutant_lives(mutant):
    """Another lawful way to compute the same stays within the limit."""
    pytest.importorskip("diffusers")
    trial = try_mutant(mutant.id)

    assert not trial.error
    assert not trial.row["killed_by"]
    assert trial.row["ratio"] <= LIMIT


# The published size


def places(weights, flat):
    """Cut a flat array into the tensors of a network, each at a multiple of 64 bytes."""
    tensors, start = {}, 0
    for name, recipe in weights.recipes.items():
        size = math.prod(recipe.shape)
        tensors[name] = flat[start : start + size].reshape(recipe.shape)
        start += -(-size // 16) * 16
    return tensors


def draw(weights, path):
    """Draw weights into a new file."""
    path.unlink(missing_ok=True)
    length = weights.parameter_count() + 16 * len(weights)
    flat = np.memmap(path, np.float32, mode="w+", shape=(length,))
    for name, place in places(weights, flat).items():
        place[...] = weights[name]


def private(weights, path):
    """Map drawn weights: who writes to them writes to a copy of that page."""
    return places(weights, np.memmap(path, np.float32, mode="c"))


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """Return a function from weights to the same, drawn only if they are others than before."""
    path = tmp_path_factory.mktemp("weights") / "flat"
    kept = []

    def of(weights):
        if kept != [weights.component, weights.variant]:
            draw(weights, path)
            kept[:] = [weights.component, weights.variant]
        return private(weights, path)

    yield of
    path.unlink(missing_ok=True)


class KeptPort(MutantPort):
    """A mutant with weights that were kept; everything else about loading is the mutant's."""

    def __init__(self, mutant, keep):
        """Take the mutant and the fixture."""
        super().__init__(mutant)
        self.keep = keep

    def load(self, component, variant, weights, arithmetic, device):
        """Build sd1_impl's component and spoil it."""
        return super().load(component, variant, self.keep(weights), arithmetic, device)


def run(mutant, case, keep):
    """Run one case in plain trace mode."""
    runner = Runner(KeptPort(mutant, keep))
    runner.asks_for_age = False
    return runner.run(case, Execution(dtype=mutant.dtype, mode="trace"))


@pytest.fixture(scope="module")
def right_one_lives(keep):
    """Return a function that says whether a case lets sd1_impl itself live."""

    @cache
    def lives(case, dtype):
        return run(replace(NOTHING, dtype=dtype), case, keep).verdict in {"pass", "warn"}

    return lives


def on_sd1(mutant):
    """Return the cases that hunt a mutant at the published size, then the component's others.

    Where a scenario does not exist there, `base` of its regime stands for it. Of the others, those
    that hold every probe come first.
    """
    own = [c for c in all_cases() if c.component == mutant.component and c.variant.size == "sd1"]
    known = {case.id: case for case in own}
    hunting = []
    for case in cases_of(mutant):
        variant = case.variant.name.replace(case.variant.size, "sd1", 1)
        ids = [f"{mutant.component}/{variant}/{name}" for name in (case.scenario.name, "base")]
        hunting.append(next(known[name] for name in ids if name in known))
    others = sorted(own, key=lambda case: not case.every_probe)
    return list(dict.fromkeys([*hunting, *others]))


WHOLE = [m for m in CATALOGUE if not (m.null or m.dormant or m.gpu or m.unstable)]
NAMED = [m for m in WHOLE if m.component in NETWORKS]
BY_WEIGHTS = sorted(NAMED, key=lambda m: (m.component, m.dtype, on_sd1(m)[0].variant.name))


@pytest.mark.full
@pytest.mark.parametrize("mutant", [item(m, "sd1") for m in BY_WEIGHTS])
def test_a_mutant_dies_at_the_published_size(mutant, keep, right_one_lives):
    """A case of `sd1` fails without splicing, and does not fail without the mutant."""
    tried = []
    for case in on_sd1(mutant):
        result = run(mutant, case, keep)
        worst = result.worst
        if result.verdict == "fail" or (mutant.refuses and result.verdict == "error"):
            say(f"killed by {case.id}: {result.message}")
            assert right_one_lives(case, mutant.dtype), f"{case.id} kills sd1_impl itself"
            return
        told = f"{worst.ratio:.3g} at {worst.name}" if worst else result.message
        tried.append((-worst.ratio if worst else 0, f"{case.id}: {told}"))
    pytest.fail("survives: " + "; ".join(text for _, text in sorted(tried)))


def test_what_a_mutant_writes_to_its_weights_is_its_own(tmp_path):
    """The next one is given the weights as they were drawn."""
    weights = parse_variant("tiny").weights("text_encoder")
    draw(weights, tmp_path / "flat")
    for tensor in private(weights, tmp_path / "flat").values():
        torch.from_numpy(tensor)[...] = 0

    kept = private(weights, tmp_path / "flat")
    assert list(kept) == list(weights)
    assert all(np.array_equal(kept[name], weights[name]) for name in weights)
