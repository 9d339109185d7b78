"""Progress in a log: lines, not too many, and none of what is quick."""

import re
from itertools import count
from pathlib import Path

import pytest

from conformance import cli
from conformance.progress import Progress


def test_lines_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line every few seconds, of what is done and how much there is."""
    ticks = count(0, 2)  # each look at the clock is two seconds later
    monkeypatch.setattr("tqdm.std.time", lambda: next(ticks))
    assert list(Progress("abcdef", unit="case", desc="judge")) == list("abcdef")
    captured = capsys.readouterr()
    assert captured.out == ""
    told = captured.err.splitlines()
    assert 1 < len(told) < 7
    assert told[0].startswith("judge [3/6] cases, ")


def test_nothing_is_told_of_what_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    """What takes less than that is quiet."""
    assert list(Progress([1, 2], unit="case")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_what_is_being_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log names it in its next line, whatever else was done meanwhile."""
    ticks = count(0, 2)
    monkeypatch.setattr("tqdm.std.time", lambda: next(ticks))
    with Progress(bar_format="{desc}", leave=False) as bar:
        for text in ("first", "second", "third", "fourth", "fifth"):
            bar.now(text)
            bar.update()
    told = capsys.readouterr().err.splitlines()
    assert told
    assert set(told) < {"first", "second", "third", "fourth", "fifth"}


def test_weights_that_are_written_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`weights export` and `convert` tell a log how many tensors are written."""
    ticks = count(0, 0.5)
    monkeypatch.setattr("tqdm.std.time", lambda: next(ticks))
    assert cli.main(["weights", "export", "--variant", "tiny", "--out", str(tmp_path / "w")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert all(re.match(r"weights \[\d+/\d+\] tensors, ", line) for line in told)
    assert len(told) > 3


def test_an_audit_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`audit` tells a log which case it is at."""
    pytest.importorskip("diffusers")
    ticks = count(0, 6)
    monkeypatch.setattr("tqdm.std.time", lambda: next(ticks))
    chosen = ["--component", "text_encoder", "--variant", "tiny"]
    assert cli.main(["audit", *chosen, "--out", str(tmp_path / "audit")]) == 0
    assert "text_encoder/tiny/base: profile" in capsys.readouterr().err.splitlines()
