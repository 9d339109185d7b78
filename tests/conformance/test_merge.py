"""Shards of a run, merged, are the run; what does not belong together is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import cli
from conformance.run_folder import row

TEXTS = [f"tokenizer/-/{name}" for name in ("plain", "empty", "contractions", "roman-numerals")]
CASES = " or ".join(TEXTS)
CHANGING = ("seconds", "started", "process", "environment", "place")


def read(out: Path) -> list[dict[str, Any]]:
    """Read results.jsonl."""
    return [json.loads(text) for text in (out / "results.jsonl").read_text("utf-8").splitlines()]


def write(out: Path, records: list[dict[str, Any]]) -> None:
    """Write results.jsonl."""
    (out / "results.jsonl").write_text("".join(map(row, records)), "utf-8")


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without what depends on when and where it was made."""
    return {key: value for key, value in record.items() if key not in CHANGING}


def summary_of(out: Path) -> dict[str, Any]:
    """Read summary.json without what depends on when and where it was made."""
    return lasting(json.loads((out / "summary.json").read_text("utf-8")))


def run(out: Path, port: str, *options: str, cases: str = CASES) -> int:
    """Run a part of the suite into a folder."""
    return cli.main(["run", port, "-k", cases, "--out", str(out), *options])


def merge(out: Path, *folders: Path) -> int:
    """Merge folders."""
    return cli.main(["merge", *map(str, folders), "--out", str(out)])


def run_shards(
    folder: Path, port: str, count: int, *options: str, cases: str = CASES
) -> list[Path]:
    """Run every shard into a folder of its own."""
    folders = [folder / f"shard{i}" for i in range(1, count + 1)]
    for i, out in enumerate(folders, start=1):
        run(out, port, "--shard", f"{i}/{count}", *options, cases=cases)
    return folders


PORT = """
import os

import numpy as np

from conformance.case import find_case
from conformance.golden_files import load_golden


class Port:
    def hello(self):
        return {"name": "stored", "version": "1", "components": ["tokenizer"],
                "probes": False, "replace": False}

    def load(self, *_):
        return self

    def run(self, inputs, probes=(), replace=None):
        for name in TEXTS:
            case = find_case(name)
            if np.array_equal(case.inputs()["text"], inputs["text"]):
                wrong = name == os.environ.get("WRONG_TEXT")
                return {k: v + wrong for k, v in load_golden(case).outputs.items()}, {}
        raise KeyError("text")
"""


@pytest.fixture(scope="module")
def port_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a port that knows four texts, and return its PORT argument."""
    path = tmp_path_factory.mktemp("port") / "stored.py"
    path.write_text(PORT.replace("TEXTS:", f"{TEXTS!r}:"), "utf-8")
    return f"{path}:Port"


@pytest.fixture(scope="module")
def made(port_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two shards of a right port."""
    folder = tmp_path_factory.mktemp("made")
    run_shards(folder, port_path, 2)
    return folder


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> list[Path]:
    """Copy the two shards."""
    return [Path(shutil.copytree(made / f"shard{i}", tmp_path / f"shard{i}")) for i in (1, 2)]


REAL = (
    "text_encoder/tiny/base or text_encoder/tiny/empty or text_encoder/tiny/short or "
    "scheduler/ddim/-/base or scheduler/euler/-/base or scheduler/lms/-/base"
)

FAULTY = """
from conformance.mutants.catalogue import CATALOGUE
from conformance.mutants.port import MutantPort


class Faulty:
    wrong = MutantPort(next(m for m in CATALOGUE if m.id == "clip-exact-gelu"))

    def hello(self):
        return self.wrong.hello()

    def load(self, component, *arguments):
        port = self.wrong if component == "text_encoder" else self.wrong.port
        return port.load(component, *arguments)
"""


def test_four_shards_are_the_run(tmp_path: Path) -> None:
    """Four shards of a right port, each conformant, merge to the very results of one run."""
    pytest.importorskip("torch")
    assert run(tmp_path / "one", "sd1_impl", "--mode", "trace", cases=REAL) == 0
    folders = run_shards(tmp_path, "sd1_impl", 4, "--mode", "trace", cases=REAL)
    assert merge(tmp_path / "merged", *reversed(folders)) == 0
    assert [*map(lasting, read(tmp_path / "merged"))] == [*map(lasting, read(tmp_path / "one"))]
    assert summary_of(tmp_path / "merged") == summary_of(tmp_path / "one")


def test_four_shards_of_a_faulty_port(tmp_path: Path) -> None:
    """Verdict, counts, ratios, causes and the first divergence are those of one run."""
    pytest.importorskip("diffusers")
    port = tmp_path / "faulty.py"
    port.write_text(FAULTY, "utf-8")
    spec = f"{port}:Faulty"
    assert run(tmp_path / "one", spec, cases=REAL) == 1
    folders = run_shards(tmp_path, spec, 4, cases=REAL)
    verdicts = {summary_of(folder)["verdict"] for folder in folders}
    assert verdicts == {"conformant", "nonconformant"}
    assert merge(tmp_path / "merged", *folders) == 1
    assert [*map(lasting, read(tmp_path / "merged"))] == [*map(lasting, read(tmp_path / "one"))]
    one, merged = summary_of(tmp_path / "one"), summary_of(tmp_path / "merged")
    assert merged == one
    assert one["faults"][0]["mutant"] == "clip-exact-gelu"
    assert one["faults"][0]["confirmed"]
    data = {path.name: path.read_bytes() for path in (tmp_path / "one" / "data").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "merged" / "data").iterdir()} == data
    assert "sources.json" in data


Edit = Callable[[list[dict[str, Any]]], None]


def header(**changes: object) -> Edit:
    """Edit the header of results.jsonl."""
    return lambda records: records[0].update(changes)


def port(**changes: object) -> Edit:
    """Edit what the header says of the port."""
    return lambda records: records[0]["port"].update(changes)


REFUSED: dict[str, tuple[Edit, str]] = {
    "suite": (header(suite="9"), "suite is not that of"),
    "goldens": (header(goldens="0"), "goldens is not that of"),
    "weights": (header(weights="0"), "weights is not that of"),
    "limit": (header(limit=5.0), "limit is not that of"),
    "control": (header(control="diffusers"), "control is not that of"),
    "xfails": (header(xfails={"file": "a", "lines": {"1": "b"}}), "xfails is not that of"),
    "port": (port(name="other"), "port's name is not that of"),
    "version": (port(version="2"), "port's version is not that of"),
    "digest": (port(sha256="0"), "port's digest is not that of"),
    "items": (
        lambda records: records[0]["items"].update(sha256="0"),
        "items is not that of",
    ),
    "count": (header(shard="2/3"), "shard is not that of"),
    "twice": (header(shard="1/2"), "shard 1/2 is that of .*shard1 too: leave one out"),
    "foreign-shard": (header(shard="3/2"), "shard names no part"),
    "broken-off": (
        lambda records: records.pop(),
        "footer is missing: finish the run with --resume",
    ),
    "fewer": (lambda records: records.pop(1), "items are unfinished, 1 have no result: finish"),
    "control-lines": (
        lambda records: records[-1].update(controls=1),
        "results.jsonl is damaged .0 of 1 control lines.: run it again",
    ),
    "no-verdict": (
        lambda records: records[1].update(verdict="?"),
        r"results.jsonl is no run.s results .verdict of \S+ is damaged",
    ),
    "no-probes": (
        lambda records: records[1].update(probes=[7]),
        r"results.jsonl is no run.s results .probes of \S+ is damaged",
    ),
    "no-place": (
        lambda records: records[1].pop("place"),
        r"results.jsonl is no run.s results .place of \S+ is damaged",
    ),
    "no-case": (
        lambda records: records[1].pop("case"),
        "results.jsonl is no run's results .line 2",
    ),
    "no-time": (header(started="yesterday"), "started is no time"),
}


def test_a_whole_run(shards, port_path: str, tmp_path: Path, capsys) -> None:
    """A whole run is called one, and nothing else of it is found wrong."""
    assert run(tmp_path / "good", port_path) == 0
    capsys.readouterr()
    assert merge(tmp_path / "out", shards[0], tmp_path / "good") == 2
    told = f"cannot merge {tmp_path / 'good'}: it is a whole run, no shard: name folders that"
    assert capsys.readouterr().err == f"sd1-conformance: {told} `run --shard` wrote\n"


def test_a_baseline_of_other_cases(shards, port_path: str, tmp_path: Path, capsys) -> None:
    """A baseline that has no case in common is a check that was not made: exit 3."""
    run(tmp_path / "a", port_path, cases="tokenizer/-/arabic")
    command = ["merge", *map(str, shards), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--baseline", str(tmp_path / "a")]) == 3
    text = capsys.readouterr().out
    assert "NOTHING COMPARED: the two runs have no case in common" in text
    assert 'name="baseline"' in (tmp_path / "out" / "junit.xml").read_text("utf-8")


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(shards, tmp_path: Path, capsys, edit: Edit, message: str) -> None:
    """What does not belong together is refused in one line that names folder and field."""
    records = read(shards[1])
    edit(records)
    write(shards[1], records)
    assert merge(tmp_path / "out", *shards) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"sd1-conformance: cannot merge {shards[1]}: its {message}", told)
    assert not (tmp_path / "out").exists()


def test_refuses_a_case_of_two_shards(shards, tmp_path: Path, capsys) -> None:
    """A case that is in two shards is counted by neither."""
    first, second = read(shards[0]), read(shards[1])
    second[1] = first[1]
    write(shards[1], second)
    assert merge(tmp_path / "out", *shards) == 2
    told = capsys.readouterr().err
    assert re.search(r"shard2: its case \S+ is in \S+shard1 too: run it again", told)


def test_refuses_other_items(shards, tmp_path: Path, capsys) -> None:
    """Shards that agree among themselves and hold other cases than they say are no run."""
    for folder in shards:
        records = read(folder)
        records[0]["items"]["sha256"] = "0"
        write(folder, records)
    assert merge(tmp_path / "out", *shards) == 2
    assert "its items are not those that the shards hold" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"\xff\n\n", b"{}\n"], ids=str)
def test_refuses_what_is_no_run(shards, tmp_path: Path, capsys, content: bytes | None) -> None:
    """A folder without results, or with other results, is named."""
    other = tmp_path / "other"
    other.mkdir()
    if content is not None:
        (other / "results.jsonl").write_bytes(content)
    assert merge(tmp_path / "out", *shards, other) == 2
    assert f"cannot merge {other}: its results.jsonl is n" in capsys.readouterr().err


def test_refuses_its_own_folder(shards, capsys) -> None:
    """The folder of a shard is not overwritten."""
    before = read(shards[0])
    assert merge(shards[0], *shards) == 2
    assert "is one of the shards: name another folder" in capsys.readouterr().err
    assert read(shards[0]) == before


def test_missing_shard(shards, tmp_path: Path, capsys) -> None:
    """What is not there may be wrong: the run is incomplete, and says which shard is missing."""
    out = tmp_path / "out"
    assert merge(out, shards[1]) == 3
    assert "without shard 1/2" in capsys.readouterr().out
    summary = summary_of(out)
    assert (summary["verdict"], summary["missing_shards"]) == ("incomplete", ["1/2"])
    assert [record["type"] for record in read(out)].count("case") == len(read(shards[1])) - 2


def test_missing_shard_of_a_wrong_port(port_path, tmp_path: Path, monkeypatch, capsys) -> None:
    """What is wrong stays wrong, whatever is missing."""
    monkeypatch.setenv("WRONG_TEXT", TEXTS[1])
    folders = run_shards(tmp_path, port_path, 2)
    wrong = next(f for f in folders if summary_of(f)["verdict"] == "nonconformant")
    assert merge(tmp_path / "out", wrong) == 1
    assert summary_of(tmp_path / "out")["missing_shards"]
    assert "without shard" in capsys.readouterr().out


def test_expected_failures_are_checked_over_the_whole(
    port_path, tmp_path: Path, monkeypatch
) -> None:
    """No shard knows whether an entry is of use elsewhere; the merged run does."""
    monkeypatch.setenv("WRONG_TEXT", TEXTS[1])
    known = tmp_path / "known.txt"
    rows = [f"{TEXTS[1]} | * | * | inf | off | ", f"{TEXTS[2]} | * | * | inf | old | "]
    known.write_text("\n".join(rows), "utf-8")
    options = ("--xfails", str(known))
    assert run(tmp_path / "one", port_path, *options) == 1
    folders = run_shards(tmp_path, port_path, 2, *options)
    assert [summary_of(folder)["xfails"]["problems"] for folder in folders] == [[], []]
    assert {summary_of(folder)["verdict"] for folder in folders} == {"conformant"}
    assert merge(tmp_path / "out", *folders) == 1
    merged = summary_of(tmp_path / "out")
    assert merged == summary_of(tmp_path / "one")
    assert merged["xfails"]["problems"] == [f"line 2: now passes: delete it ({TEXTS[2]} | *)"]
    assert (merged["counts"]["xfail"], merged["counts"]["xpass"]) == (1, 1)


def test_resumed_shard(shards, port_path, tmp_path: Path) -> None:
    """A shard that was broken off and resumed is merged like any other."""
    rows = (shards[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    (shards[0] / "results.jsonl").write_bytes(b"".join(rows[:2])[:-9])
    assert merge(tmp_path / "out", *shards) == 2
    assert run(shards[0], port_path, "--shard", "1/2", "--resume") == 0
    assert merge(tmp_path / "out", *shards) == 0
    assert run(shards[0], port_path, "--shard", "2/2", "--resume") == 2


def test_environments_are_told_together(shards, tmp_path: Path) -> None:
    """Machines may differ; the report names what each of them was."""
    records = read(shards[1])
    records[0]["environment"]["cpu"] = "another"
    write(shards[1], records)
    assert merge(tmp_path / "out", *shards) == 0
    cpu = read(tmp_path / "out")[0]["environment"]["cpu"]
    assert cpu.endswith(" | another")


def test_control_and_baseline(port_path, tmp_path: Path) -> None:
    """Control lines are merged like cases, and the whole is compared with an earlier run."""
    options = ("--control", port_path)
    assert run(tmp_path / "one", port_path, *options) == 0
    folders = run_shards(tmp_path, port_path, 2, *options)
    argv = ["merge", *map(str, folders), "--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--baseline", str(tmp_path / "one")]) == 0
    assert [*map(lasting, read(tmp_path / "out"))] == [*map(lasting, read(tmp_path / "one"))]
    merged = summary_of(tmp_path / "out")
    assert merged["control"] == summary_of(tmp_path / "one")["control"]
    assert (merged["baseline"]["worse"], merged["baseline"]["vanished"]) == (0, 0)


HOSTILE = {
    "no-list": "causes",
    "no-objects": [7, None, []],
    "no-names": [{"confirmed": True, "component": "tokenizer", "mutant": "m", "ratio_if_so": 1.0}],
    "other-types": [{"confirmed": True, "component": {}, "mutant": [1], "ratio_if_so": "x"}],
    "nan": [{"confirmed": True, "component": "t", "mutant": "m", "ratio_if_so": "nan", "names": 7}],
}


@pytest.mark.parametrize("faults", HOSTILE.values(), ids=HOSTILE)
def test_causes_are_hostile(shards, tmp_path: Path, faults: object) -> None:
    """A footer may hold anything: what is no cause is none."""
    records = read(shards[1])
    records[-1]["faults"] = faults
    write(shards[1], records)
    assert merge(tmp_path / "out", *shards) == 0
    assert summary_of(tmp_path / "out")["faults"] == []
