"""Wrong ports, one item each: all must die where they are wrong, lawful ones must live.

`-m mutants` runs the catalogue as the gate does; `sd1-conformance mutants` is faster at it, and
scores the hints too. `-m full` takes those of the networks to the published size, where most ports
have no `replace`, so that each must die in plain trace mode. That takes about 15 minutes, 3.5 GiB
of disk for weights that are drawn once, and at most 9 GiB of memory.
"""

import shutil
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance.case import NETWORKS, all_cases, find_case
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
    assert badness(trial.row["ratio"]) >= 2 * LIMIT
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


class Drawn(Mapping):
    """Weights drawn once, into files that each load maps for itself: what it writes is its own."""

    def __init__(self, weights, folder):
        """Take weights and an empty folder for them."""
        self.weights = weights
        self.folder = folder

    def __getitem__(self, name):
        """Return a tensor; draw it, the first time."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            np.save(path, self.weights[name])
        return np.load(path, mmap_mode="c")

    def __iter__(self):
        """Iterate over the names."""
        return iter(self.weights)

    def __len__(self):
        """Return the number of tensors."""
        return len(self.weights)


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """Return a function from weights to the same, kept until others come: they fill gigabytes."""
    kept, folder = {}, tmp_path_factory.mktemp("weights")

    def of(weights):
        key = (weights.component, weights.variant.name)
        if key not in kept:
            kept.clear()
            shutil.rmtree(folder)
            folder.mkdir()
            kept[key] = Drawn(weights, folder)
        return kept[key]

    yield of
    shutil.rmtree(folder)


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


def on_sd1(mutant):
    """Return the cases that hunt a mutant at the published size, then the component's others.

    Where a scenario does not exist there, `base` of its regime stands for it.
    """
    own = [c for c in all_cases() if c.component == mutant.component and c.variant.size == "sd1"]
    known = {case.id: case for case in own}
    hunting = []
    for case in cases_of(mutant):
        variant = case.variant.name.replace(case.variant.size, "sd1", 1)
        ids = [f"{mutant.component}/{variant}/{name}" for name in (case.scenario.name, "base")]
        hunting.append(next(known[name] for name in ids if name in known))
    return list(dict.fromkeys([*hunting, *own]))


NAMED = [m for m in CATALOGUE if m.component in NETWORKS and not (m.null or m.dormant or m.gpu)]
BY_WEIGHTS = sorted(NAMED, key=lambda m: (m.component, m.dtype, on_sd1(m)[0].variant.name))


@pytest.mark.full
@pytest.mark.parametrize("mutant", [item(m, "sd1") for m in BY_WEIGHTS])
def test_a_mutant_dies_at_the_published_size(mutant, keep):
    """A case of `sd1` fails, without splicing."""
    best = {}
    for case in on_sd1(mutant):
        result = run(mutant, case, keep)
        first = result.first_divergence or {"ratio": float("nan"), "probe": "its exception"}
        if result.verdict == "fail" or (mutant.refuses and result.verdict == "error"):
            say(f"{case.id}: ratio {first['ratio']:.3g} at {first['probe']}")
            return
        best[case.id] = result.worst.ratio if result.worst else result.message
    pytest.fail(f"survives: {best}")


@pytest.mark.full
@pytest.mark.parametrize(
    "component", [pytest.param(c, marks=pytest.mark.xdist_group("sd1")) for c in NETWORKS]
)
def test_nothing_wrong_lives_at_the_published_size(component, keep):
    """What kills the mutants is not the way in which they are run here."""
    result = run(NOTHING, find_case(f"{component}/sd1/base"), keep)

    assert result.verdict == "pass", result.message


def test_what_a_mutant_writes_to_its_weights_is_its_own(tmp_path):
    """The next one is given the weights as they were drawn."""
    weights = parse_variant("tiny").weights("text_encoder")
    kept, name = Drawn(weights, tmp_path), "text_model.final_layer_norm.weight"
    spoiled = torch.from_numpy(kept[name])
    spoiled[:] = 0

    assert np.array_equal(kept[name], weights[name])
