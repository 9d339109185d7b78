"""`run --xfails FILE` and `--sd1-xfails`: known failures are excused, and the list is checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.runner import Runner

ENTRY = "unet/tiny/base | * | * | inf | the sign is wrong, issue #3 |\n"
LISTS = {
    "known": (ENTRY, "negates", 0, "xfail"),
    "over-the-bound": (ENTRY.replace("inf", "12"), "negates", 1, "fail"),
    "another-case": (ENTRY.replace("base", "quiet"), "negates", 1, "fail"),
    "now-passes": (ENTRY, "", 1, "xpass"),
    "expired": (ENTRY.rstrip("\n") + " 2020-01-01", "negates", 1, "fail"),
    "matches-nothing": (ENTRY.replace("base", "bass"), "", 1, "pass"),
    "not-an-error": (ENTRY, "raises", 3, "error"),
}


@pytest.mark.usefixtures("golden_copy", "no_causes")
@pytest.mark.parametrize(("text", "fault", "expected", "verdict"), LISTS.values(), ids=LISTS)
def test_run(main, port_file, tmp_path, monkeypatch, text, fault, expected, verdict) -> None:
    """The exit code follows what is excused, and whether the list fits."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    monkeypatch.setenv("FAKE_PORT", fault)
    (tmp_path / "known.txt").write_text(text, "utf-8")
    arguments = ["--xfails", tmp_path / "known.txt", "--out", tmp_path / "out", "-k"]
    code, out, _ = main("run", port_file, *arguments, "unet/tiny/base")
    assert code == expected, out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert summary["counts"][verdict] == 1
    assert summary["xfails"]["entries"] == 1
    if verdict == "xfail":
        assert "known.txt line 1: the sign is wrong, issue #3" in out
        assert summary["verdict"] == "conformant"


def test_bad_list(main, port_file, tmp_path) -> None:
    """A line that is no entry is bad usage, with its number."""
    (tmp_path / "known.txt").write_text("# fine\nunet/tiny/base | *\n", "utf-8")
    code, out, err = main("run", port_file, "--xfails", tmp_path / "known.txt")
    assert (code, out) == (2, "")
    assert "line 2" in err


@pytest.mark.usefixtures("golden_copy")
@pytest.mark.parametrize(("fault", "code", "word"), [("negates", 0, "xfailed"), ("", 1, "passed")])
def test_plugin(port_file, tmp_path, monkeypatch, fault, code, word) -> None:
    """The plugin says the same: an expected failure is an xfail, one that passes fails the run."""
    monkeypatch.setenv("FAKE_PORT", fault)
    (tmp_path / "known.txt").write_text(ENTRY, "utf-8")
    matrix = Path(__file__).parents[1] / "test_conformance.py"
    command = [sys.executable, "-m", "pytest", str(matrix), "-k", "test_golden and unet/tiny/base"]
    command += ["--sd1-port", port_file, "--sd1-dtype", "float32", "--sd1-mode", "trace"]
    command += ["--sd1-variant", "tiny", "--sd1-out", str(tmp_path / "out")]
    command += ["--sd1-xfails", str(tmp_path / "known.txt"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=matrix.parents[1]
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert word in done.stdout
