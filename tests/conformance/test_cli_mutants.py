"""The gate: mutants are hunted, named and counted; the command says whether any got away."""

from __future__ import annotations

import io
import json
import math
import sys
from concurrent.futures import Executor, Future
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from conformance import cli, cli_mutants
from conformance.adapters import sd1_impl
from conformance.case import Case, find_case
from conformance.execution import EXACT
from conformance.golden_files import load_golden
from conformance.mutants import gate
from conformance.mutants.answer import answer, load
from conformance.mutants.catalogue import NOT_RUN, find_mutants
from conformance.mutants.gate import Trial, localised, passed, summarise, try_mutant
from conformance.mutants.mutant import Mutant
from conformance.recipe import TensorRecipe
from conformance.run_folder import plain
from conformance.tolerance import LIMIT
from conformance.traces import Values

if TYPE_CHECKING:
    from pathlib import Path

GELU = "text_model.encoder.layers.{}.mlp.fc2.input".format
FINAL = "text_model.final_layer_norm"
COUNTS = ("total", "killed", "localised", "confirmed", "hint_top3")
REPORT = {*COUNTS, "survivors", "nulls", "not_run", "mutants"}
ROW = {
    *("id", "component", "dtype", "killed_by", "expected_probe", "first_divergence"),
    *("hint_rank", "confirmed", "ratio"),
}


@cache
def truth(case: Case) -> Values:
    """Evaluate sd1_impl in float64, which is the oracle but for the last bits."""
    return answer(load(sd1_impl.port(), case, "float64"), case, load_golden(case), None)


class Here(Executor):
    """Runs at once, in this process."""

    def __init__(self, _jobs: int, mp_context: object) -> None:
        """Take what a pool of processes takes."""
        del mp_context

    def submit(self, function: Any, /, *arguments: Any) -> Future:
        """Run."""
        (future := Future()).set_result(function(*arguments))
        return future


@pytest.fixture(autouse=True, scope="module")
def _gate():
    """Let the gate work here, on one size (with two seeds), without the oracle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "_traces", lambda: lambda case, _: truth(case))
        patch.setattr(gate, "ProcessPoolExecutor", Here)
        patch.setattr(gate, "OTHER_SIZE", gate.SIZE)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MKL_NUM_THREADS", "1")
        draw = cache(TensorRecipe.draw)  # tests build the same small networks many times
        patch.setattr(TensorRecipe, "draw", lambda *arguments: draw(*arguments).copy())
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


def mutant(name: str = "own-test", **changes: object) -> Mutant:
    """Build a mutant of the text encoder that changes nothing."""
    facts = {"id": name, "component": "text_encoder", "wrong": "x", "cases": ("tiny/base",)}
    return Mutant(**facts | {"module": lambda _: None} | changes)


def null(name: str = "null-test", **changes: object) -> Mutant:
    """Build a null mutant."""
    return mutant(name, evidence="null", size="none", **changes)


def _louder(module: Any) -> None:
    module.get_submodule(FINAL).register_forward_hook(lambda _, __, out: out * 1.001)


def _raises(module: Any) -> None:
    def hook(*_: object) -> None:
        raise RuntimeError("not today")

    module.register_forward_pre_hook(hook)


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch):
    """Return a function that lets the gate know these mutants alone, and no panel."""

    def only(*mutants: Mutant) -> None:
        monkeypatch.setattr(
            gate, "find_mutants", lambda ids: [m for m in mutants if not ids or m.id in ids]
        )
        monkeypatch.setattr(gate, "panel", lambda *_: [])

    return only


def test_try_a_network() -> None:
    """A mutant is hunted in both modes, localised, and leaves a fingerprint over the panel."""
    trial = try_mutant("own-clip-gelu")
    assert trial.error == ""
    assert set(trial.row) == ROW
    case = "text_encoder/tiny/base[float32-cpu-sdpa-{}]".format
    assert trial.row["killed_by"] == [case("splice"), case("trace")]
    first = trial.row["first_divergence"]
    assert trial.row["expected_probe"] == first["probe"] == GELU(1)
    assert first["case"] == case("splice")
    assert trial.row["ratio"] == first["ratio"] > 2 * LIMIT
    assert (trial.row["hint_rank"], trial.row["confirmed"]) == (None, False)
    assert {"unit/base/splice", "lowvar/base/splice", "unit/empty/trace"} < set(trial.marks)
    assert [mark[2] for mark in trial.marks["unit/base/splice"].values()] == [(GELU(1),)]


def test_try_a_tokenizer() -> None:
    """Texts are exact: one mode, and a fingerprint over all of them."""
    trial = try_mutant("tok-pad-zero")
    assert trial.row["killed_by"][0] == "tokenizer/-/plain[int64-cpu]"
    assert trial.row["expected_probe"] == trial.row["first_divergence"]["probe"] == "input_ids"
    assert trial.row["ratio"] == math.inf
    assert len(trial.marks) > 100


TRIED = {
    "nothing": (mutant(), 0, None, ""),
    "last": (mutant(module=_louder), 2, FINAL, ""),
    "unspoken-refusal": (mutant(module=_raises), 0, None, ""),
    "refusal": (mutant(module=_raises, refuses=True), 1, None, ""),
    "null": (null(), 0, None, ""),
    "wrong-null": (null(module=_louder), 2, None, ""),
    "broken-null": (null(module=_raises), 0, None, "the port raised RuntimeError: not today"),
}


@pytest.mark.parametrize(("own", "kills", "probe", "error"), TRIED.values(), ids=TRIED)
def test_try(catalogue, own: Mutant, kills: int, probe: str | None, error: str) -> None:
    """A crash kills only where the row says so; a null mutant has to run, and no fingerprint."""
    catalogue(own)
    trial = try_mutant(own.id)
    assert len(trial.row["killed_by"]) == kills
    assert trial.row["expected_probe"] == probe
    assert trial.error.startswith(error)
    assert bool(trial.error) is bool(error)
    assert bool(trial.marks) is not own.null


@pytest.mark.parametrize(
    ("own", "case_id", "expected"),
    [
        (mutant(), "text_encoder/tiny/base", ["splice", "trace"]),
        (mutant(refuses=True), "text_encoder/tiny/base", ["trace"]),
        (mutant(dtype="bfloat16"), "scheduler/ddim/-/base", [""]),
        (mutant(), "pipeline/txt2img/tiny/base", ["splice", "trace"]),
    ],
    ids=["network", "refusal", "scheduler", "pipeline"],
)
def test_executions(own: Mutant, case_id: str, expected: list[str]) -> None:
    """Splice mode is run where there is one, in the dtype in which the mutant must die."""
    found = gate.executions_of(own, find_case(case_id))
    assert [(e.mode, e.dtype) for e in found] == [(mode, own.dtype) for mode in expected]


def test_panel() -> None:
    """It is every probe in four regimes and a few inputs, or all texts."""
    found = gate.panel(mutant(), "tiny")
    assert len(found) == len(set(found)) == 7
    ids = {execution.item_id(case) for case, execution in found}
    assert {"text_encoder/tiny-lowvar/base[float32-cpu-sdpa-splice]"} < ids
    assert {case.variant.size for case, _ in gate.panel(mutant(), "odd")} == {"odd"}
    texts = gate.panel(mutant(component="tokenizer"), "tiny")
    assert {execution for _, execution in texts} == {EXACT}


def row(name: str, killed: int = 1, **changes: object) -> dict[str, Any]:
    """Build a mutant's entry."""
    made = {
        "id": name, "component": "text_encoder", "dtype": "float32",
        "killed_by": ["text_encoder/tiny/base[float32-cpu-sdpa-splice]"] * killed,
        "expected_probe": "a", "first_divergence": {"probe": "a"} if killed else None,
        "hint_rank": 1, "confirmed": True, "ratio": 100.0,
    }  # fmt: skip
    return made | changes


ELSEWHERE = {"first_divergence": {"probe": "b"}}
ROWS = [
    row("m0"),
    row("m1", hint_rank=3, confirmed=False),
    row("m2", hint_rank=4),
    row("m3", hint_rank=None, confirmed=False, **ELSEWHERE),
    row("m4", 0, hint_rank=None, confirmed=False, ratio=1.0),
    row("refuses", expected_probe=None, first_divergence=None),
]


def summary(*rows: dict[str, Any], errors: dict[str, str] | None = None) -> dict[str, Any]:
    """Summarise synthetic trials: ids that begin with `null` are null mutants."""
    make = {"null": null, "refuses": lambda name: mutant(name, refuses=True)}
    trials = {r["id"]: Trial(r["id"], r) for r in rows}
    trials |= {name: Trial(name, error=text) for name, text in (errors or {}).items()}
    mutants = [make.get(name.partition("-")[0], mutant)(name) for name in trials]
    return summarise(mutants, trials, [mutant("on-gpu", gpu=True)])


def test_summary() -> None:
    """Everything is counted; null mutants and those that cannot run here are not in the total."""
    nulls = [row("null-0", 0, ratio=1.0), row("null-1", confirmed=False, hint_rank=None)]
    found = summary(*ROWS, *nulls, errors={"m6": "KeyError: 'x'"})
    assert {n: found[n] for n in COUNTS} == dict(zip(COUNTS, (7, 5, 4, 3, 3), strict=True))
    assert found["survivors"] == ["m4", "m6"]
    assert found["nulls"] == {"total": 2, "killed": ["null-1"]}
    assert found["errors"] == {"m6": "KeyError: 'x'"}
    assert found["not_run"][-1] == {"id": "on-gpu", "reason": "needs a CUDA device"}
    assert [r["id"] for r in found["not_run"][:-1]] == [r.id for r in NOT_RUN]
    assert [r["id"] for r in found["mutants"]] == [r["id"] for r in [*ROWS, *nulls]]


@pytest.mark.parametrize(
    ("own", "entry", "expected"),
    [
        (mutant(), row("m"), True),
        (mutant(), row("m", **ELSEWHERE), False),
        (mutant(), row("m", 0), False),
        (mutant(), row("m", 0, expected_probe=None), False),
        (mutant(refuses=True), row("m"), True),
        (mutant(refuses=True), row("m", 0), False),
    ],
    ids=["there", "elsewhere", "survives", "does-nothing", "refuses", "answers"],
)
def test_localised(own: Mutant, entry: dict[str, Any], expected: bool) -> None:  # noqa: FBT001
    """A mutant is localised at its expected probe, one that refuses by its exception."""
    assert localised(own, entry) is expected


OUTCOMES = {
    "good": (summary(ROWS[0], row("null-0", 0)), True),
    "not-localised": (summary(ROWS[3] | {"ratio": math.inf}), True),
    "survivor": (summary(ROWS[0], ROWS[4]), False),
    "null-killed": (summary(ROWS[0], row("null-0")), False),
    "broken": (summary(ROWS[0], errors={"null-1": "KeyError: 'x'"}), False),
}


@pytest.mark.parametrize(("found", "expected"), OUTCOMES.values(), ids=OUTCOMES)
def test_verdict(main, monkeypatch, tmp_path, found: dict[str, Any], expected: bool) -> None:  # noqa: FBT001
    """A survivor, a killed null mutant or a broken trial fails the gate, and is named."""
    assert passed(found) is expected

    def run_gate(names: list[str], jobs: int, report: Any, *, hints: bool) -> Any:
        assert (names, jobs, hints) == (["clip-*"], 3, True)
        for entry in found["mutants"]:
            report(entry["id"], entry)
        return found, []

    monkeypatch.setattr(gate, "run_gate", run_gate)
    code, out, _ = main("mutants", "clip-*", "--jobs", "3", "--out", tmp_path)
    assert (code == 0) is expected
    assert code == 1 or expected or found["errors"]
    text = (tmp_path / "mutants.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == plain(found)
    for name in [*found["survivors"], *found["nulls"]["killed"], *found["errors"]]:
        assert f": {name}" in out
    assert out.count(" killed ") == sum(bool(r["killed_by"]) for r in found["mutants"])


@pytest.fixture(scope="module")
def hunted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Hunt one mutant by the command, on `tiny` alone."""
    out, printed = tmp_path_factory.mktemp("hunted") / "deep", io.StringIO()
    tiny = [replace(m, cases=("tiny/base",)) for m in find_mutants(["clip-exact-gelu"])]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(gate, "find_mutants", lambda _: tiny)
        code = cli.main(["mutants", "clip-exact-gelu", "-n", "1", "--out", str(out)])
    report = json.loads((out / "mutants.json").read_text("utf-8"), parse_constant=pytest.fail)
    return SimpleNamespace(code=code, text=printed.getvalue().splitlines(), report=report, out=out)


def test_a_mutant_is_hunted(hunted) -> None:
    """It is killed, localised, its fingerprint comes first on another seed, and is confirmed."""
    assert hunted.code == 0
    (found,) = hunted.report["mutants"]
    assert found["id"] == "clip-exact-gelu"
    assert (found["hint_rank"], found["confirmed"]) == (1, True)
    assert found["expected_probe"] == found["first_divergence"]["probe"] == GELU(0)
    assert [hunted.report[name] for name in COUNTS] == [1, 1, 1, 1, 1]
    assert [line.split()[1] for line in hunted.text[:2]] == ["killed", "hint"]
    assert hunted.text[2].startswith("1 of 1 mutant killed, 1 localised")
    assert hunted.text[-1] == f"  report {hunted.out / 'mutants.json'}"


def test_without_hints(main, tmp_path, catalogue) -> None:
    """A mutant is killed and localised all the same; what is not scored is null, not nought."""
    catalogue(*(replace(m, cases=("tiny/base",)) for m in find_mutants(["clip-exact-gelu"])))
    code, out, _ = main("mutants", "--no-hints", "-n", "1", "--out", tmp_path)
    report = json.loads((tmp_path / "mutants.json").read_text("utf-8"))
    (found,) = report["mutants"]
    assert code == 0
    assert "1 of 1 mutant killed, 1 localised, hints not scored; " in out
    assert (set(report), set(found)) == (REPORT | {"errors", "limit"}, ROW)
    assert (found["hint_rank"], found["confirmed"]) == (None, None)
    assert [report[name] for name in COUNTS] == [1, 1, 1, None, None]


def test_the_report_keeps_its_contract(hunted) -> None:
    """The fields of mutants.json are those of the design: nothing less, nothing else."""
    assert set(hunted.report) == REPORT | {"errors", "limit"}
    assert set(hunted.report["nulls"]) == {"total", "killed"}
    assert all(set(entry) == {"id", "reason"} for entry in hunted.report["not_run"])
    assert all(set(entry) == ROW for entry in hunted.report["mutants"])


def test_what_breaks_loses_no_other(catalogue) -> None:
    """A trial that raises is an error and a survivor; a mutant for a GPU is not run without one."""
    catalogue(mutant("lost", cases=("tiny/bass",)), null(), mutant("on-gpu", gpu=True))
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        found, known = gate.run_gate([], 1, lambda name, _: told.append(name))
    assert found["errors"] == {
        "lost": "SuiteError: mutant lost is hunted by text_encoder/tiny/bass, which is no case"
    }
    assert (found["total"], found["survivors"], known) == (1, ["lost"], [])
    assert [r["id"] for r in found["mutants"]] == ["null-test"]
    assert found["not_run"][-1]["id"] == "on-gpu"
    assert sorted(told) == ["lost", "null-test"]


def test_update(main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With `--update` the fingerprints, the catalogue and its page are written."""
    written: list[Any] = []
    made = {"page": lambda found: f"# {found['total']}\n", "record": lambda f: (f["total"],)}
    for name, make in made.items():
        module = f"conformance.mutants.{name}"
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: make}))
    monkeypatch.setattr(cli_mutants, "write_library", written.append)
    monkeypatch.setattr(cli_mutants, "write_catalogue", written.append)
    monkeypatch.setattr(cli_mutants, "PAGE", tmp_path / "mutants.md")
    monkeypatch.setattr(gate, "run_gate", lambda *_, **__: (summary(ROWS[0]), ["marks"]))
    codes = [main("mutants", *update, "--out", tmp_path)[0] for update in (["--update"], [])]
    assert (codes, written) == ([0, 0], [["marks"], 1])
    assert (tmp_path / "mutants.md").read_text("utf-8") == "# 1\n"
