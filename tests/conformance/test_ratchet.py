"""`run --baseline`: a run is held against an earlier one, and the best ratios are kept."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from conformance import explain
from conformance.errors import UsageError
from conformance.regression.ratchet import RATCHET, Ratchet
from conformance.runner import Runner

if TYPE_CHECKING:
    from pathlib import Path

HEADER = {"goldens": "g", "weights": None}
EMPTY = Ratchet.empty(HEADER)
BASE = "unet/tiny/base[float32-cpu-sdpa-trace]"


def test_it_only_goes_down() -> None:
    """The best ratio of each item is kept, whatever comes later."""
    one = EMPTY.lowered([("a", 3.0), ("b", 30.0), ("c", None)])
    two = one.lowered([("a", 3.5), ("b", 2.0), ("d", 1.5)])
    assert two.best == {"a": 3.0, "b": 2.0, "d": 1.5}


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_below_1_is_no_merit(ratio: float) -> None:
    """Below 1 a ratio is the reference's own noise: the best is 1, and twice that is the bound."""
    ratchet = EMPTY.lowered([("a", ratio)])
    assert ratchet.best == {"a": 1.0}
    assert not ratchet.slipped([("a", 2.0)])
    assert ratchet.slipped([("a", 2.1)]) == [{"case": "a", "before": 1.0, "after": 2.1}]


@pytest.mark.parametrize("ratio", [math.nan, math.inf])
def test_what_is_no_number_is_no_best(ratio: float) -> None:
    """NaN and infinity never become a best, and are over twice any."""
    assert EMPTY.lowered([("a", ratio)]).best == {}
    assert len(EMPTY.lowered([("a", 3.0)]).slipped([("a", ratio), ("b", ratio)])) == 1


def test_creeping_is_caught() -> None:
    """Steps that are each within noise add up; the worst item comes first."""
    ratchet, ratio = EMPTY.lowered([("a", 1.0), ("b", 1.0)]), 1.0
    for _ in range(2):
        ratio *= 1.8
        slipped = ratchet.slipped([("a", ratio), ("b", 1.1 * ratio)])
        ratchet = ratchet.lowered([("a", ratio), ("b", 1.1 * ratio)])
    assert [item["case"] for item in slipped] == ["b", "a"]


def test_file(tmp_path: Path) -> None:
    """What is written is read again, the items in order."""
    assert Ratchet.read(tmp_path) is None
    ratchet = EMPTY.lowered([("b", 1.2345678), ("a", 1.0)])
    ratchet.write(tmp_path)
    found = Ratchet.read(tmp_path)
    assert found == Ratchet(EMPTY.units, {"a": 1.0, "b": 1.235})
    assert list(found.best) == ["a", "b"]


DAMAGED = {
    "no-json": "{",
    "another-file": "[]",
    "no-best": '{"goldens": "g", "weights": ""}',
    "best-is-a-list": '{"goldens": "g", "weights": "", "best": []}',
    "text": '{"goldens": "g", "weights": "", "best": {"a": "x"}}',
    "below-1": '{"goldens": "g", "weights": "", "best": {"a": 0.5}}',
    "nan": '{"goldens": "g", "weights": "", "best": {"a": NaN}}',
    "binary": b"\xff\xfe",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file(tmp_path: Path, text: str | bytes) -> None:
    """It is refused in one line that says what to do."""
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / RATCHET).write_bytes(data)
    with pytest.raises(UsageError, match=r"ratchet\.json is no ratchet .* delete it"):
        Ratchet.read(tmp_path)


@pytest.fixture
def run(main, port_file: str, golden_copy, tmp_path: Path, monkeypatch):
    """Return a function that runs one case on a port that is off by a factor of 1 + $OFF."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    monkeypatch.setattr(explain, "_testable", lambda _: False)
    path = tmp_path / "off.py"
    text = (tmp_path / "stored_port.py").read_text("utf-8")
    assert port_file.startswith(str(tmp_path / "stored_port.py"))
    assert golden_copy.root.exists()
    wrong = 'sign = 1 + float(os.environ.get("OFF", "0"))'
    text = text.replace('sign = -1 if fault == "negates" else 1', wrong)
    path.write_text(text, "utf-8")

    def call(out: str, off: float = 0.0, *options: object) -> tuple[int, str, dict]:
        monkeypatch.setenv("OFF", str(off))
        argv = ("run", f"{path}:make", "-k", "unet/tiny/base", "--out", tmp_path / out, *options)
        code, text, told = main(*argv)
        summary = tmp_path / out / "summary.json"
        assert summary.exists() or code == 2
        found = json.loads(summary.read_text("utf-8")) if summary.exists() else {}
        return code, text + told, found

    return call


def off_for(run, ratio: float) -> float:
    """Return how far off the port has to be for a ratio."""
    off = 2e-6
    return off * ratio / run("probing", off)[2]["worst_ratio"]


def test_an_honest_run(run, tmp_path: Path) -> None:
    """A run that is as good as its baseline is a success."""
    assert run("a")[2]["baseline"] is None
    code, text, summary = run("b", 0.0, "--baseline", tmp_path / "a")
    assert code == 0
    assert "NO REGRESSION against" in text
    assert summary["baseline"]["regressions"] == summary["baseline"]["ratchet"] == []
    assert json.loads((tmp_path / "b" / RATCHET).read_text("utf-8"))["best"] == {BASE: 1.0}


def test_worse_but_within_the_limit(run, tmp_path: Path) -> None:
    """A port that got worse is conformant still; the command fails all the same."""
    off = off_for(run, 3.0)
    run("a")
    code, text, summary = run("b", off, "--baseline", tmp_path / "a")
    assert (code, summary["verdict"]) == (1, "conformant")
    assert "REGRESSION against" in text
    assert "CONFORMANT" in text
    (found,) = summary["baseline"]["regressions"]
    assert (found["what"], found["probe"], found["case"]) == ("worse", "sample", BASE)
    assert found["before"] < 1
    assert found["after"] == pytest.approx(3.0, rel=0.1)


def test_worse_than_the_limit(run, tmp_path: Path) -> None:
    """A port that fails now is not conformant, and a regression."""
    run("a")
    code, _, summary = run("b", 0.1, "--baseline", tmp_path / "a")
    assert (code, summary["verdict"]) == (1, "nonconformant")
    assert summary["baseline"]["regressions"][0]["verdicts"] == ["pass", "fail"]


def test_the_ratchet_warns_of_creeping(run, tmp_path: Path) -> None:
    """Over twice the best ratio ever is a warning, not a failure, run after run."""
    base = off_for(run, 1.0)
    run("a")
    code, _, summary = run("b", 1.8 * base, "--baseline", tmp_path / "a")
    assert (code, summary["baseline"]["ratchet"]) == (0, [])
    code, text, summary = run("c", 3.2 * base, "--baseline", tmp_path / "b")
    assert code == 0
    (slipped,) = summary["baseline"]["ratchet"]
    assert (slipped["case"], slipped["before"]) == (BASE, 1.0)
    assert "the best ratio was 1, now 3." in text


def test_other_goldens_begin_a_ratchet(run, tmp_path: Path) -> None:
    """With other goldens the noise, and so the unit of a best ratio, is another."""
    run("a")
    path = tmp_path / "a" / RATCHET
    path.write_text(path.read_text("utf-8").replace('"goldens": "', '"goldens": "0'), "utf-8")
    assert run("b", off_for(run, 3.0), "--baseline", tmp_path / "a")[2]["baseline"]["ratchet"] == []
    best = json.loads((tmp_path / "b" / RATCHET).read_text("utf-8"))["best"]
    assert best[BASE] == pytest.approx(3.0, rel=0.1)


def test_an_older_run_has_no_ratchet(run, tmp_path: Path) -> None:
    """Then its own ratios are the best."""
    run("a")
    (tmp_path / "a" / RATCHET).unlink()
    slipped = run("b", off_for(run, 3.0), "--baseline", tmp_path / "a")[2]["baseline"]["ratchet"]
    assert [item["case"] for item in slipped] == [BASE]


def test_a_baseline_that_cannot_be_used(run, tmp_path: Path) -> None:
    """It is refused before anything is run or overwritten."""
    run("a")
    results = (tmp_path / "a" / "results.jsonl").read_text("utf-8")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    text = results.replace('"name":"fake"', '"name":"other"', 1)
    (foreign / "results.jsonl").write_text(text, "utf-8")
    for folder, message in (
        (tmp_path / "none", "holds no results.jsonl"),
        (tmp_path / "a", "is the folder of this run"),
        (foreign, "is a run of other, not of fake"),
    ):
        code, text, _ = run("a", 0.0, "--baseline", folder)
        assert code == 2
        assert message in text
        assert "[1/1]" not in text
    assert (tmp_path / "a" / "results.jsonl").read_text("utf-8") == results


def test_another_version_of_the_port(run, tmp_path: Path) -> None:
    """The port may have another version than in the baseline: that is what it is for."""
    run("a")
    path = tmp_path / "a" / "results.jsonl"
    path.write_text(path.read_text("utf-8").replace('"version":"1.0"', '"version":"0.9"'), "utf-8")
    assert run("b", 0.0, "--baseline", tmp_path / "a")[0] == 0
