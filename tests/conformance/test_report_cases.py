"""The table of cases, and what is known, skipped or not judged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from conformance.report.cases import DETAILED, Cases
from conformance.report.html import Page, write_html
from conformance.report.known import STAMPS, Known
from conformance.report.run import read_run

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.report.sections import Section

HOSTILE = "<script>alert(1)</script>\x1b\u202e</script><!--"


def view(section: Section, out: Path) -> Any:
    """Show a run to one section and return what its template gets."""
    return section.view(read_run(out, [section]))


def plain(page: Path) -> str:
    """Return what a page shows of the cases without script."""
    text = page.read_text("utf-8")
    table = text[text.index('<section id="cases"') :]
    return re.search(r"<noscript>(.*?)</noscript>", table, re.DOTALL).group(1)


def column(data: dict[str, Any], name: str) -> list[str]:
    """Return a column of texts, which are numbers into a list."""
    return [data[name]["names"][i] for i in data[name]["of"]]


def probes(count: int, wrong: int) -> list[dict[str, Any]]:
    """Build records of which one is wrong."""
    return [
        {"name": f"p{i}", "kind": "probe", "shape": [2, 3], "ratio": 1.0, "verdict": "pass"}
        | ({"ratio": 48.0, "verdict": "fail", "approximate": True} if i == wrong else {})
        for i in range(count)
    ]


def test_columns(made_up) -> None:
    """Every case is in the data, urgent ones first in order; texts that repeat are kept once."""
    verdicts = ("pass", "skip", "fail", "error", "warn", "fail")
    ratios = (1.0, None, 8.0, None, 3.0, 80.0)
    lines = [
        made_up.line(verdict, scenario=f"s{i}", ratio=ratio, message="same")
        for i, (verdict, ratio) in enumerate(zip(verdicts, ratios, strict=True))
    ]
    data = view(Cases(), made_up.write(lines, worst_ratio=80.0))["data"]
    assert data["id"] == [line["case"] for line in lines]
    assert column(data, "verdict") == list(verdicts)
    assert data["ratio"] == list(ratios)
    assert data["order"] == [5, 2, 3, 4, 1, 0]
    assert data["message"] == {"names": ["same"], "of": [0] * 6}


def test_rerun_command(made_up) -> None:
    """The command names the port as the user gave it, and what differs from the defaults."""
    changes = {"variant": "sd1", "dtype": "bfloat16", "device": "cuda:0"}
    lines = [made_up.line("fail", scenario=name, **changes) for name in ("base", "quiet")]
    out = made_up.write(lines, port={"name": "mine", "version": "1", "spec": "my port.py:make"})
    rerun = view(Cases(), out)["data"]["rerun"]
    command = (
        "sd1-conformance run 'my port.py:make' -k \"\x01\" --variant sd1 --dtype bfloat16"
        " --device cuda:0 --mode trace"
    )
    assert rerun == {"names": [command], "of": [0, 0]}


def test_details(made_up) -> None:
    """A failing case opens to the probes around its first divergence and to the worst."""
    line = made_up.line("fail", probes=probes(30, 20), detail="what\ncame", message="m" * 900)
    line["first_divergence"] |= {"probe": "p20", "after": "p19"}
    data = view(Cases(), made_up.write([line]))["data"]
    found = data["details"][line["case"]]
    assert [row[3] for row in found["around"]] == [f"p{i}" for i in range(15, 25)]
    assert found["worst"][0][:4] == [21, "fail", "≈ 48", "p20"]
    assert found["worst"][0][-1] == "2×3"
    assert (found["total"], found["detail"], found["message"]) == (30, "what\ncame", "m" * 900)
    assert (found["measured"], found["hint"]) == ("ratio 48, limit 4", "the usual cause")
    assert len(data["message"]["names"][0]) == 300


def test_the_first_divergence_has_details(made_up) -> None:
    """Of many failing cases the worst have details, and that of the first divergence always."""
    lines = [
        made_up.line("fail", scenario=f"s{i}", ratio=1000.0 - i, probes=probes(2, 1))
        for i in range(DETAILED + 30)
    ]
    last = lines[-1]["case"]
    out = made_up.write(lines, first_divergence=lines[-1]["first_divergence"])
    details = view(Cases(), out)["data"]["details"]
    assert len(details) == DETAILED + 1
    assert {last, *(line["case"] for line in lines[:DETAILED])} == set(details)


def test_without_script(made_up) -> None:
    """Without script up to 200 cases that did not pass are listed, the worst first."""
    lines = [made_up.line("fail", scenario=f"s{i}", ratio=float(i + 5)) for i in range(230)]
    lines += [made_up.line(scenario="fine"), made_up.line("skip", scenario="left")]
    shown = plain(write_html(Page(made_up.write(lines))))
    assert shown.count("<tr><th") == 1 + 200
    assert "31 more cases are in results.jsonl" in shown
    assert shown.index("s229") < shown.index("s228")
    assert "fine" not in shown
    healthy = plain(write_html(Page(made_up.write([made_up.line()], "healthy"))))
    assert "Every case passed" in healthy


def test_ten_thousand_cases_stay_small(made_up) -> None:
    """Messages are cut where there are many, so that the data stays a few megabytes."""
    lines = [
        made_up.line("fail", scenario=f"s{i}", message=f"{i} " + "m" * 3000) for i in range(10_000)
    ]
    out = made_up.write(lines)
    assert len(view(Cases(), out)["data"]["id"]) == 10_000
    assert write_html(Page(out)).stat().st_size < 4_000_000


def test_hostile_names(made_up) -> None:
    """What a port writes is data and text: it ends no script, tag or comment."""
    changes = dict.fromkeys(("component", "scenario", "message", "detail", "dtype"), HOSTILE)
    line = made_up.line("fail", **changes, probes=[{"name": HOSTILE, "ratio": HOSTILE}])
    source = write_html(Page(made_up.write([line]))).read_text("utf-8")
    assert "<script>alert" not in source
    assert "<!--" not in source
    assert not re.search("[\x1b\u202e]", source)


def test_known_failures_and_skips(made_up) -> None:
    """They are grouped by reason, numbers aside, the largest group first, with links."""
    lines = [
        made_up.line("xfail", scenario=f"s{i}", message=f"x.txt line {i}: old driver")
        for i in range(3)
    ]
    lines += [made_up.line("xpass", message="x.txt line 9: mended")]
    lines += [made_up.line("skip", scenario=f"t{i}", message="no replace") for i in range(7)]
    expected = {"file": "x.txt", "entries": 5, "used": 3, "problems": ["line 4: matches nothing"]}
    out = made_up.write(lines, xfails=expected)
    found = view(Known(), out)
    assert [(g.verdict, g.count) for g in found["known"]] == [("xfail", 3), ("xpass", 1)]
    (skipped,) = found["skipped"]
    assert (skipped.reason, skipped.count, len(skipped.cases)) == ("no replace", 7, 5)
    page = write_html(Page(out)).read_text("utf-8")
    assert "and 2 more" in page
    assert "line 4: matches nothing" in page
    assert "3 of 5 entries used" in page


def test_many_reasons_are_folded(made_up) -> None:
    """A run in which every skip has a reason of its own stays readable."""
    lines = [made_up.line("skip", scenario=f"s{i}", message="x" * (i + 1)) for i in range(100)]
    found = view(Known(), made_up.write(lines))["skipped"]
    assert (len(found), found[-1].count) == (40, 61)
    assert found[-1].reason == "61 other reasons: see the table of cases"


def test_what_was_not_judged(made_up) -> None:
    """Every stamp is named; of one that the run does not give the page says why."""
    given = ["precision:bfloat16", "precision:float16"]
    gaps = {"precision:tf32": "backend plain was not judged", "training": "training failed"}
    facts = {"stamps": given, "stamps_missing": gaps}
    rows = view(Known(), made_up.write([made_up.line()], **facts))["stamps"]
    assert [name for name, _, _ in rows] == list(STAMPS)
    states = {name: state for name, _, state in rows}
    assert states["precision"] == (
        "given: precision:bfloat16, precision:float16. "
        "precision:tf32 is not given: backend plain was not judged"
    )
    assert states["training"] == "training is not given: training failed"
    assert {states[name] for name in ("memory", "real-weights")} == {"not judged in this run"}
