"""Resuming a run that was broken off: nothing is lost, nothing foreign is mixed in."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from conformance import cli
from conformance import results as results_module
from conformance.case import find_case
from conformance.errors import UsageError
from conformance.execution import Execution
from conformance.port import Hello
from conformance.results import Results
from conformance.runner import Result

if TYPE_CHECKING:
    from pathlib import Path


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


def test_resume_keeps_what_is_asked_for(tmp_path: Path) -> None:
    """Cases that this run does not ask for are not counted as its own."""
    run = start(tmp_path)
    for name in ("base", "quiet"):
        run.add(line(name))
    run.close()
    assert [r["scenario"] for r in start(tmp_path, resume=ALL[1:]).lines] == ["quiet"]


def test_resume_notices_an_edited_port(tmp_path: Path) -> None:
    """A file that has changed is another port: what it was once does not speak for it."""
    source = tmp_path / "mine.py"
    source.write_text("right = True", "utf-8")
    start(tmp_path / "out", port_spec=f"{source}:make").add(line())
    assert len(start(tmp_path / "out", port_spec=f"{source}:make", resume=ALL).lines) == 1
    source.write_text("right = False", "utf-8")
    with pytest.raises(UsageError, match="another port"):
        start(tmp_path / "out", port_spec=f"{source}:make", resume=ALL)


@pytest.mark.parametrize("text", [None, "", '{"type":"hea'], ids=["no-file", "empty", "header-cut"])
def test_resume_nothing(tmp_path: Path, text: str | None) -> None:
    """Where there is nothing to resume, a run begins."""
    if text is not None:
        (tmp_path / "results.jsonl").write_text(text, "utf-8")
    assert start(tmp_path, resume=ALL).lines == []
    assert len(read(tmp_path)) == 1


OTHER = {
    "port": {"hello": Hello("other", "1.0", ("unet",))},
    "version": {"hello": Hello("fake", "1.1", ("unet",))},
    "spec": {"port_spec": "other.py:make"},
    "scope": {"scope": "unet; odd"},
}


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_resume_another_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A run of another port or scope is not continued, and stays as it was."""
    run = start(tmp_path)
    run.add(line())
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"cannot resume .* another (port|scope) .*drop --resume"):
        start(tmp_path, resume=ALL, **changes)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_resume_with_other_goldens(tmp_path: Path, golden_copy) -> None:
    """Results judged by other goldens, or by another suite, are not continued."""
    start(tmp_path / "out").add(line())
    golden_copy.write_manifest(golden_copy.manifest() | {"goldens": {}})
    with pytest.raises(UsageError, match="another goldens"):
        start(tmp_path / "out", resume=ALL)


def test_resume_with_another_suite(tmp_path: Path, monkeypatch) -> None:
    """Results of another version of the suite are not continued."""
    start(tmp_path).add(line())
    monkeypatch.setattr(results_module, "__version__", "99")
    with pytest.raises(UsageError, match="another suite"):
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
