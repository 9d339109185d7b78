"""Mode memory as a mode of runs: what is chosen, what a run says of it, which items pytest has."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.case import find_case, select_cases
from conformance.choice import executions, scope_of
from conformance.costs import Costs
from conformance.errors import UsageError
from conformance.execution import MEMORY, SAVINGS, Execution, items
from conformance.memory import judge as memory_judge
from conformance.memory.cases import configurations, memory_cases
from conformance.memory_choice import Wanted, cases_and_budgets
from conformance.port import Hello
from conformance.position import position
from conformance.pytest_items import PARAMETERS
from conformance.report.words import rerun_command
from conformance.result import Result
from conformance.shards import Selection, Shard

PORT = Hello(
    "mine", "1", ("unet", "vae_decoder"), arithmetics=("float32",), backends=("sdpa", "plain")
)
EVERY = Hello("all", "1", tuple({case.component for case in memory_cases()}), backends=("sdpa",))
UNET = find_case("unet/sd1/latent64-batch2[float16-cpu-sdpa-memory]")
ITEM = f"{UNET.id}[float16-cpu-sdpa-memory]"


def options(**given: Any) -> argparse.Namespace:
    """Return what `run` would be given."""
    names = ("component", "variant", "scenario", "k", "dtype", "backend", "level", "weights")
    plain = dict.fromkeys((*names, "ema", "files"))
    return argparse.Namespace(**{**plain, "device": "cpu", "mode": MEMORY, **given})


def test_ids_are_read_back() -> None:
    """An item's id names case and execution; savings are backends there."""
    for case, run in configurations():
        assert Execution.of_item(run.item_id(case)) == run
        assert find_case(run.item_id(case)) == case
    assert {run.backend for _, run in configurations()} > set(SAVINGS)
    assert len({run.item_id(case) for case, run in configurations()}) == len(configurations())


def test_no_golden_has_such_an_id() -> None:
    """Cases of mode memory are none of the matrix of goldens, whose run is as ever."""
    goldens = {case.id for case in select_cases(variants=["*"])}
    assert goldens.isdisjoint(case.id for case in memory_cases())


def test_all_is_the_default() -> None:
    """Every configuration that the port offers, the published size too; savings are tried."""
    found = Wanted().items(PORT)
    known = [(c, r) for c, r in configurations() if c.component in PORT.components]
    wanted = [(c, r) for c, r in known if r.dtype == "float32" and r.backend != "sliced"]
    assert found == wanted
    assert any(case.full_size for case, _ in found)
    assert {run.backend for _, run in found} == {"sdpa", "plain", "by_sample", "tiled"}


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ({"variants": ["tiny"], "components": ["unet"], "dtype": "float32", "backend": "sliced"},
         ["unet/tiny/latent16-batch2[float32-cpu-sliced-memory]"]),
        ({"expression": "unet/sd1/latent64-batch2", "backend": "s*", "dtype": "*32"},
         ["unet/sd1/latent64-batch2[float32-cpu-sdpa-memory]"]),
        ({"scenarios": ["latent8-batch2"], "backend": "by_sample", "dtype": "float32"},
         ["vae_decoder/tiny/latent8-batch2[float32-cpu-by_sample-memory]"]),
    ],
    ids=["named-and-not-offered", "globs", "saving"],
)  # fmt: skip
def test_the_options_of_cases_choose(given: dict[str, Any], ids: list[str]) -> None:
    """A glob stands for what the port offers, a name is kept."""
    assert [run.item_id(case) for case, run in Wanted(**given).items(PORT)] == ids


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scenarios": ["base"]}, "unknown scenario 'base'"),
        ({"backend": "tiles"}, "unknown backend 'tiles'"),
        ({"expression": "nothing-of-that"}, "no case is selected"),
        ({"backend": "math"}, "mode memory has no configuration of what is selected that mine of"),
    ],
)
def test_what_fits_nothing(given: dict[str, Any], told: str) -> None:
    """It is named."""
    with pytest.raises(UsageError, match=told):
        Wanted(**given).items(PORT)


def test_a_run_without_the_mode_is_as_ever() -> None:
    """Neither the default nor a glob of values adds anything; a saving needs the mode."""
    cases, _, wanted = cases_and_budgets(options(mode=None))
    assert wanted is None
    assert cases == select_cases()
    assert all(run.mode != MEMORY for run in executions("float32", "cpu", "sdpa", "*", PORT))
    with pytest.raises(UsageError, match="backend tiled is one in mode memory alone"):
        executions("float32", "cpu", "tiled", "trace", PORT)


def test_alone_and_with_other_modes() -> None:
    """Alone it computes nothing; with others either may find nothing, but not both."""
    assert executions("float32", "cpu", "tiled", MEMORY, PORT) == []
    assert executions("float32", "cpu", "sdpa,tiled", "trace,memory", PORT) == [Execution()]
    cases, _, wanted = cases_and_budgets(options(component="unet"))
    assert (cases, wanted is not None) == ([], True)
    cases, _, wanted = cases_and_budgets(options(mode="*", k="unet/tiny/base"))
    assert [case.id for case in cases] == ["unet/tiny/base"]
    cases, _, wanted = cases_and_budgets(options(mode="*", k="latent96-batch1", variant="*"))
    assert (cases, wanted is not None) == ([], True)
    cases, _, wanted = cases_and_budgets(options(mode="*", variant="tiny-dense"))
    assert (bool(cases), wanted) == (True, None)
    with pytest.raises(UsageError, match="no case is selected"):
        cases_and_budgets(options(mode="trace,memory", k="nothing-of-that"))


@pytest.mark.parametrize("option", [{"weights": "file"}, {"level": 1}])
def test_weights_and_levels_do_not_concern_it(option: dict[str, Any]) -> None:
    """Alone with them it is refused; it reads no weights, and no level asks for it."""
    with pytest.raises(UsageError, match=f"leave --{next(iter(option))} out"):
        cases_and_budgets(options(**option))


def test_the_command_that_runs_one_again() -> None:
    """It names everything: where nothing is said, all is meant."""
    assert rerun_command("mine", ITEM) == (
        'sd1-conformance run mine -k "unet/sd1/latent64-batch2" --variant sd1 --dtype float16 '
        "--backend sdpa --mode memory"
    )
    again = Wanted(expression=UNET.id, variants=["sd1"], dtype="float16", backend="sdpa")
    offers = Hello("x", "1", ("unet",), arithmetics=("float16",))
    assert [run.item_id(case) for case, run in again.items(offers)] == [ITEM]


def test_the_scope_counts_them() -> None:
    """What is computed is told as ever; of sd1 nothing was."""
    computed = (find_case("unet/tiny/base"), Execution())
    held = (UNET, Execution("float16", mode=MEMORY))
    told = "unet; tiny; float32; cpu; trace; sd1 was not run"
    assert scope_of([computed]) == told
    assert scope_of([computed, held]) == f"{told}; memory of 1 configuration"
    assert scope_of([held, held]) == "memory of 2 configurations"


def test_shards_share_them() -> None:
    """Each is in one part; no weights are loaded for them."""
    chosen = [*items([find_case("unet/tiny/base")], [Execution()]), *configurations()]
    parts = [Selection(chosen, Shard(i, 3), costs=Costs({}, {})) for i in (1, 2, 3)]
    ids = [name for part in parts for name in part.own]
    assert sorted(ids) == sorted(run.item_id(case) for case, run in chosen)
    assert max(len(part.own) for part in parts) < 2 * min(len(part.own) for part in parts)


def test_what_is_computed_comes_first() -> None:
    """A wrong value is told before too much memory, whatever the component."""
    first = {"probe": "conv_in", "ratio": 9.0}
    lines = [
        {"component": component, "case": f"{component}/tiny/base[x]", "mode": mode,
         "first_divergence": first, "probes": []}
        for component, mode in (("text_encoder", MEMORY), ("vae_decoder", "trace"))
    ]  # fmt: skip
    assert min(lines, key=position)["mode"] == "trace"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let mode memory find these bytes, by component; 100 are allowed."""
    sizes: dict[str, int] = {}

    def judge(_runner: object, case: Any, execution: Execution) -> Result:
        size = sizes.get(case.component, 100)
        result = Result(case, execution, "pass" if size <= 100 else "fail")
        blocks = {"conv_in": 1, "mid_block": size}
        result.memory = {"peak": size, "weights": 9, "ceiling": 100, "at": "aten.mul"}
        result.memory |= {"where": "mid_block", "blocks": blocks}
        if size > 100:
            result.first_divergence = {
                "case": result.item_id, "probe": "mid_block", "after": "conv_in",
                "ratio": size / 100, "limit": 1.0, "kind": "memory", "hint": "aten.mul",
            }  # fmt: skip
        return result

    monkeypatch.setattr(memory_judge, "judge", judge)
    return sizes


def run(main: Any, port: str, out: Any, *arguments: str) -> tuple[int, str, dict[str, Any], list]:
    """Run the command, and read what it leaves."""
    code, told, _ = main("run", port, "--out", out, "--control", "none", *arguments)
    summary = json.loads((out / "summary.json").read_text())
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return code, told, summary, [line for line in lines if line["type"] == "case"]


PORT_FILE = """
from conformance.port import Hello

class Port:
    def hello(self):
        return Hello("mine", "1", ("unet", "text_encoder"), backends=("sdpa", "plain"))

    def load(self, *arguments, **more):
        raise AssertionError("nothing is loaded")

port = Port
"""


@pytest.mark.usefixtures("held")
def test_a_run_that_keeps_its_budgets(main, tmp_path) -> None:
    """It is conformant, says what was judged, is of no level and no part, and gives the stamp."""
    (tmp_path / "port.py").write_text(PORT_FILE)
    port = f"{tmp_path / 'port.py'}:port"
    code, told, summary, lines = run(main, port, tmp_path / "out", "--mode", "memory")
    assert code == 0
    assert "mine 1 holds no more than its memory budgets allow" in told
    assert "\n  held   0.09766 KiB at most, beside 0.008789 KiB of weights, in " in told
    assert "; 1 of the reference's peak at most, in " in told
    assert not {"worst", "level"} & {row.split()[0] for row in told.splitlines() if row.split()}
    assert summary["stamps"] == ["memory"]
    assert summary["memory"] == {"judged": len(lines), "failed": 0}
    assert (summary["level"], summary["worst_ratio"]) == (None, None)
    assert all(line["memory"]["peak"] == 100 for line in lines)
    again = run(main, port, tmp_path / "out", "--mode", "memory", "--resume")
    assert [line["case"] for line in again[3]] == [line["case"] for line in lines]


def test_a_run_that_does_not(main, tmp_path, held) -> None:
    """The first block is named, the place is the cause, and the stamp says which failed."""
    (tmp_path / "port.py").write_text(PORT_FILE)
    held["unet"] = 150
    port = f"{tmp_path / 'port.py'}:port"
    arguments = ("--mode", "memory", "--variant", "tiny")
    code, told, summary, _ = run(main, port, tmp_path / "out", *arguments)
    assert code == 1
    assert "mine 1 does not keep 2 of 4 memory budgets." in told
    assert summary["first_divergence"]["kind"] == "memory"
    assert summary["stamps_missing"]["memory"] == "unet failed"
    (fault,) = summary["faults"]
    assert fault["text"].startswith("more is held than in the budget from mid_block on, at aten")
    assert (fault["count"], fault["confirmed"], fault["held"]) == (1, False, True)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "what is held at once is not what the budget says" in page


def parameters(fixture: str, **given: str) -> list[Any]:
    """Return what pytest makes of a fixture, given options without their `--sd1-`."""
    pytest.importorskip("torch")
    chosen = {"--sd1-port": "sd1_impl", **{f"--sd1-{name}": text for name, text in given.items()}}
    config: Any = SimpleNamespace(getoption=chosen.get, stash=pytest.Stash())
    return PARAMETERS[fixture](config)


def reason(items: list[Any]) -> str:
    """Return why there is nothing but a skip."""
    (only,) = items
    return str(only.marks[0].args[0])


def test_pytest_has_every_configuration() -> None:
    """By default all of them, those that take seconds and tell nothing new in `full`."""
    found = parameters("sd1_memory")
    assert [own.id for own in found] == [run.item_id(case) for case, run in configurations()]
    full = {own.id for own in found if pytest.mark.full in own.marks}
    kept = {own.id for own in found} - full
    for kind in ("sliced", "recompute"):
        assert any(f"-{kind}-" in item and "/sd1/" in item for item in kept)
    assert len(full) < len(kept)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mode": "trace"}, "--sd1-mode chose, and mode memory is not among the modes"),
        ({"dtype": "float64"}, "--sd1-dtype chose, and mode memory is not among the modes"),
        ({"variant": "tiny-dense"}, "mode memory knows none of the variants: sd1, tiny"),
    ],
)
def test_pytest_options_that_leave_none(given: dict[str, str], told: str) -> None:
    """The item says so instead."""
    assert reason(parameters("sd1_memory", **given)) == told


def test_pytest_options_that_choose() -> None:
    """As on the command line; on a CUDA device they are items of their own."""
    found = parameters("sd1_memory", mode="memory", backend="tiled", variant="tiny*")
    assert [own.id for own in found] == [
        "vae_decoder/tiny/latent96-batch1[float32-cpu-tiled-memory]"
    ]
    told = reason(parameters("sd1_cuda_memory", mode="memory"))
    assert told == "--sd1-mode chose: test_memory runs that"
    assert parameters("sd1_axis", mode="memory")[0].id == "not-here"
    assert parameters("sd1_item", mode="memory") == []
