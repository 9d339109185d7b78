"""The reports: healthy, failing, cut short, hostile and very large runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from conformance.errors import UsageError
from conformance.report.html import Page, write_html
from conformance.report.junit import write_junit
from conformance.report.run import read_run
from conformance.report.terminal import verdict_lines

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 4.0
HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>\x00\x1b[31m\ud800\u202e]]>"


def probe(name: str, ratio: object, verdict: str = "pass", kind: str = "probe") -> dict[str, Any]:
    """Build a probe's record."""
    return {
        "name": name,
        "kind": kind,
        "shape": [2, 32, 16, 16],
        "err": 1e-7,
        "noise": 9e-8,
        "ratio": ratio,
        "verdict": verdict,
        "approximate": kind == "probe",
        "rms": 1.0,
        "max_abs": 3.2,
    }


def case(scenario: str, verdict: str = "pass", **changes: object) -> dict[str, Any]:
    """Build a case line with five probes and an output, wrong from the third where it fails."""
    variant = str(changes.get("variant", "tiny"))
    bad = verdict == "fail"
    names = [f"down_blocks.0.resnets.0.layer{i}" for i in range(5)]
    good, wrong = (1.1, "pass"), (48.0, "fail")
    probes = [probe(n, *(wrong if bad and i > 1 else good)) for i, n in enumerate(names)]
    dtype, device = changes.get("dtype", "float32"), changes.get("device", "cpu")
    name = f"unet/{variant}/{scenario}[{dtype}-{device}-sdpa-trace]"
    divergence = {
        "case": name,
        "probe": names[2],
        "after": names[1],
        "ratio": 48.0,
        "limit": LIMIT,
        "kind": "fault",
        "hint": "fits unet-gn-eps, confirmed",
    }
    return {
        "type": "case",
        "case": name,
        "component": "unet",
        "variant": variant,
        "scenario": scenario,
        "dtype": "float32",
        "device": "cpu",
        "backend": "sdpa",
        "mode": "trace",
        "verdict": verdict,
        "ratio": 48.0 if bad else 1.2,
        "worst_probe": names[2],
        "first_divergence": divergence if bad else None,
        "seconds": 0.4,
        "message": "",
        "hunts": "a wrong GroupNorm eps",
        "probes": [*probes, probe("sample", 1.2, "fail" if bad else "pass", "output")],
    } | changes


LISTS = """text 0, 'a cat': 1 of 77 ids differ
  place  expected                       got
      0   49406 <|startoftext|>          49406 <|startoftext|>
      1     320 a</w>                      320 a</w>
>     2    2368 cat</w>                   1929 dog</w>"""


def exact(scenario: str, verdict: str = "pass", **changes: object) -> dict[str, Any]:
    """Build a case line of the tokenizer, with both token lists where it fails."""
    bad = verdict == "fail"
    name = f"tokenizer/-/{scenario}[int64-cpu]"
    ratio = "inf" if bad else 0.0
    record = probe("input_ids", ratio, verdict, "output") | {"shape": [1, 77], "noise": 0.0}
    first = {"case": name, "probe": "input_ids", "after": None, "ratio": "inf", "limit": LIMIT}
    return (
        case(scenario, verdict)
        | {
            "case": name,
            "component": "tokenizer",
            "variant": "-",
            "dtype": "int64",
            "backend": "",
            "mode": "",
            "ratio": ratio,
            "worst_probe": "input_ids",
            "first_divergence": first | {"kind": "fault", "hint": "1 of 77 differ"}
            if bad
            else None,
            "hunts": "ids",
            "detail": LISTS if bad else "",
            "probes": [record],
        }
        | changes
    )


def write_run(
    out: Path, cases: list[dict[str, Any]], *, finished: bool = True, **changes: object
) -> dict[str, Any]:
    """Write a run's folder and return its summary."""
    verdicts = [line["verdict"] for line in cases]
    ratios = [line["ratio"] for line in cases]
    port = {"name": "sd1_impl", "version": "0.1.0"}
    common = {"suite": "0.1.0", "port": port, "scope": "unet: tiny", "limit": LIMIT}
    environment = {"python": "3.11.2", "threads": 2}
    header = {"type": "header", **common, "environment": environment}
    header = header | {"started": "2026-11-22T20:00:00Z"} | changes
    names = ("pass", "warn", "fail", "error", "skip", "xfail", "xpass")
    counts = {name: verdicts.count(name) for name in names}
    failing = next((line["first_divergence"] for line in cases if line["first_divergence"]), None)
    verdict = "nonconformant" if counts["fail"] or counts["xpass"] else "conformant"
    summary = (
        common
        | {
            "verdict": "incomplete" if verdict == "conformant" and counts["error"] else verdict,
            "level": 1,
            "stamps": [],
            "counts": counts,
            "worst_ratio": max((r for r in ratios if isinstance(r, float)), default=None),
            "first_divergence": failing,
            "faults": [],
            "environment": environment,
            "seconds": 12.3,
        }
        | changes
    )
    lines = [header, *cases]
    if finished:
        lines.append({"type": "footer", "counts": counts, "seconds": 12.3})
        (out / "summary.json").write_text(json.dumps(summary))
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return summary


class _Page(HTMLParser):
    """Collects what a browser would show and act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self._inside: tuple[str, str] = ("", "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag, dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the parser's signature
        self._inside = ("", "")

    def handle_data(self, data: str) -> None:
        tag, name = self._inside
        if tag == "style":
            self.styles.append(data)
        elif tag == "script" and name.startswith("data-"):
            self.data[name.removeprefix("data-")] = json.loads(data)
        elif tag == "script":
            self.scripts.append(data)
        else:
            self.text += data


def read_page(path: Path) -> _Page:
    """Parse a report, and check what holds for every one of them."""
    source = path.read_text("utf-8")
    page = _Page()
    page.feed(source)
    assert not {"iframe", "object", "link", "base"} & set(page.tags)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "style"
        if name in ("href", "src"):
            assert (value or "").startswith(("#", "data:image/png"))
    policy = next(v for n, v in page.attributes if n == "content" and "default-src" in (v or ""))
    assert "default-src 'none'" in policy
    for texts, directive in ((page.styles, "style-src"), (page.scripts, "script-src")):
        assert len(texts) == 1
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    return page


def read_suite(path: Path) -> ET.Element:
    """Parse a JUnit file and return its one suite."""
    suite = ET.parse(path).getroot().find("testsuite")  # noqa: S314
    assert suite is not None
    assert suite.get("tests") == str(len(suite.findall("testcase")))
    return suite


def test_healthy_run(tmp_path: Path) -> None:
    """A conformant run says so everywhere."""
    summary = write_run(tmp_path, [case("base"), case("quiet")])
    page = read_page(write_html(Page(tmp_path)))
    assert (
        "sd1_impl 0.1.0 computes what Stable Diffusion v1 computes, as far as tried (2 items"
        in page.text
    )
    assert "Scope: unet: tiny" in page.text
    assert "First divergence" not in page.text
    suite = read_suite(write_junit(read_run(tmp_path)))
    assert (suite.get("failures"), suite.get("errors"), suite.get("tests")) == ("0", "0", "2")
    first = suite.find("testcase")
    assert first is not None
    assert first.get("classname") == "unet.tiny"
    assert first.get("name") == "unet/tiny/base[float32-cpu-sdpa-trace]"
    assert verdict_lines(summary)[0].startswith("CONFORMANT: sd1_impl 0.1.0")


def test_failing_run(tmp_path: Path) -> None:
    """A failing run names the first divergence, lists failures first and says how to rerun."""
    write_run(tmp_path, [case("base"), case("quiet", "fail"), case("t999", "fail")])
    page = read_page(write_html(Page(tmp_path)))
    assert "2 of 3 items measured differ by more than rounding explains" in page.text
    assert 'sd1-conformance run sd1_impl -k "unet/tiny/quiet" --mode trace' in page.text
    assert "fits unet-gn-eps, confirmed" in page.text
    suite = read_suite(write_junit(read_run(tmp_path)))
    failures = suite.findall("testcase/failure")
    assert suite.get("failures") == "2"
    assert "first divergence at down_blocks.0.resnets.0.layer2" in failures[0].get("message", "")
    assert "-k" in (failures[0].text or "")


def test_token_lists_side_by_side(tmp_path: Path) -> None:
    """A wrong tokenizer's lists stand whole in the page and in the JUnit file, and rerun it."""
    write_run(tmp_path, [exact("plain", "fail"), exact("empty"), case("base")])
    page = read_page(write_html(Page(tmp_path)))
    assert LISTS in page.text
    suite = read_suite(write_junit(read_run(tmp_path)))
    (failure,) = suite.findall("testcase/failure")
    assert LISTS in (failure.text or "")
    assert "first divergence at input_ids" in failure.get("message", "")
    first = suite.find("testcase")
    assert first is not None
    assert (first.get("classname"), first.get("name")) == (
        "tokenizer.-",
        "tokenizer/-/plain[int64-cpu]",
    )
    assert "--dtype" not in page.text


def test_depth_is_that_of_a_network(tmp_path: Path) -> None:
    """Token ids have no depth: the picture shows the worst network, though ids are more wrong."""
    write_run(tmp_path, [exact("plain", "fail"), case("quiet", "fail"), case("base")])
    (plot,) = read_page(write_html(Page(tmp_path))).data["depth"]["plots"]
    assert plot["case"] == "unet/tiny/quiet"
    assert len(plot["names"]) == 6
    assert [one["local"] for one in plot["series"]] == [False]
    write_run(tmp_path, [exact("plain", "fail"), exact("empty")])
    page = read_page(write_html(Page(tmp_path)))
    assert "depth" not in page.data
    assert LISTS in page.text


def test_every_verdict(tmp_path: Path) -> None:
    """Each verdict becomes the right JUnit element."""
    verdicts = ("pass", "warn", "fail", "error", "skip", "xfail", "xpass")
    write_run(tmp_path, [case(f"s{i}", verdict) for i, verdict in enumerate(verdicts)])
    read_page(write_html(Page(tmp_path)))
    suite = read_suite(write_junit(read_run(tmp_path)))
    found = [[child.tag for child in test] for test in suite.findall("testcase")]
    skipped, failure = ["skipped"], ["failure"]
    assert found == [[], ["system-out"], failure, ["error"], skipped, skipped, failure]


@pytest.mark.parametrize("cut", [0, 40], ids=["between-lines", "inside-a-line"])
def test_unfinished_run(tmp_path: Path, cut: int) -> None:
    """A run without a footer is shown as far as it got, and never looks green."""
    write_run(tmp_path, [case("base"), case("quiet")])  # a summary left over from an earlier run
    write_run(tmp_path, [case("base"), case("quiet"), case("t999", "fail")], finished=False)
    results = tmp_path / "results.jsonl"
    results.write_bytes(results.read_bytes()[: -cut or None])
    page = read_page(write_html(Page(tmp_path)))
    assert "stopped before its end" in page.text
    assert ("could not be read" in page.text) == bool(cut)
    suite = read_suite(write_junit(read_run(tmp_path)))
    assert suite.findall("testcase")[-1].get("name") == "verdict"
    assert int(suite.get("errors", "0")) >= 1


def test_bad_verdict_without_a_bad_case(tmp_path: Path) -> None:
    """A list of expected failures that does not match turns the JUnit file red by itself."""
    write_run(tmp_path, [case("base")], verdict="nonconformant")
    assert "does not match the run" in read_page(write_html(Page(tmp_path))).text
    assert read_suite(write_junit(read_run(tmp_path))).get("failures") == "1"


def test_hostile_names(tmp_path: Path) -> None:
    """What a port chooses is shown as text: markup, control and bidi characters do nothing."""
    line = case("base", "fail", variant=HOSTILE, message=HOSTILE, hunts=HOSTILE, ratio="nan")
    line["detail"] = HOSTILE
    line["component"] = line["worst_probe"] = line["probes"][2]["name"] = HOSTILE
    line["first_divergence"] |= {"probe": HOSTILE, "after": HOSTILE, "hint": HOSTILE}
    port = {"name": HOSTILE, "version": HOSTILE}
    summary = write_run(tmp_path, [line], port=port, scope=HOSTILE, environment={HOSTILE: HOSTILE})
    page = read_page(write_html(Page(tmp_path)))
    assert "<script>alert" in page.text
    suite = read_suite(write_junit(read_run(tmp_path)))
    assert "<script>alert" in suite.findall("testcase/failure")[0].get("message", "")
    for written in ("index.html", "junit.xml"):
        source = (tmp_path / written).read_text("utf-8")
        assert "<script>alert" not in source
        assert not re.search(r"[\x00\x1b\u202e]", source)
    assert not re.search(r"[\x00-\x1f\u202e]", "".join(verdict_lines(summary)))


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """Ratios that are missing, infinite or not a number are shown, and count as the worst."""
    line = case("base", "fail", ratio="inf", seconds=None)
    line["probes"][2]["ratio"] = "nan"
    line["probes"][3]["ratio"] = None
    line["probes"][4] |= {"ratio": "inf", "err": float("nan"), "shape": None}
    skip = case("quiet", "skip", ratio=None, probes=[], worst_probe=None)
    summary = write_run(tmp_path, [skip, line], worst_ratio="inf", limit="nan")
    page = read_page(write_html(Page(tmp_path)))
    assert "not a number" in page.text
    assert "∞" in page.text
    wanted = [1.1, 1.1, "nan", None, "inf", 1.2]
    assert page.data["depth"]["plots"][0]["series"][0]["ratios"] == wanted
    assert "  worst  ratio ∞, limit not a number" in verdict_lines(summary)


def test_no_results(tmp_path: Path) -> None:
    """A folder without results is a usage error; one without a case is a report that says so."""
    with pytest.raises(UsageError, match=r"no results\.jsonl"):
        write_html(Page(tmp_path))
    write_run(tmp_path, [])
    assert "Nothing of sd1_impl 0.1.0 was measured" in read_page(write_html(Page(tmp_path))).text
    assert verdict_lines({})[0].startswith("INCOMPLETE")


def test_ten_thousand_cases(tmp_path: Path) -> None:
    """A large failing run stays one page of under 5 MB that holds every case."""
    variants = ("tiny", "odd", "sd1", "tiny-lowvar", "odd-lowvar")
    cases = [
        case(f"s{i}", "fail", variant=variants[i % 5], ratio=0.1 + i * 0.01, message="m" * 200)
        for i in range(10_000)
    ]
    write_run(tmp_path, cases)
    page = write_html(Page(tmp_path))
    assert page.stat().st_size < 5_000_000
    assert "10000 of 10000 items measured differ" in read_page(page).text
    assert read_suite(write_junit(read_run(tmp_path))).get("tests") == "10000"


def test_a_wrong_shape_is_shown_as_such(tmp_path: Path) -> None:
    """Where there is nothing to measure, every report names the shapes instead of a ratio."""
    line = case("base", "fail", ratio="nan")
    shapes = "shape (1, 4), expected (2, 4)"
    line["probes"][2] |= {"ratio": "nan", "note": shapes}
    line["first_divergence"] |= {"ratio": "nan", "hint": shapes}
    summary = write_run(tmp_path, [line], worst_ratio="nan")
    page = read_page(write_html(Page(tmp_path)))
    assert f"How far off{shapes}" in page.text
    assert "wrong shape" in page.text
    assert "Hint" not in page.text
    (failure,) = read_suite(write_junit(read_run(tmp_path))).findall("testcase/failure")
    assert f"layer1): {shapes}, fault" in failure.get("message", "")
    lines = verdict_lines(summary)
    assert "  shape  (1, 4), expected (2, 4)" in lines
    assert not any(text.startswith(("  ratio", "  hint")) for text in lines)
