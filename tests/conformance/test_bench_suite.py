"""`bench suite`: each figure counts what its name says, and the table says which goals are met."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pytest

from conformance import cli
from conformance.bench import record, suite, worker
from conformance.bench.interleave import Clock, Timed
from conformance.bench.record import Reference, Row
from conformance.case import COMPONENTS, Case, find_case
from conformance.errors import SuiteError
from conformance.golden_files import load_golden

CASE = "unet/tiny/base"
BARE, TRACE, SPLICE = 10.0, 11.0, 14.0


class Watched:
    """A component that keeps what it was asked for, and a clock that it alone moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[list[str], list[str]]] = []
        golden = load_golden(find_case(CASE))
        self.outputs = {n: np.zeros(s, np.float32) for n, s in golden.output_shapes.items()}
        shapes = dict(zip(golden.probes, golden.shapes, strict=True))
        self.probes = {n: np.zeros(shapes[n], np.float32) for n in golden.asked}

    def load(self, *_: object) -> Watched:
        """Be the port, too."""
        return self

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Take 10 seconds, 11 where somebody watches, 14 where values are put in."""
        assert inputs.keys() == {"sample", "timestep", "encoder_hidden_states"}
        self.asked.append((list(probes), list(replace or ())))
        self.now += SPLICE if replace else TRACE if probes else BARE
        return self.outputs, {name: self.probes[name] for name in probes}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Let `watching` measure it."""
    component = Watched()
    monkeypatch.setattr(suite, "resolve", lambda _: component)
    clock = Clock(wall=lambda: component.now, cpu=lambda: component.now / 2)
    monkeypatch.setattr(suite, "Clock", lambda: clock)
    return component


def test_each_way_asks_for_what_its_name_says(watched: Watched) -> None:
    """Bare asks for nothing, trace for all that a run asks for, splice puts all of it in."""
    golden = load_golden(find_case(CASE))
    inputs = find_case(CASE).inputs()
    calls = suite.ways(watched, inputs, golden, watched.outputs, watched.probes)
    assert list(calls) == ["bare", "trace", "splice", "judging"]
    for call in calls.values():
        call()
    every = list(golden.asked)
    assert len(every) > 600
    assert watched.asked == [([], []), (every, []), (every, every)]


def test_watching_is_told_from_judging(watched: Watched) -> None:
    """Seconds and ratios are those of the calls; judging, which calls nothing, has its own row."""
    rows = {row.name: row for row in suite.watching(CASE, 3, goals=True)}
    bare, trace, splice, judging = rows.values()
    assert list(rows) == [f"watch/{CASE}:{way}" for way in ("bare", "trace", "splice", "judging")]
    assert bare.runs == (BARE,) * 3
    assert bare.reference is None
    assert trace.runs == (TRACE,) * 3
    assert trace.ratios == (1.1,) * 3
    assert (trace.facts["cpu seconds"], trace.facts["cpu ratio"]) == (TRACE / 2, 1.1)
    assert trace.facts["probe bytes"] == sum(a.nbytes for a in watched.probes.values())
    assert splice.ratios == (1.4,) * 3
    assert judging.runs == (0.0,) * 3
    assert [suite.met(row) for row in rows.values()] == [None, True, False, None]
    assert len(watched.asked) == 1 + 3 * 3


def test_a_small_size_has_no_goals(watched: Watched) -> None:
    """What is meant for the published size is not asked of `tiny`."""
    assert watched.now == 0
    rows = suite.watching(CASE, 1, goals=False)
    assert {suite.met(row) for row in rows} == {None}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row.measured("a", "s", [1.0]), None),
        (Row.measured("a", "s", [0.3, 0.3, 9.0], facts={"goal": 0.3}), True),
        (Row.measured("a", "s", [0.31], facts={"goal": 0.3}), False),
        (Row("a", "s", 5.0, (5.0,), "less", Reference("bare", (4.5,)), {"goal": 1.15}), True),
        (Row("a", "s", 0.1, (0.1,), "less", Reference("bare", (0.05,)), {"goal": 1.15}), False),
    ],
    ids=["no-goal", "median", "over", "ratio", "ratio-over"],
)
def test_goals(row: Row, *, expected: bool | None) -> None:
    """A goal is for the median, or where something is beside it for the median of the ratios."""
    assert suite.met(row) is expected


def test_every_component_has_items() -> None:
    """The small matrix has one case of every component, the smallest size of each."""
    cases = suite.small_matrix()
    assert [case.component for case in cases] == list(COMPONENTS)
    assert {case.variant.name for case in cases} == {"tiny", "-"}
    kinds = {suite.kind(case) for case in cases}
    assert kinds == {"tokenizer", "block", "network", "scheduler", "pipeline", "training"}


def chosen(*names: str) -> list[Case]:
    """Return cases by id."""
    return [find_case(name) for name in names]


def test_items_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of a kind share a row, whose runs are the seconds of each."""
    pytest.importorskip("torch")
    cases = chosen("tokenizer/-/plain", "scheduler/ddim/-/base", "scheduler/ddpm/-/base")
    monkeypatch.setattr(suite, "small_matrix", lambda: cases)
    rows = {row.name: row for row in suite.items()}
    assert {name: len(row.runs) for name, row in rows.items()} == {
        "item/tokenizer:trace": 1,
        "item/scheduler:trace": 2,
    }
    assert all(row.value > 0 and row.unit == "s" for row in rows.values())


def test_an_item_that_fails_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch, port_file: str
) -> None:
    """What a port does not offer, or gets wrong, takes no time that could be compared."""
    monkeypatch.setattr(suite, "PORT", port_file)
    monkeypatch.setattr(suite, "small_matrix", lambda: chosen("scheduler/ddim/-/base"))
    with pytest.raises(SuiteError, match=r"scheduler/ddim/-/base\[float32-cpu\]: skip"):
        suite.items()


def test_starts_are_real() -> None:
    """Both commands are started and end well; the first start, which compiles, does not count."""
    rows = {row.name: row for row in suite.start_up(2)}
    assert {name: len(row.runs) for name, row in rows.items()} == {
        "start-up/--help": 2,
        "start-up/list": 2,
    }
    assert [row.facts["goal"] for row in rows.values()] == [0.3, 1.0]
    assert all(row.facts["cpu seconds"] > 0 for row in rows.values())


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    """It is said which command ended how, with its last line."""
    command = [sys.executable, "-c", "raise SystemExit('so it goes')"]
    with pytest.raises(SuiteError, match="ended with 1, not 0: so it goes"):
        suite._started("a", command, tmp_path, 1)


def test_collection_counts_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The items are those that pytest finds."""
    pytest.importorskip("xdist")
    matrix = tmp_path / "test_matrix.py"
    matrix.write_text("def test_a(): pass\ndef test_b(): pass\n")
    monkeypatch.setattr(suite, "MATRIX", matrix)
    monkeypatch.chdir(tmp_path)
    alone, shared = suite.collection(1)
    assert (alone.name, alone.facts["items"]) == ("collect", 2)
    assert (shared.name, len(shared.runs)) == ("collect-2-workers", 1)


def test_no_collection_without_the_matrix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed package has no tests: that step is left out."""
    plan = suite.PLANS["tiny"]
    assert "collecting the matrix" in dict(suite.steps(plan))
    monkeypatch.setattr(suite, "MATRIX", tmp_path / "none.py")
    assert "collecting the matrix" not in dict(suite.steps(plan))


@pytest.mark.skipif(worker.own_bytes() is None, reason="needs Linux's /proc")
def test_memory_of_workers() -> None:
    """Small weights are each worker's own: all bytes of them are counted, for both workers."""
    pytest.importorskip("torch")
    load, own = suite.memory(CASE, goals=True)
    assert (load.name, len(load.runs)) == ("load/unet/tiny[float32]", 1)
    assert (own.name, own.unit, len(own.runs)) == ("memory/unet/tiny[float32]:own", "bytes", 2)
    weights = own.facts["weights"]
    assert weights == 4 * find_case(CASE).weights().parameter_count()
    assert min(own.runs) > 0.9 * weights
    assert own.facts["goal"] == weights / 4
    assert suite.met(own) is False


def test_a_worker_that_ends_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that cannot be loaded is said, and no process is left."""
    monkeypatch.setattr(suite, "PORT", "no_such_port")
    with pytest.raises(SuiteError, match="a worker could not hold the network of unet/tiny/base"):
        suite.memory(CASE, goals=False)


ROWS = [
    Row.measured("start", "s", [0.25], facts={"goal": 0.3, "cpu seconds": 0.03}),
    suite._row("watch", [Timed(3.0, 2.0)], 1.3, [Timed(2.0, 2.0)]),
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[suite.Plan]:
    """Measure nothing; return the plans that are asked for."""
    plans: list[suite.Plan] = []

    def steps(plan: suite.Plan) -> list[suite.Step]:
        plans.append(plan)
        return [("first", lambda: ROWS[:1]), ("second", lambda: ROWS[1:])]

    monkeypatch.setattr(suite, "steps", steps)
    return plans


def test_the_command(measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has goals and whether they are met; the file has the rows."""
    out = tmp_path / "suite.json"
    assert cli.main(["bench", "suite", "--variant", "tiny", "--out", str(out)]) == 0
    assert measured == [suite.PLANS["tiny"]]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][0] == "start"
    assert lines[1][-3:] == ["300", "ms", "met"]
    assert lines[2][-4:] == ["1.5", "1", "1.3", "MISSED"]
    found = record.read(out)
    assert (found.bench, found.extra) == ("suite", {"variant": "tiny"})
    assert list(found.rows.values()) == ROWS
    assert json.loads(out.read_text("utf-8"))["rows"][1]["ratio"] == 1.5


def test_the_published_size_is_the_default(measured) -> None:
    """Without `--variant` the goals are meant."""
    assert cli.main(["bench", "suite"]) == 0
    assert measured == [suite.PLANS["sd1"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "suite"], "--quick is an option of `bench` alone"),
        (["--variant", "odd", "suite"], "unknown variant 'odd'"),
        (["suite", "--out", "no/folder/file"], "cannot write no/folder/file"),
    ],
    ids=["foreign", "variant", "out"],
)
def test_misuse(measured, words: list[str], message: str, capsys) -> None:
    """What cannot be meant or kept is said before anything is measured."""
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
    assert measured == []
