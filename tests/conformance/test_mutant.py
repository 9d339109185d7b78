"""Mutants: patches that can be taken back, wrong ports, and where one differs or agrees."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance.adapters import sd1_impl
from conformance.case import Case, find_case
from conformance.compare import Record
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.mutants.answer import Reference, _same_pixels, answer, expected_probe, load, worst
from conformance.mutants.catalogue import find_mutants
from conformance.mutants.mutant import EVIDENCE, SIZES, Mutant, Patch
from conformance.mutants.port import MutantPort
from conformance.recipe import SEED, TensorRecipe
from conformance.runner import Runner
from conformance.tolerance import LIMIT
from conformance.traces import Values

TEXT, LOWVAR, BATCH = (
    find_case(f"text_encoder/{name}") for name in ("tiny/base", "tiny-lowvar/base", "tiny/batch3")
)
TOKENS = find_case("tokenizer/-/plain")
LAYER = "text_model.encoder.layers.{}".format
GELU = f"{LAYER(1)}.mlp.fc2.input"
FINAL = "text_model.final_layer_norm"


@pytest.fixture(autouse=True, scope="module")
def _weights_are_drawn_once():
    """Keep what the recipe draws: tests build the same small networks many times."""
    draw = cache(TensorRecipe.draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorRecipe, "draw", lambda *arguments: draw(*arguments).copy())
        yield


@cache
def truth(case: Case) -> Values:
    """Evaluate sd1_impl in float64, which is the oracle but for the last bits."""
    return answer(load(sd1_impl.port(), case, "float64"), case, load_golden(case), None)


def traces(case: Case, _: object) -> Values:
    """Give splice mode its values without the oracle."""
    return truth(case)


def mutant(module=None, **changes: object) -> Mutant:
    """Build a mutant of the text encoder."""
    facts = {"id": "own-test", "component": "text_encoder", "wrong": "x", "cases": ("tiny/base",)}
    if module is None and "patch" not in changes:
        module = lambda _: None  # noqa: E731
    return Mutant(**facts | {"module": module} | changes)


def catalogued(name: str) -> Mutant:
    """Return a mutant of the catalogue."""
    (found,) = find_mutants([name])
    return found


class Owner:
    """What a patch changes."""

    kind = "right"

    def method(self):
        """Return what is right."""
        return self.kind

    @staticmethod
    def static():
        """Return what is right, without self."""
        return "right"

    @classmethod
    def made_by(cls):
        """Return the class it is called on."""
        return cls


class Heir(Owner):
    """Inherits it all."""


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Owner, "kind"),
        (Owner, "method"),
        (Owner, "static"),
        (Owner, "made_by"),
        (Heir, "kind"),
        (Heir, "method"),
        (Owner(), "kind"),
        (math, "pi"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "instance"),
)
def test_patch_is_taken_back(owner: object, name: str) -> None:
    """After undo, owner and ancestors hold the very objects that they held before."""
    before, above = dict(vars(owner)), dict(vars(Owner))
    patch = Patch()
    patch.setattr(owner, name, "wrong")
    patch.setattr(owner, name, "worse")
    assert getattr(owner, name) == "worse"
    patch.undo()
    assert dict(vars(owner)) == before
    assert dict(vars(Owner)) == above
    patch.undo()
    assert dict(vars(owner)) == before


def test_patch_of_an_heir_leaves_the_ancestor() -> None:
    """An inherited attribute is shadowed, not changed where it is defined."""
    patch = Patch()
    patch.setattr(Heir, "kind", "wrong")
    assert (Heir().method(), Owner().method()) == ("wrong", "right")
    patch.undo()
    assert "kind" not in vars(Heir)
    assert Heir().method() == "right"


def test_patch_wraps() -> None:
    """`wrap` is given what the attribute was, wrapped or not."""
    patch = Patch()
    patch.wrap(Owner, "method", lambda plain: lambda self: [plain(self)])
    patch.wrap(Owner, "method", lambda plain: lambda self: plain(self) * 2)
    assert Owner().method() == ["right", "right"]
    patch.undo()
    assert Owner().method() == "right"


@pytest.mark.parametrize("change", ["setattr", "wrap"])
def test_patch_refuses_what_is_not_there(change: str) -> None:
    """A renamed function is an error, not a mutant that changes nothing."""
    patch = Patch()
    with pytest.raises(AttributeError, match="kidn"):
        getattr(patch, change)(Owner, "kidn", lambda _: 1)
    patch.undo()
    assert not hasattr(Owner, "kidn")


def _nothing(_: object) -> None:
    """Change nothing."""


@pytest.mark.parametrize(
    "changes",
    [
        {"module": None, "patch": None},
        {"module": _nothing, "patch": _nothing},
        {"size": "huge"},
        {"evidence": "hearsay"},
        {"cases": ()},
    ],
    ids=["neither", "both", "size", "evidence", "cases"],
)
def test_mutant_is_checked(changes: dict) -> None:
    """A row that breaks the rules of the catalogue is refused by name."""
    with pytest.raises(ValueError, match="mutant own-test"):
        mutant(**{"module": _nothing} | changes)


def test_null() -> None:
    """Only the evidence `null` makes a null mutant; every documented word is taken."""
    assert {e for e in EVIDENCE for s in SIZES if mutant(evidence=e, size=s).null} == {"null"}


def test_case_ids() -> None:
    """Cases are named without their component."""
    found = mutant(cases=("tiny/base", "odd/base")).case_ids
    assert found == ["text_encoder/tiny/base", "text_encoder/odd/base"]


def _wrong_kind(patch: Patch) -> None:
    patch.setattr(Owner, "kind", "wrong")


def _half_a_patch(patch: Patch) -> None:
    _wrong_kind(patch)
    raise KeyError


def test_living() -> None:
    """Code is wrong inside the block alone, however the block or the patch ends."""
    with mutant(patch=_wrong_kind).living():
        assert Owner.kind == "wrong"
    assert Owner.kind == "right"
    for change in (_wrong_kind, _half_a_patch):
        with pytest.raises(KeyError), mutant(patch=change).living():
            raise KeyError
        assert Owner.kind == "right"


def test_spoil() -> None:
    """A module is spoiled, a patch spoils none."""
    seen = []
    for own in (mutant(module=seen.append), mutant(patch=_wrong_kind)):
        own.spoil("network")
    assert seen == ["network"]


@pytest.mark.parametrize(
    ("name", "case"), [("tok-pad-zero", TOKENS), ("own-clip-gelu", TEXT)], ids=["patch", "module"]
)
def test_mutant_port(name: str, case: Case) -> None:
    """It is wrong whenever it runs, says its name, and leaves sd1_impl as it is in between."""
    clean, port = sd1_impl.port(), MutantPort(catalogued(name))
    assert port.hello() == replace(clean.hello(), name=f"sd1_impl with {name}")
    golden = load_golden(case)
    right = answer(load(clean, case, "float32"), case, golden, None).outputs
    spoiled, honest = load(port, case, "float32"), load(clean, case, "float32")
    for _ in range(2):
        assert_differ(answer(spoiled, case, golden, None).outputs, right, differ=True)
        assert_differ(answer(honest, case, golden, None).outputs, right, differ=False)


def assert_differ(a: dict, b: dict, *, differ: bool) -> None:
    """Compare outputs, bit by bit."""
    assert a.keys() == b.keys()
    assert any(not np.array_equal(a[name], b[name]) for name in a) is differ


def test_mutant_port_is_wrong_while_loading() -> None:
    """Code that runs when a component is built is wrong then: the last merge is lost."""
    case = find_case("tokenizer/-/jekyll")
    loaded = load(MutantPort(catalogued("tok-merges-slice-off-by-one")), case, "int64")
    found = answer(loaded, case, load_golden(case), None).outputs
    assert_differ(found, load_golden(case).outputs, differ=True)


def test_answer_gathers_steps() -> None:
    """Steps of an output that a golden keeps as sketches are found one by one, as its rows."""
    case = find_case("scheduler/ddim/-/base")
    golden = load_golden(case)
    found = answer(load(sd1_impl.port(), case, "float32"), case, golden, None)
    assert set(golden.probes) <= set(found.probes)
    assert np.array_equal(found.probes["samples#3"], found.outputs["samples"][3])
    last = len(found.outputs["model_inputs"]) - 1
    kept = found.probes[f"model_inputs#{last}"]
    assert np.array_equal(kept, found.outputs["model_inputs"][last])


def _louder(path: str, *, only: object = None, by: float = 1e-3):
    """Return what makes a layer's output louder, if asked in one dtype only."""

    def hook(_, __, out):
        return out * (1 + by) if only in {None, out.dtype} else out

    return lambda module: module.get_submodule(path).register_forward_hook(hook)


def _raises(module: object) -> None:
    def hook(*_: object) -> None:
        raise RuntimeError

    module.register_forward_pre_hook(hook)


def _drops_a_token(module: object) -> None:
    module.text_model.encoder.layers[1].register_forward_hook(lambda _, __, out: out[:, 1:])


def _forgets_a_layer(module: object) -> None:
    module.text_model.encoder.layers = module.text_model.encoder.layers[:2]


_HALF = mutant(_louder(LAYER(1), only=torch.bfloat16, by=0.1), dtype="bfloat16")

WHERE = {
    "gelu": (catalogued("own-clip-gelu"), TEXT, GELU),
    "eps": (catalogued("clip-ln-eps"), TEXT, f"{LAYER(0)}.layer_norm1"),
    "middle": (mutant(_louder(LAYER(1))), TEXT, LAYER(1)),
    "two": (mutant(lambda m: [_louder(p)(m) for p in (LAYER(2), LAYER(1))]), TEXT, LAYER(1)),
    "last": (mutant(_louder(FINAL)), TEXT, FINAL),
    "whisper": (mutant(_louder(LAYER(1), by=1e-8)), TEXT, LAYER(1)),
    "too-quiet": (mutant(_louder(LAYER(1), by=1e-11)), TEXT, None),
    "nothing": (mutant(_nothing), TEXT, None),
    "float32": (mutant(_louder(LAYER(1), only=torch.float32)), TEXT, LAYER(1)),
    "half": (_HALF, TEXT, LAYER(1)),
    "not-its-own": (mutant(_louder(LAYER(1), only=torch.bfloat16)), TEXT, None),
    "shape": (mutant(_drops_a_token), TEXT, LAYER(1)),
    "missing": (mutant(_forgets_a_layer), TEXT, f"{LAYER(2)}.layer_norm1"),
    "not-a-number": (mutant(_louder(LAYER(1), by=math.nan)), TEXT, LAYER(1)),
    "refusal": (mutant(_raises, refuses=True), TEXT, None),
    "output": (catalogued("clip-pool-argmax"), BATCH, "pooler_output"),
    "ids": (catalogued("tok-pad-zero"), TOKENS, "input_ids"),
    "row": (catalogued("tok-no-pad-77"), TOKENS, "input_ids"),
}


@pytest.mark.parametrize(("wrong", "case", "probe"), WHERE.values(), ids=WHERE)
def test_expected_probe(wrong: Mutant, case: Case, probe: str | None) -> None:
    """It is the first place of spliced float64 that differs; else of its own arithmetic; or none.

    A mutant that does not answer has no such place.
    """
    spliced = truth(case).probes if case.is_network else None
    assert expected_probe(wrong, case, spliced) == probe


SPLICED, TRACED = Execution(mode="splice"), Execution(mode="trace")
WIDE = Execution(dtype="float64")
CLIP = ["clip-exact-gelu", "clip-ln-eps", "clip-final-ln-missing", "own-clip-one-ahead"]


def agreement(reference: str, port: object, case: Case, execution: Execution) -> float:
    """Judge a port by a mutant in one case."""
    runner = Runner(port, traces)
    return Reference(catalogued(reference)).agreement(runner, [(case, execution)])


@pytest.mark.parametrize("execution", [SPLICED, TRACED, WIDE], ids=["splice", "trace", "float64"])
@pytest.mark.parametrize("name", CLIP)
def test_a_port_that_is_the_mutant_agrees(name: str, execution: Execution) -> None:
    """It agrees within the limit, and neither sd1_impl nor another mutant does."""
    assert agreement(name, MutantPort(catalogued(name)), LOWVAR, execution) <= LIMIT
    assert agreement(name, sd1_impl.port(), LOWVAR, execution) > 2 * LIMIT
    other = MutantPort(catalogued(CLIP[CLIP.index(name) - 1]))
    assert agreement(name, other, LOWVAR, execution) > 2 * LIMIT


@pytest.mark.parametrize("name", ["tok-pad-zero", "tok-no-pad-77"])
def test_a_tokenizer_that_is_the_mutant_agrees(name: str) -> None:
    """Integers agree exactly, rows of another length too."""
    how = Execution().for_case(TOKENS)
    assert agreement(name, MutantPort(catalogued(name)), TOKENS, how) == 0
    assert agreement(name, sd1_impl.port(), TOKENS, how) == math.inf


def test_agreement_of_several() -> None:
    """The worst case counts, each judged on its own weights; no case is no agreement."""
    wrong = catalogued("clip-exact-gelu")
    other_seed = replace(TEXT, seed=SEED + 1)
    items = [(TEXT, SPLICED), (LOWVAR, TRACED), (other_seed, TRACED), (TEXT, TRACED)]
    reference = Reference(wrong)
    runner = Runner(MutantPort(wrong), traces)
    alone = [reference.agreement(runner, [item]) for item in items]
    assert reference.agreement(runner, items) == max(alone) <= LIMIT
    assert reference.agreement(runner, []) == math.inf


def test_a_mutant_that_does_not_answer() -> None:
    """It leaves no records, and so no agreement."""
    reference, runner = Reference(mutant(_raises)), Runner(sd1_impl.port(), traces)
    assert reference.judge(runner, TEXT, TRACED) == []
    assert reference.agreement(runner, [(TEXT, TRACED)]) == math.inf


def test_a_port_without_an_output(fake) -> None:
    """A port that leaves an output out, or calls it otherwise, agrees with nothing."""
    port = fake(lambda *_: ({"last_hidden_state": truth(TEXT).outputs["last_hidden_state"]}, {}))
    assert Reference(mutant(_nothing)).judge(Runner(port, traces), TEXT, TRACED) == []


def test_worst() -> None:
    """What is not a number is worst, and so is nothing at all."""
    one, three = (Record("a", "probe", [], 0, 1, r, "pass", approximate=False) for r in (1.0, 3.0))
    none = replace(one, ratio=math.nan)
    assert (worst([one, three]), worst([one, none]), worst([])) == (3.0, math.inf, math.inf)


GREY = np.full((1, 10, 20, 3), 128, np.uint8)  # 600 values


def brighter(count: int, by: int) -> np.ndarray:
    """Return the grey picture with some values changed."""
    changed = GREY.copy()
    changed.flat[:count] += np.uint8(by % 256)
    return changed


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (GREY, True),
        (brighter(6, 1), True),
        (brighter(6, -1), True),
        (brighter(7, 1), False),
        (brighter(1, 2), False),
        (brighter(1, 128), False),
        (GREY[:, :, :10], False),
    ],
    ids=["same", "rounded", "rounded-down", "many", "two-levels", "black", "size"],
)
def test_same_pixels(other: np.ndarray, same: bool) -> None:  # noqa: FBT001
    """Two pictures are the same but for one pixel in a hundred that lies between two levels."""
    assert _same_pixels(GREY, other) is same
    assert _same_pixels(other, GREY) is same
