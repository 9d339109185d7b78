"""Resuming a run that was broken off: nothing is lost, nothing foreign is mixed in."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance import cli, run_folder
from conformance import results as results_module
from conformance.case import find_case
from conformance.errors import ExitCode, SuiteError, UsageError
from conformance.execution import Execution
from conformance.port import Hello
from conformance.result import Result
from conformance.results import Results

if TYPE_CHECKING:
    from collections.abc import Iterator


ALL = [f"unet/tiny/{name}[float32-cpu-sdpa-trace]" for name in ("base", "quiet", "loud", "t0")]


def line(name: str = "base", **changes: object) -> dict[str, Any]:
    """Build a case line."""
    return Result(find_case(f"unet/tiny/{name}"), Execution(), "pass").as_json() | changes


def read(out: Path) -> list[dict[str, Any]]:
    """Read results.jsonl."""
    return [json.loads(row) for row in (out / "results.jsonl").read_text("utf-8").splitlines()]


def start(out: Path, **changes: Any) -> Results:
    """Begin a run, or go on with one."""
    hello = Hello("fake", "1.0", ("unet",))
    facts = {"hello": hello, "port_spec": "fake.py:make", "scope": "unet; tiny"} | changes
    return Results(out, **facts)


@pytest.mark.parametrize("cut", [1, 2, 30, -1], ids=["newline", "brace", "inside", "only-a-letter"])
def test_resume(tmp_path: Path, cut: int) -> None:
    """A run that was cut inside its last line goes on after the last whole one."""
    run = start(tmp_path)
    for name in ("base", "quiet", "loud"):
        run.add(line(name, ratio=math.nan))
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[:-cut] if cut > 0 else whole[: last + 1])
    run = start(tmp_path, resume=ALL)
    expected = ["base", "quiet", "loud"] if cut == 1 else ["base", "quiet"]
    assert [found["scenario"] for found in run.lines] == expected
    run.add(line("t0"))
    assert run.close()["counts"]["pass"] == len(expected) + 1
    rows = read(tmp_path)
    assert [r["type"] for r in rows] == ["header", *["case"] * (len(expected) + 1), "footer"]
    assert rows[1]["ratio"] == "nan"


def test_resume_after_the_end(tmp_path: Path) -> None:
    """A finished run can be resumed: its cases stay, its footer is written anew."""
    run = start(tmp_path)
    run.add(line())
    run.close()
    run = start(tmp_path, resume=ALL)
    assert len(run.lines) == 1
    run.close()
    assert [r["type"] for r in read(tmp_path)] == ["header", "case", "footer"]


def test_resume_loses_nothing(tmp_path: Path) -> None:
    """A selection that leaves out what was run is refused; one that adds to it is not."""
    run = start(tmp_path)
    for name in ("base", "quiet"):
        run.add(line(name))
    run.close()
    before = read(tmp_path)
    with pytest.raises(UsageError, match=r"holds 1 items? .*unet/tiny/base.*repeat the selection"):
        start(tmp_path, resume=ALL[1:])
    assert read(tmp_path) == before
    assert [found["scenario"] for found in start(tmp_path, resume=ALL).lines] == ["base", "quiet"]


def test_resume_notices_an_edited_port(tmp_path: Path) -> None:
    """A file that has changed is another port: what it was once does not speak for it."""
    source = tmp_path / "mine.py"
    source.write_text("right = True", "utf-8")
    start(tmp_path / "out", port_spec=f"{source}:make").add(line())
    assert len(start(tmp_path / "out", port_spec=f"{source}:make", resume=ALL).lines) == 1
    source.write_text("right = False", "utf-8")
    with pytest.raises(UsageError, match=r"its run is another: port's files [0-9a-f]{12}, now"):
        start(tmp_path / "out", port_spec=f"{source}:make", resume=ALL)


@pytest.mark.parametrize("text", [None, "", '{"type":"hea'], ids=["no-file", "empty", "header-cut"])
def test_resume_nothing(tmp_path: Path, text: str | None) -> None:
    """Where there is nothing to resume, a run begins."""
    if text is not None:
        (tmp_path / "results.jsonl").write_text(text, "utf-8")
    assert start(tmp_path, resume=ALL).lines == []
    assert len(read(tmp_path)) == 1


OTHER = {
    "port": ({"hello": Hello("other", "1.0", ("unet",))}, "port fake, now other; repeat"),
    "version": ({"hello": Hello("fake", "1.1", ("unet",))}, "port's version 1.0, now 1.1; repeat"),
    "spec": ({"port_spec": "other.py:make"}, "PORT fake.py:make, now other.py:make; repeat"),
    "scope": ({"scope": "unet; odd"}, "scope 'tiny', now 'odd'; repeat"),
    "more-scope": ({"scope": "unet; tiny; splice"}, "scope nothing, now 'splice'; repeat"),
    "order": ({"scope": "tiny; unet"}, "scope 'unet; tiny', now 'tiny; unet'; repeat"),
    "control": ({"control": "diffusers"}, "control none, now diffusers; repeat"),
    "several": (
        {"scope": "unet; odd", "port_spec": "other.py:make"},
        "PORT fake.py:make, now other.py:make; scope 'tiny', now 'odd'; repeat",
    ),
}


@pytest.mark.parametrize(("changes", "told"), OTHER.values(), ids=OTHER)
def test_resume_another_run(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """A run of another port or scope is refused, and left as it was; what differs is named."""
    run = start(tmp_path)
    run.add(line())
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(UsageError) as error:
        start(tmp_path, resume=ALL, **changes)
    assert str(error.value) == (
        f"cannot resume {tmp_path}, its run is another: {told} what that one was given, "
        "or drop --resume to start anew"
    )
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_resume_with_other_goldens(tmp_path: Path, golden_copy) -> None:
    """Results judged by other goldens, or by another suite, are not continued."""
    start(tmp_path / "out").add(line())
    golden_copy.write_manifest(golden_copy.manifest() | {"goldens": {}})
    with pytest.raises(UsageError, match=r"goldens [0-9a-f]{12}, now [0-9a-f]{12}; "):
        start(tmp_path / "out", resume=ALL)


def test_resume_with_another_suite(tmp_path: Path, monkeypatch) -> None:
    """Results of another version of the suite are not continued."""
    start(tmp_path).add(line())
    monkeypatch.setattr(results_module, "__version__", "99")
    with pytest.raises(UsageError, match=r"suite .*, now 99; "):
        start(tmp_path, resume=ALL)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"[]\n", b"1\n", None], ids=["binary", "list", "number", "folder"]
)
def test_resume_a_foreign_file(tmp_path: Path, content: bytes | None) -> None:
    """What is no run is overwritten or refused, never a traceback."""
    path = tmp_path / "results.jsonl"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    try:
        assert start(tmp_path, resume=ALL).lines == []
    except UsageError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right


def test_resume_by_command_line(golden_copy, port_file, tmp_path, capsys) -> None:
    """`run --resume` judges only what is missing, and ends as if never broken off."""
    out = tmp_path / "out"
    expression = "tokenizer/-/plain or unet/tiny/base or unet/tiny/batch1 or unet/tiny/quiet"
    argv = ["run", port_file, "-k", expression, "--out", str(out)]
    assert golden_copy.root.exists()
    assert cli.main(argv) == 0
    whole = read(out)
    rows = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(b"".join(rows[:3])[:-5])
    capsys.readouterr()
    assert cli.main([*argv, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "[1/4]" not in printed
    assert "tokenizer/-/" not in printed
    assert printed.count("unet/tiny/") == 3
    assert [r.get("case") for r in read(out)] == [r.get("case") for r in whole]
    assert json.loads((out / "summary.json").read_text("utf-8"))["counts"]["pass"] == 4
    assert cli.main([*argv, "--resume"]) == 0
    assert len(read(out)) == 6


def test_resume_keeps_control_lines(tmp_path: Path) -> None:
    """What the reference made in the same job is kept too, after the port's own lines."""
    run = start(tmp_path, control="diffusers")
    run.add(line())
    run.close()
    rows = read(tmp_path)
    rows.insert(2, rows[1] | {"type": "control"})
    (tmp_path / "results.jsonl").write_text("".join(map(run_folder.row, rows)), "utf-8")
    run = start(tmp_path, control="diffusers", resume=ALL)
    run.add(line("quiet"))
    assert len(run.control) == 1
    run.close()
    assert [r["type"] for r in read(tmp_path)] == ["header", "case", "control", "case", "footer"]


def test_resume_mends_a_cut_in_the_middle(tmp_path: Path) -> None:
    """A line to which another was appended after a cut costs those two, and no other."""
    run = start(tmp_path)
    for name in ("base", "quiet", "loud", "t0"):
        run.add(line(name))
    rows = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    rows[2] = rows[2][:40]
    (tmp_path / "results.jsonl").write_bytes(b"".join(rows))
    run = start(tmp_path, resume=ALL)
    assert [found["scenario"] for found in run.lines] == ["base", "t0"]


def test_resume_counts_a_line_once(tmp_path: Path) -> None:
    """A line that is there twice, which an older suite could write, is one case."""
    run = start(tmp_path)
    run.add(line(ratio=1.0))
    run.add(line(ratio=2.0))
    assert [found["ratio"] for found in start(tmp_path, resume=ALL).lines] == [1.0]


@pytest.mark.parametrize(
    "row",
    ['{"type":"case"}', '{"type":"case","case":7}', '{"type":"header"}', '{"type":"poem"}', "[]"],
    ids=["no-case", "number", "two-headers", "unknown", "list"],
)
def test_resume_refuses_foreign_lines(tmp_path: Path, row: str) -> None:
    """A line that no run writes is named, and the file left alone."""
    start(tmp_path).add(line())
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text("utf-8") + row + "\n", "utf-8")
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"results.jsonl is not a run's results; drop --resume"):
        start(tmp_path, resume=ALL)
    assert path.read_bytes() == before


def test_a_failing_start_leaves_the_old_run(tmp_path: Path, monkeypatch) -> None:
    """Until the new file is whole the old one is there: no moment loses its lines."""
    start(tmp_path).add(line())
    before = (tmp_path / "results.jsonl").read_bytes()

    def broken(_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "row", broken)
    with pytest.raises(SuiteError, match="No space left on device: free some space") as told:
        start(tmp_path, resume=ALL)
    assert told.value.exit_code == ExitCode.BROKEN
    assert (tmp_path / "results.jsonl").read_bytes() == before


class FullDisk:
    """A file on a disk that takes half a line more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, text: str) -> None:
        """Write half of it."""
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        """Fail once more, as a file does that still holds what it could not write."""
        self.file.close()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills(tmp_path: Path) -> None:
    """It ends the run with one line and exit 3, keeps whole lines, and --resume goes on."""
    run = start(tmp_path)
    run.add(line())
    folder = run._folder
    folder._file = FullDisk(folder._file)
    told = f"^cannot write to {tmp_path}: No space left on device: free some space, then run --res"
    with pytest.raises(SuiteError, match=told) as error:
        run.add(line("quiet"))
    assert error.value.exit_code == ExitCode.BROKEN
    del run, folder
    gc.collect()
    assert [found["scenario"] for found in start(tmp_path, resume=ALL).lines] == ["base"]


REPORTS = ("ratchet.json", "summary.json", "index.html", "junit.xml", "summary.md", "badge.svg")


@pytest.mark.parametrize("name", REPORTS)
def test_a_disk_that_fills_at_the_end(tmp_path: Path, monkeypatch, name: str) -> None:
    """The verdict was told, no report is cut, and the run can be resumed."""
    run = start(tmp_path)
    run.add(line())
    monkeypatch.setattr(os, "fsync", full_at(tmp_path / f".{name}.part"))
    told: list[dict[str, Any]] = []
    with pytest.raises(SuiteError, match="No space left on device: free some space, then run"):
        run.close(tell=told.append)
    assert told[0]["verdict"] == "conformant"
    assert not {path.name for path in tmp_path.iterdir()} & {name, f".{name}.part"}
    monkeypatch.undo()
    run = start(tmp_path, resume=ALL)
    assert len(run.lines) == 1
    run.close()
    assert (tmp_path / name).exists()


def full_at(path: Path) -> Any:
    """Return an os.fsync that finds the disk full while this file is written."""

    def fsync(_: int) -> None:
        if path.exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    return fsync


HOLDER = """
import sys
from pathlib import Path
from conformance.run_folder import RunFolder
import os
folder = RunFolder(Path(sys.argv[1]))
folder.begin([{"type": "header", "process": os.getpid()}])
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process write a run to a folder."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("resume", [None, ALL], ids=["anew", "resume"])
def test_two_runs_into_one_folder(tmp_path: Path, holder, resume: list[str] | None) -> None:
    """The second is refused and told whose folder it is; once that is killed, the way is free."""
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=rf"^process {holder.pid} writes its run to .*another"):
        start(out, resume=resume)
    assert len(read(out)) == 1
    holder.kill()
    holder.wait()
    run = start(out)
    assert [path.name for path in out.iterdir()] == ["results.jsonl"]
    run.close()


def test_two_runs_by_command_line(tmp_path: Path, holder, golden_copy, port_file, capsys) -> None:
    """The refusal is one line and bad usage."""
    argv = ["run", port_file, "-k", "tokenizer/-/plain", "--out", str(tmp_path / "out")]
    assert golden_copy.root.exists()
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.startswith(f"sd1-conformance: process {holder.pid} writes")


def test_two_runs_by_pytest(tmp_path: Path, holder, port_file) -> None:
    """Pytest stops as soon as it would write to the folder of another run."""
    matrix = Path(__file__).parents[1] / "test_conformance.py"
    command = [sys.executable, "-m", "pytest", str(matrix), "-k", "golden and tokenizer/-/plain"]
    command += ["--sd1-port", port_file, "--sd1-out", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=matrix.parents[1]
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"sd1-conformance: process {holder.pid} writes its run to" in done.stdout
    assert len(read(tmp_path / "out")) == 1


def test_locked_by_a_file_where_the_kernel_cannot(tmp_path: Path, monkeypatch) -> None:
    """Where folders cannot be locked, a file says who writes, and how to get past a dead one."""
    monkeypatch.setattr(run_folder, "_kernel_lock", lambda _: None)
    run = start(tmp_path)
    lock = tmp_path / run_folder.LOCK
    assert lock.read_text("ascii") == str(os.getpid())
    run.close()
    assert not lock.exists()
    lock.write_text("123", "ascii")
    with pytest.raises(UsageError, match=r"^process 123 writes .* delete .*\.lock$"):
        start(tmp_path)
    assert lock.exists()
