"""A run with expected failures: verdicts, exit, the files that it leaves, and going on with one."""

from __future__ import annotations

import html
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from conformance import results as results_module
from conformance.case import find_case
from conformance.execution import Execution
from conformance.explain import Explanation
from conformance.port import Hello
from conformance.report.terminal import verdict_lines
from conformance.result import Result
from conformance.results import FILES, Results
from conformance.runner import Runner
from conformance.summary import exit_code
from conformance.xfails import Xfails

if TYPE_CHECKING:
    from pathlib import Path

HELLO = Hello("fake", "1.0", ("unet",))

BASE, QUIET, LOUD = (f"unet/tiny/{name}" for name in ("base", "quiet", "loud"))
ITEMS = [f"{case}[float32-cpu-sdpa-trace]" for case in (BASE, QUIET, LOUD)]


def expecting(tmp_path: Path, *rows: str) -> Xfails:
    """Read a list of expected failures."""
    path = tmp_path / "known.txt"
    path.write_text("\n".join(rows), "utf-8")
    return Xfails.read(path)


def fake_port() -> Any:
    """Build a port that says hello and nothing else."""
    return SimpleNamespace(hello=lambda: HELLO)


def right(name: str = "base") -> dict[str, Any]:
    """Build a case line that passes."""
    record = {"name": "conv_in", "kind": "probe", "ratio": 1.0, "verdict": "pass", "note": ""}
    made = Result(find_case(f"unet/tiny/{name}"), Execution(), "pass").as_json()
    return made | {"ratio": 1.0, "probes": [record]}


def wrong(name: str = "base") -> dict[str, Any]:
    """Build a case line with one wrong record, of ratio 9."""
    made = right(name)
    first = {"case": made["case"], "probe": "conv_in", "after": None, "ratio": 9.0, "limit": 4.0}
    return made | {
        "verdict": "fail",
        "ratio": 9.0,
        "message": "first wrong at conv_in",
        "first_divergence": first | {"kind": "fault", "hint": ""},
        "probes": [made["probes"][0] | {"ratio": 9.0, "verdict": "fail"}],
    }


def finish(out: Path, lines: list[dict[str, Any]], **how: Any) -> dict[str, Any]:
    """Run cases into a folder and return the summary, with the case lines as they were written."""
    results = Results(out, HELLO, "fake.py:make", "unet; tiny", **how)
    for made in lines:
        results.add(made)
    summary = results.close()
    rows = (out / "results.jsonl").read_text("ascii").splitlines()
    header, *written, footer = map(json.loads, rows)
    assert (header["type"], footer["type"]) == ("header", "footer")
    assert footer["counts"] == summary["counts"]
    assert {path.name for path in out.iterdir()} - {"data"} == set(FILES)
    return summary | {"lines": written}


XFAILS = {
    "known": ([f"{BASE} | conv* | * | 10 | half softmax | "], ["xfail", "pass"], 1, ""),
    "over-the-bound": ([f"{BASE} | conv* | * | 8 | half softmax | "], ["fail", "pass"], 0, ""),
    "passes": (
        [f"{BASE} | * | * | 10 | half softmax | ", f"{QUIET} | * | * | 10 | slow sums | "],
        ["xfail", "xpass"],
        1,
        f"line 2: now passes: delete it ({QUIET} | *)",
    ),
    "unmatched": (
        [f"{BASE} | * | * | 10 | half softmax | ", "gan/* | * | * | 10 | slow sums | "],
        ["xfail", "pass"],
        1,
        "line 2: matches nothing: no case is called 'gan/*'",
    ),
    "expired": (
        [f"{BASE} | * | * | 10 | half softmax | 2020-01-01"],
        ["fail", "pass"],
        0,
        "line 1: expired on 2020-01-01: mend the port, or set another date",
    ),
    "nothing-known": (["# nothing"], ["fail", "pass"], 0, ""),
}


@pytest.mark.parametrize(("rows", "verdicts", "used", "problem"), XFAILS.values(), ids=XFAILS)
def test_expected_failures(
    tmp_path: Path, rows: list[str], verdicts: list[str], used: int, problem: str
) -> None:
    """A known failure keeps no port from being conformant; a list that does not fit does."""
    known = expecting(tmp_path, *rows)
    summary = finish(tmp_path / "out", [wrong(), right("quiet")], xfails=known)
    bad = bool({"fail", "xpass"} & set(verdicts)) or bool(problem)
    assert summary["verdict"] == ("nonconformant" if bad else "conformant")
    assert exit_code(summary) == bad
    assert [made["verdict"] for made in summary["lines"]] == verdicts
    assert summary["xfails"] == {
        "file": str(tmp_path / "known.txt"),
        "entries": 0 if rows == ["# nothing"] else len(rows),
        "used": used,
        "problems": [problem] if problem else [],
    }
    told = next(text for text in verdict_lines(summary) if text.startswith("  xfails"))
    assert told.startswith(f"  xfails {used} of {summary['xfails']['entries']} entr")
    assert told.endswith(f"used; problem: {problem}" if problem else "used")
    suite = ET.parse(tmp_path / "out" / "junit.xml").getroot()[0]  # noqa: S314
    failures = [
        test.get("name") for test in suite.iter("testcase") if test.find("failure") is not None
    ]
    expected = [item for item, v in zip(ITEMS, verdicts, strict=False) if v in {"fail", "xpass"}]
    assert failures == [*expected, *(["xfails"] if problem else [])]
    reasons = [found.get("message") for found in suite.iter("skipped")]
    cited = "expected failure: known.txt line 1: half softmax"
    assert reasons == [cited] * verdicts.count("xfail")
    page = html.unescape((tmp_path / "out" / "index.html").read_text("utf-8"))
    assert ("known.txt line 1: half softmax" in page) is ("xfail" in verdicts)
    assert problem in page


def test_without_expected_failures(tmp_path: Path) -> None:
    """A run without a list says so, and its report has no word of it."""
    summary = finish(tmp_path, [right()])
    assert summary["xfails"] is None
    assert not any("xfails" in text for text in verdict_lines(summary))


def test_an_expected_failure_is_no_divergence(tmp_path: Path) -> None:
    """The first divergence is that of a failure that nobody expected."""
    known = expecting(tmp_path, f"{BASE} | * | * | 10 | why | ")
    summary = finish(tmp_path / "out", [wrong(), wrong("quiet")], xfails=known)
    assert summary["first_divergence"]["case"] == ITEMS[1]


def test_an_expected_failure_is_not_explained(tmp_path: Path, monkeypatch) -> None:
    """Causes are looked for where nobody knows them yet."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        results_module, "explain", lambda lines, *_: asked.extend(lines) or Explanation()
    )
    known = expecting(tmp_path, f"{BASE} | * | * | 10 | why | ")
    results = Results(tmp_path / "out", HELLO, "fake.py:make", "unet", xfails=known)
    for made in (wrong(), wrong("quiet"), right("loud")):
        results.add(made)
    results.close(Runner(fake_port()))
    assert [made["case"] for made in asked] == ITEMS[1:]


CHANGED = {
    "same": ([f"{BASE} | * | * | 10 | one | ", f"{QUIET} | * | * | 10 | two | "], "xfail", "xpass"),
    "narrower": ([f"{BASE} | * | * | 8 | one | "], "fail", "pass"),
    "another-reason": ([f"{BASE} | * | * | 10 | because | "], "xfail", "pass"),
    "none": (None, "fail", "pass"),
}


@pytest.mark.parametrize(("rows", "base", "quiet"), CHANGED.values(), ids=CHANGED)
def test_resume_judges_by_the_present_list(
    tmp_path: Path, rows: list[str] | None, base: str, quiet: str
) -> None:
    """Lines that are taken over are excused by the list as it is now, or no longer."""
    out, before = tmp_path / "out", expecting(tmp_path, *CHANGED["same"][0])
    finish(out, [wrong(), right("quiet")], xfails=before)
    now = None if rows is None else expecting(tmp_path, *rows)
    summary = finish(out, [right("loud")], xfails=now, resume=ITEMS)
    assert [made["verdict"] for made in summary["lines"]] == [base, quiet, "pass"]
    if rows is None:
        assert summary["lines"][0] == wrong()
    assert ("because" in summary["lines"][0]["message"]) is ("because" in str(rows))
