"""A run that is killed with -9 and resumed leaves what a run leaves that nobody touched."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from conformance import cli

if TYPE_CHECKING:
    from pathlib import Path

CASES = "scheduler/ddim/-/base or scheduler/euler/-/base or text_encoder/tiny/base"
ARGV = ["run", "sd1_impl", "-k", CASES, "--mode", "trace"]

KILLED = '''
"""Runs the suite, and kills this process at one point of it."""
import os
import signal
import sys

from conformance import cli, results, run_folder

where, *argv = sys.argv[1:]
append = run_folder.RunFolder.append
seen = 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_append(self, record):
    global seen
    seen += record["type"] == "case"
    if where == "inside a line" and seen == 2:
        text = run_folder.row(record)
        self._file.write(text[: len(text) // 2])
        self._file.flush()
        die()
    append(self, record)
    if where == "between cases" and seen == 2:
        die()


def killed_write(path, parts):
    path.with_name(f".{path.name}.part").write_text("".join(parts)[:100], "utf-8")
    die()


def killed_reports(out):
    (out / "junit.xml").write_text("<testsuites", "utf-8")
    die()


run_folder.RunFolder.append = killed_append
if where == "inside summary.json":
    results.write_whole = killed_write
if where == "inside a report":
    results.write_reports = killed_reports
sys.exit(cli.main(argv))
'''

POINTS = [
    "between cases",
    "inside a line",
    "inside summary.json",
    "inside a report",
]
RUN_AGAIN = {"between cases": 1, "inside a line": 2}


def lines(out: Path) -> list[dict[str, Any]]:
    """Read results.jsonl without what depends on when it ran, and which process ran it."""
    records = [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines()]
    changing = ("seconds", "started", "process", "environment")
    return [{k: v for k, v in record.items() if k not in changing} for record in records]


def summary(out: Path) -> dict[str, Any]:
    """Read summary.json without what depends on when it ran."""
    facts = json.loads((out / "summary.json").read_text("utf-8"))
    return {k: v for k, v in facts.items() if k not in {"seconds", "environment"}}


def begun(where: str, out: Path) -> int:
    """Run the suite in a process that is killed at a point; return its exit code."""
    argv = [sys.executable, "-c", KILLED, where, *ARGV, "--out", str(out)]
    return subprocess.run(argv, check=False, capture_output=True).returncode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run it once without any harm."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert begun("nowhere", out) == 0
    return out


@pytest.mark.parametrize("where", POINTS)
def test_killed_and_resumed(where: str, unbroken: Path, tmp_path: Path, capsys) -> None:
    """Nothing is lost, nothing is run twice, and every file is as if nothing had happened."""
    out = tmp_path / "out"
    assert begun(where, out) == -9
    assert (out / "summary.json").exists() is (where == "inside a report")
    assert cli.main([*ARGV, "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out.count("[float32-cpu") == RUN_AGAIN.get(where, 0)
    assert lines(out) == lines(unbroken)
    assert summary(out) == summary(unbroken)
    assert {path.name for path in out.iterdir()} == {path.name for path in unbroken.iterdir()}
