"""`sd1-conformance diff`: what is worse, what is missing, and what is only another measure."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from conformance.regression.findings import falls, is_worse
from conformance.run_folder import row

if TYPE_CHECKING:
    from pathlib import Path

TRACE = "[float32-cpu-sdpa-trace]"
NAMES = ("conv_in", "down_blocks.0.resnets.0.norm1", "down_blocks.0.resnets.1.norm1", "conv_out")


def probe(name: str, ratio: float, **changes: Any) -> dict[str, Any]:
    """Build the record of a probe."""
    verdict = "pass" if ratio < 2 else "warn" if ratio <= 4 else "fail"
    found = {"name": name, "kind": "probe", "err": 1e-7, "noise": 1e-7, "ratio": ratio}
    return {**found, "verdict": verdict, **changes}


def case(name: str = "base", ratios: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8), **changes: Any):
    """Build a case line of the UNet."""
    probes = [probe(n, r) for n, r in zip(NAMES, ratios, strict=False)]
    found = {
        "type": "case", "case": f"unet/tiny/{name}{TRACE}", "component": "unet", "variant": "tiny",
        "scenario": name, "dtype": "float32", "device": "cpu", "backend": "sdpa", "mode": "trace",
        "verdict": "fail" if any(p["verdict"] == "fail" for p in probes) else "pass",
        "ratio": max(ratios, default=None), "message": "", "probes": probes,
    }  # fmt: skip
    return {**found, **changes}


def broken(name: str, verdict: str, message: str, **changes: Any) -> dict[str, Any]:
    """Build the line of a case that was skipped or that broke."""
    return case(name, (), verdict=verdict, message=message, **changes)


@pytest.fixture
def run(tmp_path: Path):
    """Return a function that writes a run's folder."""

    def write(name: str, *lines: dict[str, Any], ended: bool = True, **header: Any) -> Path:
        facts = {
            "suite": "1.0", "port": {"name": "mine", "version": "1"}, "limit": 4.0, "goldens": "g",
            "weights": None, "environment": {"torch": "2.12"}, "offers": ["unet", "tokenizer"],
            "control": None, "shard": None, "started": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        records = [{"type": "header", **facts, **header}, *lines, {"type": "footer"}]
        folder = tmp_path / name
        folder.mkdir()
        text = "".join(map(row, records if ended else records[:-1]))
        (folder / "results.jsonl").write_text(text, "utf-8")
        return folder

    return write


@pytest.fixture
def compare(run, main):
    """Return a function that compares two runs of lines: exit code and the JSON object."""

    def call(before: list, after: list, earlier: Any = None, **later: Any) -> tuple[int, dict]:
        a, b = run("a", *before, **(earlier or {})), run("b", *after, **later)
        code, text, _ = main("diff", a, b, "--json")
        assert main("diff", a, b)[0] == code
        return code, json.loads(text, parse_constant=pytest.fail)

    return call


RULE = {
    "within-noise": (0.2, 1.9, False),
    "below-1-counts-as-1": (0.2, 2.1, True),
    "twice-is-not-more": (1.5, 3.0, False),
    "more-than-twice": (1.5, 3.1, True),
    "better": (3.1, 1.5, False),
    "nan-is-worst": (3.0, math.nan, True),
    "nan-after-a-failure": (9.0, math.nan, True),
    "inf-is-as-bad-as-nan": (math.inf, math.nan, False),
    "wrong-ids": (0.0, math.inf, True),
}


@pytest.mark.parametrize(("before", "after", "worse"), RULE.values(), ids=RULE)
def test_rule(compare, before: float, after: float, worse: bool) -> None:  # noqa: FBT001
    """A probe got worse if its ratio is more than twice the earlier one, taken as at least 1."""
    assert is_worse(before, after) is worse
    code, found = compare([case(ratios=(before,))], [case(ratios=(after,))])
    assert (code, found["counts"]["worse"]) == (int(worse), int(worse))
    assert found["counts"]["better"] == int(is_worse(after, before))


def test_a_verdict_that_falls_counts_whatever_the_ratio(compare) -> None:
    """3.9 to 4.1 is within noise, but over the limit."""
    code, found = compare([case(ratios=(3.9,))], [case(ratios=(4.1,))])
    assert code == 1
    assert found["regressions"][0]["verdicts"] == ["warn", "fail"]
    assert found["verdicts"] == [{"before": "pass", "after": "fail", "cases": 1}]


def test_a_verdict_that_rises_counts_too(compare) -> None:
    """4.1 to 3.9 is within noise, and within the limit again."""
    code, found = compare([case(ratios=(4.1,))], [case(ratios=(3.9,))])
    assert (code, found["improvements"][0]["probe"]) == (0, "conv_in")


FALLS = {
    "pass-error": ("pass", "error", True),
    "fail-error": ("fail", "error", True),
    "skip-error": ("skip", "error", True),
    "xfail-fail": ("xfail", "fail", True),
    "xpass-fail": ("xpass", "fail", True),
    "skip-fail": ("skip", "fail", False),
    "pass-xfail": ("pass", "xfail", False),
    "error-fail": ("error", "fail", False),
    "error-error": ("error", "error", False),
}


@pytest.mark.parametrize(("before", "after", "worse"), FALLS.values(), ids=FALLS)
def test_verdicts(compare, before: str, after: str, worse: bool) -> None:  # noqa: FBT001
    """What breaks is worse than anything, a failure worse than a known one."""
    assert falls(before, after) is worse
    both = case("quiet")
    code, found = compare([both, broken("base", before, "")], [both, broken("base", after, "")])
    assert code == int(worse)
    assert [f["what"] for f in found["regressions"]] == ["fell"] * worse
    assert [f["what"] for f in found["improvements"]] == ["rose"] * (before == "error" != after)


def test_the_same_twice(compare) -> None:
    """A run that repeats an earlier one is no regression."""
    code, found = compare([case(), case("quiet")], [case(), case("quiet")])
    assert code == 0
    assert found["counts"] | {"cases": 2, "probes": 8} == found["counts"]
    assert not any(found[k] for k in ("regressions", "improvements", "environment", "notes"))


def test_many_probes_read_as_few_lines(run, main) -> None:
    """Probes of one kind are one line, the worst kind first; `begins` says where it begins."""
    names = [f"down_blocks.{i}.resnets.{j}.norm1" for i in range(30) for j in range(20)]
    lines = [
        [case("base", (), probes=[probe("conv_in", 0.5), *(probe(n, r) for n in names)])]
        for r in (0.5, 50.0)
    ]
    lines[1][0]["probes"][0] = probe("conv_in", 5.0)
    code, text, _ = main("diff", run("a", *lines[0]), run("b", *lines[1]))
    told = [line for line in text.splitlines() if line.startswith(("REG", "  "))]
    assert code == 1
    assert told[0].startswith("REGRESSION against ")
    assert "601 probes worse" in told[0]
    assert told[1].split()[:3] == ["begins", "unet", "conv_in"]
    assert "down_blocks.*.resnets.*.norm1: 600 in 1 case, worst" in told[2]
    assert "conv_in: 1 in 1 case, worst 0.5 -> 5 (pass -> fail)" in told[3]
    assert len(told) == 4


def test_where_it_begins(compare) -> None:
    """Splice mode says it, where no error is inherited; else the first in order of execution."""
    later = {"case": "unet/tiny/quiet[x]", "mode": "splice"}
    before = [case(), case("quiet", **later)]
    worse = [case(ratios=(9.0,) * 4), case("quiet", (0.5, 0.6, 9.0, 9.0), **later)]
    (begins,) = compare(before, worse)[1]["begins"]
    assert (begins["case"], begins["probe"]) == (later["case"], NAMES[2])


def test_two_bugs_begin_twice(compare) -> None:
    """Each component has its beginning; what splice mode found stands before what is inherited."""
    vae = {"case": "vae_decoder/tiny/base[x]", "component": "vae_decoder", "mode": "splice"}
    before = [case(), case(**vae)]
    worse = [case(ratios=(0.5, 900.0, 900.0, 900.0)), case(ratios=(0.5, 0.6, 9.0, 0.8), **vae)]
    found = compare(before, worse)[1]
    begins = [one["text"].split()[:2] for one in found["begins"]]
    assert begins == [["unet", NAMES[1]], ["vae_decoder", NAMES[2]]]
    assert [one["component"] for one in found["regressions"]] == ["vae_decoder", "unet", "unet"]


def test_newly_skipped(compare) -> None:
    """What was judged and is declined now is a regression, where the rest was judged."""
    before = [case(), case("quiet")]
    code, found = compare(before, [case(), broken("quiet", "skip", "too large")])
    assert code == 1
    assert found["skipped"] == {f"unet/tiny/quiet{TRACE}": "too large"}


def test_a_device_that_is_not_there(compare) -> None:
    """Where nothing of an execution was judged it was not asked for: no regression."""
    gpu = {"case": "unet/tiny/base[float32-cuda-sdpa-trace]", "device": "cuda"}
    code, found = compare([case(), case(**gpu)], [case(), broken("base", "skip", "no GPU", **gpu)])
    assert (code, found["not_run"]) == (0, [gpu["case"]])


def test_vanished(compare) -> None:
    """A case that is not there any more is a regression where its like were run."""
    code, found = compare([case(), case("quiet")], [case()])
    assert (code, found["vanished"]) == (1, [f"unet/tiny/quiet{TRACE}"])


NARROWER = {
    "another-variant": ({}, {"case": "unet/odd/base[x]", "variant": "odd"}),
    "a-shard": ({"shard": "1/2"}, {}),
    "other-goldens": ({"goldens": "h"}, {}),
}


@pytest.mark.parametrize(("header", "changes"), NARROWER.values(), ids=NARROWER)
def test_a_narrower_selection(compare, header: dict, changes: dict) -> None:
    """What the later run was not asked for is listed, and no regression."""
    other = case("quiet", **changes)
    code, found = compare([case(), other], [case()], **header)
    assert (code, found["vanished"], found["not_run"]) == (0, [], [other["case"]])


def test_a_component_that_is_not_offered_any_more(compare) -> None:
    """A port that drops a component cannot look as if nobody had asked."""
    gone = case(case="tokenizer/-/plain[int64-cpu]", component="tokenizer")
    code, found = compare([case(), gone], [case()], offers=["unet"])
    assert (code, found["vanished"]) == (1, [gone["case"]])


def test_probes_that_are_no_longer_handed_out(compare) -> None:
    """A probe that is not judged any more hides what it would say; a new one is welcome."""
    code, found = compare([case()], [case(ratios=(0.5, 0.6))])
    assert (code, found["lost"]) == (1, {f"unet/tiny/base{TRACE}": list(NAMES[2:])})
    assert found["counts"]["probes"] == 2


def test_new_cases(compare) -> None:
    """A case that is judged for the first time is no regression, whatever comes of it."""
    code, found = compare([case(), broken("t0", "skip", "")], [case(), case("t0", (9.0,))])
    assert (code, found["new"]) == (0, {f"unet/tiny/t0{TRACE}": "fail"})


def test_other_goldens(compare) -> None:
    """Where the noise is another one, so is the unit: only what has the same is compared."""
    before = case(ratios=(0.5, 0.5))
    after = case(ratios=(9.0, 9.0), verdict="pass")
    after["probes"][1]["noise"] = 2e-7
    code, found = compare([before], [after], goldens="h")
    assert (code, found["counts"]["worse"]) == (1, 1)
    assert any("other goldens" in note and "1 of 2 probes" in note for note in found["notes"])


NOTES = {
    "port": ({"port": {"name": "yours"}}, "another port: mine -> yours"),
    "suite": ({"suite": "2.0"}, "another suite: 1.0 -> 2.0"),
    "limit": ({"limit": 5.0}, "another limit: 4.0 -> 5.0"),
    "control": ({"control": "diffusers"}, "another control: none -> diffusers"),
}


@pytest.mark.parametrize(("header", "note"), NOTES.values(), ids=NOTES)
def test_another_measure(compare, header: dict, note: str) -> None:
    """What makes two runs hard to compare is said at the top."""
    code, found = compare([case()], [case()], **header)
    assert (code, found["notes"]) == (0, [note])


def test_environment(compare, main, tmp_path: Path) -> None:
    """What changed around the port is told, and is no regression."""
    new = {"environment": {"torch": "2.13", "cuda driver": "13.0"}}
    code, found = compare([case()], [case()], **new)
    changed = {"torch": ["2.12", "2.13"], "cuda driver": ["", "13.0"]}
    assert (code, found["environment"]) == (0, changed)
    text = main("diff", tmp_path / "a", tmp_path / "b")[1]
    assert "changed  cuda driver none -> 13.0, torch 2.12 -> 2.13" in text


def test_the_control_got_worse(compare) -> None:
    """A control that falls behind is a regression of the environment."""
    lines = [[case(), case(ratios=ratios, type="control")] for ratios in ((0.5,), (9.0,))]
    code, found = compare(*lines, {"control": "diffusers"}, control="diffusers")
    assert code == 1
    assert found["counts"]["worse"] == 0
    assert found["control"][0]["probe"] == "conv_in"


def test_hostile_names(run, main) -> None:
    """Names of a port steer no terminal, and a star in one is no number."""
    names = ("a*\x1b[31m", "a1\x1b[31m", "a2\x1b[31m", "b\n")
    lines = [case(probes=[probe(n, r) for n in names]) for r in (0.5, 9.0)]
    code, text, _ = main("diff", run("a", lines[0]), run("b", lines[1], suite="\x1b]0;x\x07"))
    assert code == 1
    assert "a*\ufffd[31m: 2 in 1 case" in text
    assert not set(text) & {"\x1b", "\x07"}
    assert len(text.splitlines()) == 8


BAD = {
    "no-folder": (None, "holds no results.jsonl"),
    "empty": ("", "did not end"),
    "no-json": ("x\n", "line 1: it is no JSON"),
    "no-header": (row({"type": "case"}), "line 1: its lines are not in the order of a run"),
    "another-file": ("[1]\n", "line 1: it is no line of a run"),
    "cut": ('{"type":"header"}\n{"type":"ca', "did not end"),
    "cut-inside": ('{"type":"header"}\n{"type":"ca\n{"type":"footer"}\n', "line 2: it is no JSON"),
    "after-the-end": ('{"type":"header"}\n{"type":"footer"}\n{"type":"case"}\n', "line 3"),
    "deep": ("[" * 100_000 + "\n", "line 1"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_no_finished_run(run, main, tmp_path, text: str | None, message: str) -> None:
    """It is refused in one clear line, whichever of the two it is."""
    good, bad = run("good", case()), tmp_path / "bad"
    if text is not None:
        bad.mkdir()
        (bad / "results.jsonl").write_text(text, "utf-8")
    for pair in ((good, bad), (bad, good)):
        code, _, told = main("diff", *pair)
        assert code == 2
        assert message in told
        assert len(told.splitlines()) == 1


DAMAGED = {
    "ratio": {"probes": [probe("a", 1.0) | {"ratio": None}]},
    "name": {"probes": [probe("a", 1.0) | {"name": 7}]},
    "probes": {"probes": 7},
    "verdict": {"verdict": "fine"},
    "component": {"component": None},
}


@pytest.mark.parametrize("changes", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line(run, main, changes: dict) -> None:
    """A field that cannot be read is named with its line."""
    code, _, told = main("diff", run("a", case()), run("b", case("t0"), case(**changes)))
    assert code == 2
    assert "damaged at line 3: its " in told


def test_a_line_that_is_missing(run, main) -> None:
    """A case line that was removed is noticed by the footer, or else by the header."""
    lines = [case(), case("quiet")]
    whole = run("a", *lines)
    counted = run("b", lines[0])
    path = counted / "results.jsonl"
    footer = '{"type":"footer","counts":{"pass":2,"fail":0}}'
    path.write_text(path.read_text("utf-8").replace('{"type":"footer"}', footer), "utf-8")
    for folder in (counted, run("c", lines[0], items={"own": 2})):
        code, _, told = main("diff", whole, folder)
        assert (code, len(told.splitlines())) == (2, 1)
        assert f"{folder / 'results.jsonl'} is damaged: 1 of 2 cases; run it again" in told


def test_a_control_line_that_is_missing(run, main) -> None:
    """A line of the control that was removed is noticed by the footer."""
    whole, cut = run("a", case()), run("b", case())
    path = cut / "results.jsonl"
    footer = '{"type":"footer","controls":1}'
    path.write_text(path.read_text("utf-8").replace('{"type":"footer"}', footer), "utf-8")
    code, _, told = main("diff", whole, cut)
    assert (code, f"{path} is damaged: 0 of 1 control lines; run it again" in told) == (2, True)


@pytest.mark.parametrize("limit", ["four", None, math.nan])
def test_a_limit_that_is_no_number(run, main, limit: object) -> None:
    """A header without a limit that can be read is damaged."""
    code, _, told = main("diff", run("a", case()), run("b", case(), limit=limit))
    assert (code, "is damaged at line 1: its limit is no number" in told) == (2, True)


OTHER = case("quiet", variant="odd", case="unet/odd/quiet[x]")


@pytest.mark.parametrize("lines", [[OTHER], [broken("base", "skip", "")], []])
def test_nothing_to_compare(run, main, lines: list) -> None:
    """Where there is no case that both judged, that is no success."""
    code, text, _ = main("diff", run("a", *lines), run("b", case()))
    assert (code, "\nNOTHING COMPARED: the two runs have no case in common" in text) == (2, True)


def test_a_run_that_goes_on(run, main) -> None:
    """A run that did not end is told how to go on."""
    code, _, told = main("diff", run("a", case()), run("b", case(), ended=False))
    assert code == 2
    assert "run --resume" in told


def test_one_folder_twice(run, main, tmp_path: Path) -> None:
    """A folder is not compared with itself, whatever it is called."""
    run("a", case())
    code, _, told = main("diff", tmp_path / "a", tmp_path / "a" / ".." / "a")
    assert code == 2
    assert "are one folder" in told


def test_a_case_that_is_there_twice(run, main) -> None:
    """Of two lines of one case none can be believed."""
    code, _, told = main("diff", run("a", case()), run("b", case(), case()))
    assert code == 2
    assert "is there twice" in told
