"""Progress in a log: lines, not too many, and none of what is quick."""

from itertools import count

import pytest

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
