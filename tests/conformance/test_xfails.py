"""Expected failures: what a file may say, what it excuses, and when it no longer fits."""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import pytest

from conformance.blocks import block_names
from conformance.case import all_cases, find_case
from conformance.errors import UsageError
from conformance.execution import Execution
from conformance.result import Result
from conformance.xfails import Entry, Xfails, fits

TODAY = dt.date(2026, 6, 15)
BASE, QUIET, LOUD = (f"unet/tiny/{name}" for name in ("base", "quiet", "loud"))


def read(tmp_path: Path, *rows: str) -> Xfails:
    """Read a file of these lines on a fixed day."""
    path = tmp_path / "known.txt"
    path.write_text("\n".join(rows), "utf-8")
    return Xfails.read(path, TODAY)


def line(case_id: str = BASE, ratios: dict[str, float] | None = None, **how: Any) -> dict[str, Any]:
    """Build a case line from ratios by probe; `verdict` and `block` may be given."""
    block, verdict = how.pop("block", ""), how.pop("verdict", "")
    ratios = {"conv_in": 1.0, "sample": 1.0} if ratios is None else ratios
    records = [
        {
            "name": name,
            "kind": "probe",
            "ratio": ratio,
            "verdict": "pass" if ratio <= 4 else "fail",
            "note": "shape (1,), expected (2,)" if math.isnan(ratio) else "",
        }
        for name, ratio in ratios.items()
    ]
    wrong = any(record["verdict"] == "fail" for record in records)
    verdict = verdict or ("fail" if wrong else "pass")
    message = "first wrong at conv_in" if wrong else ""
    result = Result(find_case(case_id), Execution(**how), verdict, message=message, block=block)
    return result.as_json() | {"probes": records, "ratio": max(ratios.values(), default=None)}


def test_a_file_is_read(tmp_path: Path) -> None:
    """Comments and empty lines are free; a byte order mark and Windows line ends do no harm."""
    path = tmp_path / "known.txt"
    text = "# why\r\n\r\nunet/*|mid_block* | cuda* | 8 | issue #12: half softmax | 2026-06-15\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"*|*|*|inf|shapes|")
    first, second = Xfails.read(path, TODAY).entries
    assert first == Entry(3, "unet/*", "mid_block*", "cuda*", 8.0, "issue #12: half softmax", TODAY)
    assert (second.number, second.at_most, second.expires) == (4, math.inf, None)


def test_the_example_of_the_documentation() -> None:
    """The file that docs/xfails.md shows can be read, and each of its entries names a case."""
    page = Path(__file__).parents[2] / "docs" / "xfails.md"
    example = page.read_text("utf-8").split("`known.txt`, one entry a line:\n\n```\n")[1]
    text = example.partition("```")[0]
    entries = Xfails.parse(text, page, TODAY).entries
    assert len(entries) == 3
    assert all(any(entry.names_case(case) for case in all_cases()) for entry in entries)


MISTAKES = {
    "few-fields": ("unet/* | * | cpu | 8 | why", "it has 5 fields, not 6: write case glob |"),
    "many-fields": ("* | * | * | 8 | this | that | ", "it has 7 fields, not 6"),
    "no-case": (" | * | cpu | 8 | why | ", "the case glob is empty: write * for any"),
    "no-probe": ("* | | cpu | 8 | why | ", "the probe glob is empty"),
    "no-device": ("* | * | | 8 | why | ", "the device glob is empty"),
    "no-reason": ("* | * | * | 8 |  | ", "the reason is missing"),
    "word": ("* | * | * | twelve | why | ", "'twelve' is no bound of a ratio: write a number"),
    "no-bound": ("* | * | * |  | why | ", "'' is no bound"),
    "zero": ("* | * | * | 0 | why | ", "'0' is no bound"),
    "negative": ("* | * | * | -3 | why | ", "'-3' is no bound"),
    "nan": ("* | * | * | nan | why | ", "'nan' is no bound"),
    "date": ("* | * | * | 8 | why | 15.6.2026", "'15.6.2026' is no date: write YYYY-MM-DD"),
    "short-date": ("* | * | * | 8 | why | 20260615", "'20260615' is no date"),
    "no-such-day": ("* | * | * | 8 | why | 2026-02-30", "'2026-02-30' is no date"),
}


@pytest.mark.parametrize(("row", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, row: str, expected: str) -> None:
    """A line that makes no entry is bad usage: file, line, what is wrong and what to write."""
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "# first", row)
    assert f"known.txt: line 2: {expected}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Up to five mistakes are shown, the others counted; right lines are not among them."""
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "* | * | * | 8 | why | ", *["wrong"] * 7)
    text = str(caught.value)
    assert [f"line {i}:" in text for i in range(1, 9)] == [False, *[True] * 5, False, False]
    assert text.endswith("and 2 lines more")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no-text"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    """A missing or binary file is bad usage, never a traceback."""
    path = tmp_path / "known.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read expected failures from .*known\.txt"):
        Xfails.read(path)


NAMES = [
    ("unet/tiny/base", "unet/tiny/base", True),
    ("unet/*", "unet/tiny/base", True),
    ("unet/tiny/bas?", "unet/tiny/base", True),
    ("unet/tiny", "unet/tiny/base", False),
    ("UNET/*", "unet/tiny/base", False),
    ("a[bc]d", "abd", False),
    ("a[b*]d", "a[b-c]d", True),
    ("a.c", "abc", False),
    ("*", "", True),
]


@pytest.mark.parametrize(("glob", "name", "expected"), NAMES, ids=str)
def test_globs(glob: str, name: str, expected: bool) -> None:  # noqa: FBT001 - a table's column
    """Only `*` and `?` are wild: the brackets of an item id mean themselves."""
    assert fits(glob, name) is expected


CASES = {
    "case": ("unet/tiny/base", {}, True),
    "another-case": ("unet/tiny/quiet", {}, False),
    "execution": ("unet/tiny/base[float32-cpu-sdpa-trace]", {}, True),
    "arithmetic": ("unet/*[float16-*", {"dtype": "float16"}, True),
    "another-arithmetic": ("unet/*[float16-*", {}, False),
    "mode": ("*-splice]", {"mode": "splice"}, False),
    "mode-in-brackets": ("*[*-splice]", {"mode": "splice"}, True),
    "block": ("*[*-splice]", {"mode": "splice", "block": "mid_block"}, True),
    "one-block": ("*[*]::mid_block", {"mode": "splice", "block": "mid_block"}, True),
    "another-block": ("*[*]::mid_block", {"mode": "splice", "block": "conv_in"}, False),
    "case-of-a-block": ("unet/tiny/base", {"mode": "splice", "block": "mid_block"}, True),
}


@pytest.mark.parametrize(("glob", "how", "expected"), CASES.values(), ids=CASES)
def test_case_globs(tmp_path: Path, glob: str, how: dict[str, str], expected: bool) -> None:  # noqa: FBT001
    """A glob without a bracket is about a case; one with it about an item, of a block too."""
    known = read(tmp_path, f"{glob} | * | * | inf | why | ")
    judged = known.excuse(line(ratios={"conv_in": 9.0}, **how))
    assert (judged["verdict"] == "xfail") is expected


WRONG = {"conv_in": 1.0, "mid_block": 12.0, "sample": 7.0}
EXCUSED = {
    "all-by-one": (["* | * | * | 12 | why | "], "xfail", "known.txt line 1: why"),
    "all-by-two": (
        ["* | mid* | cpu | 20 | one | ", "* | sample | * | 8 | two | 2026-06-15"],
        "xfail",
        "known.txt line 1: one; known.txt line 2: two",
    ),
    "wider-comes-second": (
        ["* | * | * | 8 | one | ", "* | mid* | * | 20 | two | "],
        "xfail",
        "line 2: two; known.txt line 1: one",
    ),
    "over-the-bound": (
        ["* | * | * | 8 | why | "],
        "fail",
        "conv_in; not excused by known.txt: mid_block is over the bound of line 1: 12 > 8",
    ),
    "over-two-bounds": (
        ["* | * | * | 11 | one | ", "* | * | * | 8 | two | "],
        "fail",
        "mid_block is over the bound of line 1: 12 > 11",
    ),
    "just-over": (["* | * | * | 11.9 | why | "], "fail", "line 1: 12 > 11.9"),
    "one-is-left": (["* | mid* | * | 20 | why | "], "fail", "known.txt: no entry names sample"),
    "two-are-left": (["* | conv* | * | 20 | why | "], "fail", "mid_block, and 1 probes more"),
    "expired": (
        ["* | * | * | 20 | why | 2026-06-14"],
        "fail",
        "mid_block: line 1 expired on 2026-06-14, and 1 probes more",
    ),
    "another-device": (["* | * | cuda* | 20 | why | "], "fail", "first wrong at conv_in"),
    "nothing-listed": ([], "fail", "first wrong at conv_in"),
}


@pytest.mark.parametrize(("rows", "verdict", "message"), EXCUSED.values(), ids=EXCUSED)
def test_excuse(tmp_path: Path, rows: list[str], verdict: str, message: str) -> None:
    """A fail is excused if every failing record is; else it stays one and says what is left."""
    known = read(tmp_path, *rows)
    judged = known.excuse(line(ratios=WRONG))
    assert judged["verdict"] == verdict
    assert judged["message"].endswith(message)
    again = known.excuse(judged)
    assert again == judged
    assert known.excuse(json.loads(json.dumps(judged))) == judged


@pytest.mark.parametrize(
    ("ratio", "bound", "expected"),
    [
        (math.nan, "inf", "xfail"),
        (math.inf, "inf", "xfail"),
        (math.nan, "1e300", "fail"),
        (math.inf, "1e300", "fail"),
    ],
)
def test_wrong_shapes_and_nan(tmp_path: Path, ratio: float, bound: str, expected: str) -> None:
    """What has no ratio is excused by an infinite bound alone, read back from a file too."""
    known = read(tmp_path, f"* | * | * | {bound} | why | ")
    for stored in (ratio, str(ratio)):
        found = line(ratios={"conv_in": ratio})
        found["probes"][0]["ratio"] = stored
        assert known.excuse(found)["verdict"] == expected
    if math.isnan(ratio) and expected == "fail":
        assert "shape (1,), expected (2,)" in known.excuse(found)["message"]


@pytest.mark.parametrize("verdict", ["pass", "warn", "error", "skip"])
def test_only_a_fail_is_excused(tmp_path: Path, verdict: str) -> None:
    """Any other verdict stays as it is: an error most of all."""
    found = line(ratios=WRONG, verdict=verdict)
    assert read(tmp_path, "* | * | * | inf | why | ").excuse(found) == found


def test_a_fail_that_says_nothing_is_not_excused(tmp_path: Path) -> None:
    """Without a failing record nothing shows that the failure is the known one."""
    found = line(verdict="fail")
    assert read(tmp_path, "* | * | * | inf | why | ").excuse(found) == found


GOOD, BAD = {"conv_in": 1.0}, {"conv_in": 9.0}
ALL = {case.id: GOOD for case in all_cases() if case.id.startswith("unet/tiny/")}
PROBLEMS = {
    "used": (f"{BASE} | * | * | 20 | why | ", {BASE: BAD}, ""),
    "over-the-bound": (f"{BASE} | * | * | 5 | why | ", {BASE: BAD}, ""),
    "one-of-all": ("unet/tiny/* | * | * | 20 | why | ", ALL | {BASE: BAD}, ""),
    "now-passes": (f"{BASE} | * | * | 20 | why | ", {BASE: GOOD}, f"now passes: delete it ({BASE}"),
    "all-pass": ("unet/tiny/* | * | * | 20 | why | ", ALL, "now passes"),
    "part-of-all": ("unet/tiny/* | * | * | 20 | why | ", {BASE: GOOD}, ""),
    "other-sizes": ("unet/*/base | * | * | 20 | why | ", {BASE: GOOD}, "now passes"),
    "not-run": (f"{QUIET} | * | * | 20 | why | ", {BASE: GOOD}, ""),
    "other-device": (f"{BASE} | * | cuda | 20 | why | ", {BASE: GOOD}, ""),
    "no-case": ("unet/tiny/bass | * | * | 20 | why | ", {BASE: BAD},
                "matches nothing: no case is called 'unet/tiny/bass'; the nearest is"),
    "execution-without-bracket": ("*-trace | * | * | 20 | why | ", {BASE: BAD}, "matches nothing"),
    "no-probe": (f"{BASE} | conv_inn | * | 20 | why | ", {BASE: BAD},
                 f"no probe of that name: 'conv_inn' in {BASE}"),
    "expired": (f"{BASE} | * | * | 20 | why | 2026-06-14", {BASE: BAD},
                "expired on 2026-06-14: mend the port, or set another date"),
    "expired-and-passes": (f"{BASE} | * | * | 20 | why | 2026-06-14", {BASE: GOOD}, "expired on"),
    "no-record": (f"{BASE} | * | * | 20 | why | ", {BASE: {}}, "now passes"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "run", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_problems(tmp_path: Path, row: str, run: dict[str, Any], problem: str) -> None:
    """An entry that no longer fits is a problem; what was not run, or only in part, is none."""
    known = read(tmp_path, "# a comment", row)
    lines = [known.excuse(line(case_id, ratios)) for case_id, ratios in run.items()]
    found = known.conclude(lines)
    assert (len(found) == 1) is bool(problem)
    assert "".join(found).startswith(f"line 2: {problem}" if problem else "")
    passing = [found for found in lines if found["verdict"] == "xpass"]
    assert bool(passing) is problem.startswith("now")
    assert all(found["message"] == "known.txt line 2: why" for found in passing)


def test_an_entry_passes_where_others_fail(tmp_path: Path) -> None:
    """A line that fails elsewhere keeps its verdict: the entry is a problem all the same."""
    known = read(tmp_path, f"{BASE} | sample | * | 20 | why | ")
    lines = [known.excuse(line(ratios=WRONG | {"sample": 1.0}))]
    assert known.conclude(lines) == [f"line 1: now passes: delete it ({BASE} | sample)"]
    assert lines[0]["verdict"] == "fail"


@pytest.mark.parametrize("verdict", ["skip", "error"])
def test_what_was_not_judged_passes_nothing(tmp_path: Path, verdict: str) -> None:
    """A case that was declined or broke says nothing of an entry, nor do those beside it."""
    known = read(tmp_path, f"{BASE} | * | * | 20 | why | ", f"{BASE} | conv_in | * | 20 | why | ")
    other = line(mode="splice") if verdict == "error" else line(QUIET)
    lines = [line(verdict=verdict, ratios={}), other]
    assert known.conclude(lines[:1]) == known.conclude(lines) == []
    assert [found["verdict"] for found in lines] == [verdict, "pass"]


def test_an_entry_is_used_where_it_excuses_a_case(tmp_path: Path) -> None:
    """One that covers a part of what is wrong has excused nothing."""
    known = read(tmp_path, "* | mid* | * | 20 | one | ", f"{QUIET} | sample | * | 20 | two | ")
    partly, wholly = known.excuse(line(ratios=WRONG)), known.excuse(line(QUIET, WRONG))
    assert [partly["verdict"], wholly["verdict"]] == ["fail", "xfail"]
    assert [known.used([partly]), known.used([partly, wholly])] == [0, 2]


def test_two_entries_that_pass_are_both_named(tmp_path: Path) -> None:
    """A line becomes `xpass` once, and names every entry that expected it to fail."""
    known = read(tmp_path, f"{BASE} | * | * | 9 | one | ", f"{BASE} | conv_in | * | 9 | two | ")
    lines = [line()]
    assert len(known.conclude(lines)) == 2
    assert lines[0]["message"] == "known.txt line 1: one; known.txt line 2: two"
    assert lines[0]["judged"] == {"verdict": "pass", "message": ""}


def blocks(*names: str, wrong: str = "") -> list[dict[str, Any]]:
    """Build the lines of some blocks of a case, as pytest makes them."""
    return [
        line(ratios={name: 9.0 if name == wrong else 1.0}, mode="splice", block=name)
        for name in names
    ]


EVERY = block_names(find_case(BASE))


@pytest.mark.parametrize(
    ("probe", "lines", "verdicts", "problems"),
    [
        ("mid_block*", blocks(*EVERY, wrong="mid_block"), {"pass", "xfail"}, 0),
        ("mid_block*", blocks(*EVERY), {"pass", "xpass"}, 1),
        ("*", blocks(*EVERY), {"xpass"}, 1),
        ("*", blocks("mid_block"), {"pass"}, 0),
        ("conv_inn", blocks(*EVERY), {"pass"}, 0),
    ],
    ids=["used", "passes", "all-pass", "one-block-ran", "other-probe"],
)
def test_blocks(tmp_path: Path, probe: str, lines: list[Any], verdicts: set, problems: int) -> None:
    """An entry is about the blocks that hold its probes, and passes once all blocks have run."""
    known = read(tmp_path, f"{BASE} | {probe} | * | 20 | why | ")
    judged = [known.excuse(found) for found in lines]
    assert len(known.conclude(judged)) == problems
    assert {found["verdict"] for found in judged} == verdicts
