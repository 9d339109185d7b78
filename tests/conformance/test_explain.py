"""From failures to causes: which mutant a wrong port computes, tried and not only guessed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from conformance import fingerprint
from conformance.adapters import sd1_impl
from conformance.case import Case, find_case
from conformance.errors import UnsupportedError
from conformance.execution import Execution
from conformance.explain import Explanation, Item, explain, failing_items, in_short, witnesses
from conformance.fingerprint import Known, marks_of
from conformance.golden_files import load_golden
from conformance.mutants.answer import answer, load
from conformance.mutants.catalogue import find_mutants
from conformance.mutants.port import MutantPort
from conformance.recipe import TensorRecipe
from conformance.runner import Runner
from conformance.tolerance import LIMIT
from conformance.traces import Values

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT, LOWVAR = find_case("text_encoder/tiny/base"), find_case("text_encoder/tiny-lowvar/base")
SPLICED, TRACED = Execution(mode="splice"), Execution(mode="trace")
TEXTS = [(find_case(f"tokenizer/-/{name}"), TRACED) for name in ("plain", "empty", "jekyll")]
BOTH = [(case, execution) for case in (TEXT, LOWVAR) for execution in (SPLICED, TRACED)]
LAYER = "text_model.encoder.layers.{}".format
FINAL = "text_model.final_layer_norm"
GELU, CORE = f"{LAYER('*')}.mlp.fc2.input", f"{LAYER('*')}.self_attn.out_proj.input"

CATALOGUE = (
    *("clip-exact-gelu", "clip-ln-eps", "clip-no-causal-mask", "own-clip-place-76"),
    *("tok-pad-zero", "tok-no-pad-77", "tok-merges-slice-off-by-one"),
)


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


def run(port: Any, items: list[tuple[Case, Execution]]) -> tuple[list[dict[str, Any]], Runner]:
    """Run items and return the case lines, and the runner."""
    runner = Runner(port, traces)
    runner.asks_for_age = False
    return [runner.run(case, e.for_case(case)).as_json() for case, e in items], runner


def catalogued(*names: str) -> list[Any]:
    """Return mutants of the catalogue."""
    return [find_mutants([name])[0] for name in names]


def known(mutant: Any, lines: list[dict[str, Any]]) -> Known:
    """Make a fingerprint of a mutant's case lines."""
    return Known(mutant.id, mutant.component, mutant.wrong, marks_of(lines, mutant.component))


@pytest.fixture(scope="module")
def catalogue() -> tuple[Known, ...]:
    """Take the fingerprints of a few mutants."""
    found = []
    for mutant in catalogued(*CATALOGUE):
        own = TEXTS if mutant.component == "tokenizer" else BOTH
        found.append(known(mutant, run(MutantPort(mutant), own)[0]))
    return tuple(found)


@pytest.fixture
def explained(catalogue, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Explanation]:
    """Return a function that runs a port and explains its failures."""
    monkeypatch.setattr(fingerprint, "library", lambda: catalogue)

    def call(port: Any, items: list[tuple[Case, Execution]] = BOTH) -> Explanation:
        return explain(*run(port, items))

    return call


class Wrong:
    """sd1_impl with what a function does to its module, or with several mutants at once."""

    def __init__(self, *spoils: Any) -> None:
        """Keep functions of the module and ids of mutants."""
        self.spoils = [s if callable(s) else catalogued(s)[0].spoil for s in spoils]
        self.port = sd1_impl.port()
        self.hello = self.port.hello

    def load(self, *arguments):
        """Load and spoil."""
        component = self.port.load(*arguments)
        for spoil in self.spoils:
            spoil(component.module)
        return component


def scaled(path: str, by: float = 1.01):
    """Return what makes the output of a layer larger: in no catalogue."""
    return lambda m: m.get_submodule(path).register_forward_hook(lambda _, __, out: out * by)


def eps(value: float):
    """Return what gives every norm another eps."""

    def spoil(module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = value

    return spoil


def test_one_cause_groups_its_probes(explained) -> None:
    """A port that is one mutant has one fault, confirmed, with every probe that it explains."""
    found = explained(MutantPort(*catalogued("clip-exact-gelu")))
    (fault,) = found.faults
    ratio = fault.pop("ratio_if_so")
    assert 0 < ratio <= LIMIT
    expected = {"probes": GELU, "count": 3, "mutant": "clip-exact-gelu", "confirmed": True}
    assert in_short(fault) == expected
    assert fault["names"] == [f"{LAYER(i)}.mlp.fc2.input" for i in range(3)]
    assert found.hints == {
        "text_encoder": "confirmed: the port computes mutant clip-exact-gelu (The activation is "
        f"GELU itself, not the sigmoid that stands in for it), ratio {ratio:.2g}"
    }


def test_a_trace_is_explained_by_what_explains_all_of_it(explained) -> None:
    """Without splice mode a mutant is confirmed too: its first wrong probe is counted."""
    (fault,) = explained(MutantPort(*catalogued("clip-exact-gelu")), [(TEXT, TRACED)]).faults
    name = f"{LAYER(0)}.mlp.fc2.input"
    assert (fault["probes"], fault["count"], fault["confirmed"]) == (name, 1, True)


TWO = ("clip-exact-gelu", "clip-no-causal-mask")


def test_two_causes(explained) -> None:
    """A port with two bugs has two confirmed faults, each with its own probes."""
    faults = {f["mutant"]: f for f in explained(Wrong(*TWO)).faults}
    assert all(f["confirmed"] and f["ratio_if_so"] <= LIMIT for f in faults.values())
    assert {i: (f["probes"], f["count"]) for i, f in faults.items()} == {
        "clip-exact-gelu": (GELU, 3),
        "clip-no-causal-mask": (CORE, 3),
    }


def test_two_causes_in_a_trace(explained) -> None:
    """In a trace no mutant explains two bugs: nothing is confirmed."""
    found = explained(Wrong(*TWO), [(TEXT, TRACED)])
    assert [f["confirmed"] for f in found.faults] == [False]


def test_no_cause(explained) -> None:
    """What no mutant explains is grouped by kind of probe, and not confirmed."""
    port = Wrong(*(scaled(f"{LAYER(i)}.self_attn.q_proj") for i in range(3)), scaled(FINAL))
    faults = explained(port).faults
    kind = f"{LAYER('*')}.self_attn.q_proj"
    assert {f["probes"]: f["count"] for f in faults} == {kind: 3, FINAL: 1}
    assert not any(f["confirmed"] or f["ratio_if_so"] is not None for f in faults)


def test_a_cause_and_more(explained) -> None:
    """A confirmed fault leaves what it does not explain to another, of no mutant."""
    faults = explained(Wrong("clip-exact-gelu", scaled(f"{LAYER(1)}.self_attn.q_proj"))).faults
    assert [(f["mutant"], f["confirmed"], f["count"]) for f in faults] == [
        ("clip-exact-gelu", True, 3),
        (None, False, 1),
    ]
    assert faults[1]["probes"] == f"{LAYER(1)}.self_attn.q_proj"


def test_no_failure(explained) -> None:
    """A right port has no faults and no hints."""
    assert explained(sd1_impl.port()) == Explanation()


def test_what_is_nearly_a_mutant_is_not_confirmed(explained) -> None:
    """An eps of 1.1e-6 is not that of 1e-6, though the error looks the same in easy cases."""
    assert [f["confirmed"] for f in explained(Wrong(eps(1e-6))).faults] == [True]
    assert not any(f["confirmed"] for f in explained(Wrong(eps(1.1e-6))).faults)


def test_a_cause_takes_no_probes_that_it_does_not_explain(explained) -> None:
    """A bug beside a confirmed one, in the same kind of layer, is told as a fault of its own."""
    faults = explained(Wrong("clip-exact-gelu", _steeper)).faults
    sure = [f for f in faults if f["confirmed"]]
    assert [(f["mutant"], f["count"]) for f in sure] == [("clip-exact-gelu", 2)]
    unsure = [f["probes"] for f in faults if not f["confirmed"]]
    assert unsure == [f"{LAYER(2)}.mlp.fc2.input"]


def _steeper(module: nn.Module) -> None:
    layer = module.get_submodule(f"{LAYER(2)}.mlp.fc2")
    layer.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))


def test_tokenizer(explained) -> None:
    """A tokenizer's mutant is confirmed where all its wrong texts come out as the port's do."""
    (fault,) = explained(MutantPort(*catalogued("tok-pad-zero")), TEXTS).faults
    expected = {"probes": "input_ids", "count": 1, "mutant": "tok-pad-zero", "confirmed": True}
    assert in_short(fault) == expected | {"ratio_if_so": 0.0}


class Later:
    """A port that behaves otherwise when hints are tested."""

    def __init__(self, port: Any, behaviour: Any) -> None:
        """Keep a function of what was loaded and of the arguments of `run`."""
        self.port, self.behaviour, self.testing = port, behaviour, False
        self.hello = port.hello

    def load(self, *arguments):
        """Load; what is loaded is this port."""
        self.loaded = self.port.load(*arguments)
        return self

    def run(self, *arguments):
        """Answer, or behave."""
        if self.testing:
            return self.behaviour(self.loaded, arguments)
        return self.loaded.run(*arguments)


def explain_later(port: Later) -> Explanation:
    """Run both cases, and let the port behave otherwise when its failures are explained."""
    found = run(port, BOTH)
    port.testing = True
    return explain(*found)


@pytest.mark.parametrize("error", [RuntimeError, UnsupportedError, SystemExit, MemoryError])
def test_a_port_that_raises_costs_nothing(explained, error: type[BaseException]) -> None:
    """Whatever a port raises while hints are tested, the failures are told, unconfirmed."""
    del explained

    def raises(_: Any, __: Any) -> None:
        raise error("now")

    found = explain_later(Later(MutantPort(*catalogued("clip-exact-gelu")), raises))
    assert [(f["probes"], f["count"], f["confirmed"]) for f in found.faults] == [(GELU, 3, False)]
    assert found.hints["text_encoder"].startswith("like the mutant clip-exact-gelu")
    assert found.hints["text_encoder"].endswith(", not confirmed")


def test_prints_of_a_port(explained, capsys: pytest.CaptureFixture[str]) -> None:
    """What a port prints while hints are tested does not mix with the results."""
    del explained

    def prints(loaded: Any, arguments: Any) -> Any:
        print("a print of the port")  # noqa: T201
        return loaded.run(*arguments)

    explain_later(Later(MutantPort(*catalogued("clip-exact-gelu")), prints))
    assert "a print of the port" not in capsys.readouterr().out


class Blind(MutantPort):
    """A mutant that offers no probes, and takes no questions about them."""

    def hello(self):
        """Offer outputs alone."""
        return replace(super().hello(), probes=False, replace=False)

    def load(self, *arguments):
        """Load what answers without probes."""
        self.loaded = super().load(*arguments)
        return self

    def run(self, inputs, probes=(), replaced=None):
        """Answer, or refuse."""
        if probes or replaced:
            raise UnsupportedError("no probes here")
        return self.loaded.run(inputs)


def test_a_port_without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that offers outputs alone is not asked for more, and its cause is confirmed."""
    (mutant,) = catalogued("clip-exact-gelu")
    lines, runner = run(Blind(mutant), [(TEXT, TRACED)])
    monkeypatch.setattr(fingerprint, "library", lambda: (known(mutant, lines),))
    found = explain(lines, runner)
    assert [(f["mutant"], f["confirmed"]) for f in found.faults] == [("clip-exact-gelu", True)]


def line(item: str, *wrong: str, verdict: str = "fail") -> dict[str, Any]:
    """Build a case line; a right probe stands before the wrong ones."""
    case, _, how = item.partition("[")
    component, variant, scenario = case.rsplit("/", 2)
    mode = next((m for m in ("splice", "trace") if m in how), "")
    probes = [{"name": "right", "verdict": "pass", "ratio": 1.0}]
    probes += [{"name": name, "verdict": "fail", "ratio": 100.0} for name in wrong]
    return {
        "case": item, "component": component, "variant": variant, "scenario": scenario,
        "mode": mode, "dtype": how.partition("-")[0], "verdict": verdict, "message": "",
        "probes": probes,
    }  # fmt: skip


UNET = "unet/tiny/base[float32-cpu-sdpa-{}]".format
ITEMS = {
    "splice": ([line(UNET("splice"), "a", "b")], [("unet/tiny/base", "splice", ("a", "b"))]),
    "trace": ([line(UNET("trace"), "a", "b")], [("unet/tiny/base", "trace", ("a",))]),
    "splice-first": (
        [line(UNET("trace"), "a"), line(UNET("splice"), "b")],
        [("unet/tiny/base", "splice", ("b",))],
    ),
    "blocks": (
        [line(f"{UNET('splice')}::mid_block", "a"), line(f"{UNET('splice')}::down", "b", "a")],
        [("unet/tiny/base", "splice", ("a", "b"))],
    ),
    "right": ([line(UNET("splice"), verdict="pass"), line(UNET("trace"), verdict="error")], []),
    "other": ([line("vae_encoder/tiny/base[float32-cpu-sdpa-splice]", "a")], []),
    "none": ([], []),
}


@pytest.mark.parametrize(("lines", "expected"), ITEMS.values(), ids=ITEMS)
def test_failing_items(lines: list[dict[str, Any]], expected: list[Any]) -> None:
    """Of a component's failures those of splice mode are told, or the first of each trace."""
    found = failing_items(lines, "unet")
    assert [(item.case.id, item.execution.mode, item.wrong) for item in found] == expected


@pytest.mark.parametrize(
    ("item", "execution"),
    [
        ("unet/tiny/base[bfloat16-cuda:1-sdpa-splice]", ("bfloat16", "cuda:1", "sdpa", "splice")),
        ("scheduler/ddim/-/base[float16-cpu]", ("float16", "cpu", "", "")),
        ("tokenizer/-/plain[int64-cpu]", ("int64", "cpu", "", "")),
    ],
)
def test_items_are_run_again_as_they_were(item: str, execution: tuple[str, ...]) -> None:
    """An item's id is read back to the execution that made it."""
    (found,) = failing_items([line(item, "a")], item.partition("[")[0].rsplit("/", 2)[0])
    assert found.execution == Execution(*execution)
    assert found.execution.item_id(found.case) == item


def item(case_id: str, *wrong: str, mode: str = "splice") -> Item:
    """Build a failing item."""
    return Item(find_case(case_id), Execution(mode=mode), wrong)


WITNESSES = {
    "alone": ([item("unet/tiny/quiet", "a")], [0]),
    "most-wrong": ([item("unet/tiny/base", "a"), item("unet/tiny-lowvar/base", "a", "b")], [1, 0]),
    "every-probe": ([item("unet/tiny/quiet", "a", "b"), item("unet/tiny/base", "a")], [1]),
    "splice": ([item("unet/tiny/base", "a", "b", mode="trace"), item("unet/tiny/t0", "a")], [1]),
    "two": ([item(f"unet/tiny{r}/base", "a") for r in ("", "-lowvar", "-dense")], [0, 1]),
    "small": ([item("unet/sd1/base", "a", "b"), item("unet/tiny/quiet", "a")], [1]),
    "texts": ([item(f"tokenizer/-/{n}", "input_ids") for n in ("plain", "empty")] * 30, None),
}


@pytest.mark.parametrize(("items", "expected"), WITNESSES.values(), ids=WITNESSES)
def test_witnesses(items: list[Item], expected: list[int] | None) -> None:
    """Hints are tested where most is seen, on another variant too; a tokenizer's on many texts."""
    found = witnesses(items)
    if expected is None:
        assert 20 <= len(found) <= 48
    else:
        assert found == [items[i] for i in expected]


def test_full_size_is_not_tested(explained, fake) -> None:
    """Nothing of 860 million parameters is run again: the port is not even loaded."""
    del explained
    marked = line("text_encoder/sd1/base[float32-cpu-sdpa-splice]", f"{LAYER(0)}.mlp.fc2.input")
    port = fake(lambda *_: pytest.fail("the port was run"))
    found = explain([marked], Runner(port, traces))
    assert port.loads == []
    assert [f["confirmed"] for f in found.faults] == [False]
    assert found.hints["text_encoder"].startswith("like the mutants clip-exact-gelu")
