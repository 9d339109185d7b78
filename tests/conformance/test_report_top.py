"""The top of the page: causes, verdict, first divergence, bug report, depth and wrong tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from conformance.known_bugs import margin
from conformance.report.depth import Depth
from conformance.report.divergence import FirstDivergence
from conformance.report.faults import Faults, linked
from conformance.report.html import Page, write_html
from conformance.report.run import read_run
from conformance.report.tensor import WrongTensor
from conformance.report.tensors import bars_of, pcc_text, read_tensor
from conformance.report.verdict import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.report.sections import Section

HOSTILE = "<script>alert(1)</script>`` ```\n### x\x1b[31m\u202e</textarea>"
NAMES = ("conv_in", *(f"down_blocks.0.resnets.0.{leaf}" for leaf in ("norm1", "conv1", "norm2")))


def probes(*ratios: object) -> list[dict[str, Any]]:
    """Build one record for each ratio."""
    return [
        {"name": name, "kind": "probe", "shape": [2, 8], "err": 1e-6, "noise": 2e-7}
        | {"ratio": ratio, "verdict": "pass" if isinstance(ratio, float) and ratio <= 4 else "fail"}
        for name, ratio in zip(NAMES, ratios, strict=False)
    ]


def divergence(**changes: object) -> dict[str, Any]:
    """Build a first divergence at the second probe."""
    first = {"case": "unet/tiny/base[float32-cpu-sdpa-splice]", "probe": NAMES[1]}
    first |= {"after": NAMES[0], "ratio": 900.0, "limit": 4.0, "kind": "fault", "hint": "eps"}
    return first | changes


def failing(made_up, **changes: object) -> dict[str, Any]:
    """Build a case line of splice mode that fails at its second probe."""
    facts = {"mode": "splice", "probes": probes(1.0, 900.0, 1.1, 0.5), "ratio": 900.0}
    return made_up.line("fail", **facts, first_divergence=divergence()) | changes


def view(section: Section, out: Path) -> Any:
    """Show a run to one section and return what its template gets."""
    return section.view(read_run(out, [section]))


FAULTS = [
    {"probes": "conv_*", "count": 3, "mutant": None, "confirmed": False, "ratio_if_so": None},
    {"probes": "norm*", "count": 9, "mutant": "vae-gn-eps", "confirmed": True, "ratio_if_so": 0.9},
    {"probes": "x", "count": 1, "mutant": "own-guess", "confirmed": False, "ratio_if_so": None},
]


def test_causes(made_up) -> None:
    """They are counted against failures; what explains most comes first, with its entry."""
    out = made_up.write([failing(made_up)], faults=FAULTS)
    found = view(Faults(), out)
    assert found["heading"] == "1 cause explains part of 1 failure"
    assert [c.fault.mutant for c in found["shown"]] == ["vae-gn-eps", "", "own-guess"]
    assert "eps, 1e-5" in found["shown"][0].bug.wrong
    page = write_html(Page(out)).read_text("utf-8")
    assert 'id="mutant-vae-gn-eps"' in page
    assert "Real ports that had it: kjsman, hkproj" in page
    assert "No known bug fits" in page


def test_lines_for_a_cause(made_up) -> None:
    """A cause shows the lines for the first of its probes that the run left some for."""
    out = made_up.write([failing(made_up)], faults=FAULTS)
    (out / "data").mkdir()
    stretch = {"file": "sd1_impl/vae.py", "start": 1, "lines": ["a"], "marked": []}
    (out / "data" / "sources.json").write_text(json.dumps({"decoder.norm": stretch}))
    footer = {"type": "footer", "faults": [FAULTS[1] | {"names": ["other", "decoder.norm"]}, 7]}
    section = Faults()
    run = read_run(out, [section])
    section.add(footer)
    files = [cause.source and cause.source.file for cause in section.view(run)["shown"]]
    assert files == ["sd1_impl/vae.py", None, None]


def test_many_causes_are_folded(made_up) -> None:
    """A run full of causes shows the first few, and the rest on request."""
    out = made_up.write([failing(made_up)], faults=[FAULTS[0]] * 30)
    found = view(Faults(), out)
    assert (len(found["shown"]), len(found["folded"])) == (8, 22)
    assert view(Faults(), made_up.write([made_up.line()])) is None


def test_links_to_the_catalogue() -> None:
    """Names of mutants become links; all else stays text."""
    text = linked("like vae-gn-eps, own-nothing <b>vae-gn-eps</b>")
    link = '<a href="#mutant-vae-gn-eps">vae-gn-eps</a>'
    assert text == f"like {link}, own-nothing &lt;b&gt;{link}&lt;/b&gt;"


def test_shares_of_the_bar(made_up) -> None:
    """One case among thousands is still seen, and the bar is full."""
    lines = [made_up.line(scenario=f"s{i}") for i in range(2000)]
    shares = view(Verdict(), made_up.write([*lines, failing(made_up)]))["shares"]
    assert [(s.verdict, s.count) for s in shares] == [("pass", 2000), ("fail", 1)]
    assert shares[1].width > 0.5
    assert sum(s.width for s in shares) == pytest.approx(100)


def test_neighbours(made_up) -> None:
    """The row goes from the last good layer over the wrong one to the next."""
    found = view(FirstDivergence(), made_up.write([failing(made_up)]))
    roles = [(layer.leaf, layer.role) for layer in found["layers"]]
    assert roles == [
        ("conv_in", "last good"),
        ("norm1", "first wrong"),
        ("conv1", "next"),
        ("norm2", "next"),
    ]
    assert found["layers"][1].stem == "down_blocks.0.resnets.0."
    assert found["kind"].startswith("one layer is wrong by itself")


def test_inherited_errors_are_said(made_up) -> None:
    """In a trace what follows the first wrong layer inherits its error; at the top none is good."""
    line = failing(made_up, mode="trace", probes=probes(900.0, 800.0, 700.0))
    line["first_divergence"] = divergence(probe=NAMES[0], after=None)
    found = view(FirstDivergence(), made_up.write([line]))
    assert [layer.role for layer in found["layers"]] == ["first wrong", *["next, inherits it"] * 2]


def test_likely_causes(made_up) -> None:
    """Mutants that the hint names are told with what real ports did; those that are causes once."""
    hint = "like the mutants unet-resnet-gn-eps, vae-gn-eps, none confirmed"
    line = failing(made_up, first_divergence=divergence(hint=hint))
    found = view(FirstDivergence(), made_up.write([line], faults=FAULTS))
    assert [bug.id for bug in found["others"]] == ["unet-resnet-gn-eps"]


def test_environment_is_blamed(made_up) -> None:
    """Where the reference fails too, what changed stands beside the divergence."""
    line = failing(made_up, first_divergence=divergence(kind="environment"))
    control = {"port": "diffusers", "cases": 3, "failing": ["unet/tiny/base"], "moved": []}
    control |= {"changed": {"driver": ["550.1", "560.2"]}}
    out = made_up.write([line], control=control)
    page = write_html(Page(out)).read_text("utf-8")
    assert view(FirstDivergence(), out)["layers"] == []  # they are the port's, not the control's
    assert "--mode splice --control diffusers</code>" in page
    assert "not known: the environment is at fault" in page
    assert "driver 550.1 to 560.2" in page
    assert "a driver, a library or the device, not the port" in page


def test_regression_is_said_at_the_top(made_up) -> None:
    """A conformant run that got worse says so in title and opening, marked as what is bad."""
    baseline = {"dir": "old", "worse": 2, "regressions": [{"text": "unet"}]}
    page = write_html(Page(made_up.write([made_up.line()], baseline=baseline))).read_text("utf-8")
    assert "<title>Conformant, ▲ worse than the baseline: mine</title>" in page
    assert '<header class="opening conformant regressed">' in page
    assert "Worse than the baseline old: 2 worse</p>" in page


def test_cases_that_were_not_selected(made_up) -> None:
    """They are counted beside what was skipped."""
    out = made_up.write([made_up.line()], selection={"cases": 4, "of": 96})
    assert (
        "92 cases of the components and variants that were run" in write_html(Page(out)).read_text()
    )


def test_lines_that_do_it_right(made_up) -> None:
    """Where the run left lines of sd1_impl they are shown, numbered, one of them marked."""
    out = made_up.write([failing(made_up)])
    (out / "data").mkdir()
    stretch = {"file": "sd1_impl/resnet.py", "start": 41, "lines": ["a", "<b>", 7], "marked": [42]}
    (out / "data" / "sources.json").write_text(json.dumps({NAMES[1]: stretch, "other": "x"}))
    source = view(FirstDivergence(), out)["source"]
    assert [(x.number, x.text, x.marked) for x in source.lines] == [
        (41, "a", False),
        (42, "<b>", True),
        (43, "7", False),
    ]
    assert "&lt;b&gt;" in write_html(Page(out)).read_text("utf-8")


def test_bug_report(made_up) -> None:
    """The report for the port's tracker says what, where, by how much and how to see it again."""
    line = failing(made_up)
    report = view(FirstDivergence(), made_up.write([line], environment={"torch": "2.13"}))["report"]
    facts = ["`mine 1.0`", "`ratio 900, limit 4`", "`eps`", "`fault`, one layer", "`1.0e-06`"]
    for text in (
        *facts,
        f"`{NAMES[1]}`",
        f"`{NAMES[0]}`",
        "torch: 2.13",
        "sd1-conformance `0.1.0`",
    ):
        assert text in report, text
    assert '\nsd1-conformance run mine.py:make -k "unet/tiny/base" --mode splice\n' in report


def test_hostile_bug_report(made_up) -> None:
    """Whatever a port calls things stays in code: no markup, no heading, no end of a fence."""
    port = {"name": HOSTILE, "version": HOSTILE, "spec": HOSTILE}
    first = divergence(probe=HOSTILE, after=HOSTILE, hint=HOSTILE, kind=HOSTILE)
    line = failing(made_up, first_divergence=first, hunts=HOSTILE)
    out = made_up.write([line], port=port, environment={HOSTILE: HOSTILE})
    lines = view(FirstDivergence(), out)["report"].splitlines()
    fences = [i for i, text in enumerate(lines) if text in ("````text", "````")]
    assert len(fences) == 4
    outside = [*lines[: fences[0]], *lines[fences[1] : fences[2]]]
    assert [text for text in outside if "### x" in text and not text.count("```` ") >= 1] == []
    assert "\x1b" not in "".join(lines)
    assert "<script>alert" not in write_html(Page(out)).read_text("utf-8")


def test_depth_of_each_component(made_up) -> None:
    """The case of the first divergence comes first, in all its executions; then other components.

    A worse case of the same component is left out; blocks of one spliced case are one series.
    """
    whole = {"scenario": "base", "ratio": 900.0}
    trace = failing(made_up, **whole, mode="trace", case="unet/tiny/base[float32-cpu-sdpa-trace]")
    blocks = [
        failing(made_up, probes=part, case=f"unet/tiny/base[float32-cpu-sdpa-splice]::{i}")
        for i, part in enumerate((probes(1.0, 900.0), probes(1.0, 900.0, 1.1, 0.5)[2:]))
    ]
    worse = failing(made_up, scenario="t999", ratio=5e5, case="unet/tiny/t999[float32-cpu]")
    other = made_up.line(component="vae_decoder", probes=probes(1.0, 0.0, "nan"))
    found = view(Depth(), made_up.write([other, worse, *blocks, trace]))["data"]
    assert [plot["case"] for plot in found["plots"]] == ["unet/tiny/base", "vae_decoder/tiny/base"]
    spliced, traced = found["plots"][0]["series"]
    assert (spliced["local"], traced["local"]) == (True, False)
    assert spliced["ratios"] == [1.0, 900.0, 1.1, 0.5]
    assert found["plots"][0]["first"] == NAMES[1]
    assert (found["honest"], found["bugs"]) == (margin().honest, margin().wrong)


def test_series_with_other_probes(made_up) -> None:
    """Two executions need not have the same probes: each keeps its place on one axis."""
    long, short = probes(1.0, 2.0, 3.0), [*probes(1.0), {"name": "conv_in.extra", "ratio": 7.0}]
    lines = [made_up.line(probes=long), made_up.line(probes=short, dtype="float16")]
    (plot,) = view(Depth(), made_up.write(lines))["data"]["plots"]
    assert plot["names"] == ["conv_in", "conv_in.extra", *NAMES[1:3]]
    assert [one["ratios"] for one in plot["series"]] == [[1, None, 2, 3], [1, 7, None, None]]


TENSOR = {
    "case": "unet/tiny/base[float32-cpu-sdpa-splice]",
    "probe": NAMES[1],
    "shape": [1, 600, 70, 3],
    "axes": ["batch", "channel", "row", "column"],
    "ratio": 3000.0,
    "pcc": 0.99999,
    "slices": {"batch": [1.0], "channel": [1.0] * 599 + ["nan"], "column": [0.1, 5.0, "inf"]},
    "map": {"rows": "row", "columns": "column", "of": [70, 3], "values": [[1, 2, "inf"]] * 35},
    "caption": "last column only: padding",
    "worst": {"index": [0, 5, 69, 2], "got": 1.25, "expected": "nan"},
}


def wrong_tensor(made_up, record: object, name: str = "t.json") -> Any:
    """Show a run with one wrong tensor."""
    out = made_up.write([failing(made_up, data={"tensor": name})])
    (out / "data").mkdir(exist_ok=True)
    (out / "data" / "t.json").write_text(json.dumps(record))
    return view(WrongTensor(), out)


def test_wrong_tensor(made_up) -> None:
    """Words, worst element, correlation, bars by axis and map; an axis of one has no bars."""
    found = wrong_tensor(made_up, TENSOR)
    (shown,) = found["tensors"]
    assert shown.worst == "batch 0, channel 5, row 69, column 2"
    assert (shown.got, shown.expected, shown.pcc) == ("1.25", "not a number", "0.99999")
    assert "its ratio is 3000" in shown.meaning
    bars = {bar["axis"]: bar for bar in found["data"][0]["bars"]}
    assert [*bars] == ["channel", "column"]
    assert (bars["channel"]["step"], len(bars["channel"]["values"])) == (3, 200)
    assert str(bars["channel"]["values"][-1]) == "nan"
    assert found["data"][0]["map"]["of"] == (70, 3)


HOSTILE_TENSORS = {
    "list": [],
    "no-numbers": TENSOR | {"slices": {"channel": [None, {}]}, "map": {"values": [["x"]], "of": 7}},
    "names": TENSOR
    | {"case": HOSTILE, "probe": HOSTILE, "caption": HOSTILE, "axes": [HOSTILE, {}]},
    "worst": TENSOR | {"worst": {"index": "x", "got": [], "expected": {}}, "pcc": "inf"},
}


@pytest.mark.parametrize("record", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS)
def test_hostile_tensors(made_up, record) -> None:
    """A file of `data/` can hold anything: the page is written all the same."""
    wrong_tensor(made_up, record)
    assert "<script>alert" not in write_html(Page(made_up.folder)).read_text("utf-8")


@pytest.mark.parametrize("name", ["../secret.json", "/etc/x.json", "data/t.json", "", ".json"])
def test_only_files_of_the_folder(made_up, name: str) -> None:
    """A case line cannot make the report read a file elsewhere."""
    (made_up.folder / "secret.json").write_text(json.dumps(TENSOR))
    assert wrong_tensor(made_up, TENSOR, name) is None


@pytest.mark.parametrize(
    ("pcc", "text"),
    [(1.0, "1"), (0.5, "0.500"), (0.9999, "0.9999"), (1 - 2e-9, "0.999999998"), (-0.2, "-0.200")],
    ids=["one", "half", "four-nines", "nine-nines", "negative"],
)
def test_correlation_keeps_its_nines(pcc: float, text: str) -> None:
    """What tells a correlation from 1 is written out."""
    assert pcc_text(pcc) == text


def test_bars_show_the_worst_of_a_stretch() -> None:
    """Of a long axis no wrong slice is lost."""
    values = [1.0] * 1000
    values[777] = 50.0
    bars = bars_of("token", values, most=64)
    assert len(bars.values) <= 64
    assert bars.values[777 // bars.step] == 50.0


def test_one_line_is_read_again(made_up) -> None:
    """A case's line is found again by its place, whatever stands before it."""
    lines = [made_up.line(scenario=f"s{i}", message="ü" * i) for i in range(5)]
    run = read_run(made_up.write(lines))
    assert [run.line(case)["scenario"] for case in run.cases] == [f"s{i}" for i in range(5)]


def test_a_cut_file_of_data_is_left_out(made_up, tmp_path: Path) -> None:
    """Half a file shows nothing, and breaks nothing."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.json").write_text(json.dumps(TENSOR)[:90])
    assert read_tensor(made_up.folder, "t.json") is None
