"""`sd1-conformance audit`: what it prints and writes, and the mistakes that a user makes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from conformance.audit.measure import quantiles
from conformance.audit.names import bits, kind, main_output, stage
from conformance.audit.page import render
from conformance.audit.picture import bits_picture
from conformance.audit.report import Attention, Report
from conformance.audit.search import Found
from conformance.audit.text_questions import questions_lines
from conformance.errors import UsageError
from conformance.run_folder import AUDIT, RESULTS, require_own

TEXT = ["--component", "text_encoder", "--variant", "tiny"]


OVERFLOWING = """
from conformance.port import resolve

class Port:
    def hello(self):
        return resolve("sd1_impl").hello()

    def load(self, *arguments):
        component = resolve("sd1_impl").load(*arguments)
        component.module.text_model.encoder.layers[1].mlp.fc2.bias.data[3] = float("inf")
        return component
"""


def numbers(value):
    """Yield every number of a JSON document."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, float):
        yield value


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Audit both regimes of the text encoder once: output, audit.json and the page."""
    pytest.importorskip("diffusers")
    import contextlib
    import io

    from conformance.cli import main

    out = tmp_path_factory.mktemp("audit") / "out"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = main(
            ["audit", "--dtype", "bfloat16", *TEXT[:2], "--samples", "3", "--out", str(out)]
        )
    facts = json.loads((out / "audit.json").read_text("utf-8"))
    return code, text.getvalue(), facts, (out / "index.html").read_text("utf-8")


def test_terminal_report(audited) -> None:
    """Both regimes stand side by side in at most 60 lines, with bits, worst layers, kernels."""
    code, text, _, _ = audited
    assert code == 0
    component = text.partition("== text_encoder ==")[2].partition("\n== ")[0]
    assert component.count("\n") <= 60
    for part in ("bits right", "tiny-outlier", "layers.2", "sum or gate", "the layers that cost"):
        assert part in component
    assert "kernels of text_encoder" in text
    assert "mkldnn.matmul.fp32_precision" in text
    assert "cud" not in text.partition("== environment ==")[2]
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "3 inputs: p50, p99, worst" in text


def test_json_is_whole_and_finite(audited) -> None:
    """audit.json holds every probe of both regimes, and no number that JSON lacks."""
    _, _, facts, _ = audited
    assert [p["regime"] for p in facts["profiles"]] == ["unit", "outlier"]
    for profile in facts["profiles"]:
        assert len(profile["layers"]) == 45
        assert all(layer["noise"] is not None for layer in profile["layers"])
        assert profile["explained"] == pytest.approx(1, abs=0.05)
        assert len(profile["worst"]) == 10
    assert all(map(math.isfinite, numbers(facts)))
    assert facts["environment"]["torch threads"]
    assert any("attention" in row["name"] for row in facts["kernels"]["text_encoder"])
    spread = facts["samples"][0]["err"]
    assert 0 < spread["p50"] <= spread["p99"] <= spread["max"]


def test_page_is_self_contained(audited) -> None:
    """The page allows nothing but its own style and script, and holds every number it draws."""
    _, _, facts, page = audited
    assert "default-src 'none'" in page
    assert not re.search(r"<[^>]+ style=|<link|src=\"|href=\"http", page)
    data = json.loads(re.search(r'id="data-audit">(.*?)</script>', page)[1])
    drawn = data["text_encoder"][0]
    assert drawn["names"] == [layer["name"] for layer in facts["profiles"][0]["layers"]]


MISTAKES = {
    "arithmetic": (
        ["--dtype", "bf16"],
        "unknown arithmetic 'bf16': the nearest is bfloat16; choose from",
    ),
    "scheduler": (["--component", "scheduler/ddim", "--variant", "-"], "audit looks into networks"),
    "device": (["--device", "npu"], "sd1_impl does not offer device npu: choose from cpu"),
    "keep": (
        [*TEXT, "--keep", "*mid_block*"],
        "--keep: '*mid_block*' matches no layer; layers are",
    ),
    "no-keep": (["--keep", ","], "--keep is empty"),
    "target": (["--target", "0"], "--target 0: give a positive ratio"),
    "samples": (["--samples", "0"], "--samples 0: give a number from 1"),
    "mixture": (
        ["--dtype", "policy:autocast", "--target", "1"],
        "--target needs an arithmetic of single layers",
    ),
    "no-file": ([*TEXT, "--attention", "nowhere.py:f"], "--attention: nowhere.py does not exist"),
    "no-function": ([*TEXT, "--attention", "mine"], "--attention 'mine': write file.py:function"),
    "no-policy": (["--policy", "nowhere.toml"], "--policy nowhere.toml cannot be read"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(main, tmp_path: Path, options: list[str], message: str) -> None:
    """A mistake ends with exit 2 and one line that names the option and the fix."""
    pytest.importorskip("torch")
    code, out, err = main("audit", *options, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"sd1-conformance: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_port_without_torch(main, port_file, tmp_path: Path) -> None:
    """Of a port that computes nothing in bfloat16 the error names what it offers."""
    code, _, err = main("audit", port_file, "--out", tmp_path / "out")
    assert code == 2
    assert "does not offer arithmetic bfloat16: choose from float32" in err


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["results.jsonl", "index.html"], "holds results.jsonl: a run wrote it"),
        (["index.html"], "holds index.html, but no audit.json: no audit wrote it"),
    ],
)
def test_page_of_another(main, tmp_path: Path, files: list[str], reason: str) -> None:
    """A page that no audit wrote is not replaced: exit 2 before anything is computed."""
    pytest.importorskip("torch")
    for name in files:
        (tmp_path / name).write_text("mine", "utf-8")
    code, out, err = main("audit", *TEXT, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == dict.fromkeys(
        files, "mine"
    )


def test_folders_of_ones_own(tmp_path: Path) -> None:
    """An audit replaces an audit and fills an empty folder; a run does not replace an audit."""
    page = ["index.html"]
    require_own(tmp_path / "new", AUDIT, page)
    for name in (AUDIT, *page):
        (tmp_path / name).touch()
    require_own(tmp_path, AUDIT, page)
    with pytest.raises(UsageError, match=r"holds audit\.json: an audit wrote it"):
        require_own(tmp_path, RESULTS, page)


def test_target_as_an_option() -> None:
    """What `--target` found is printed as the option that keeps it, all globs as they are."""
    globs = [f"decoder.up_blocks.{i}.resnets.0.*" for i in range(12)]
    found = Found(0.8, 2.0, 0.1, True, 0.7, ["x"] * 40, globs, 30, True)  # noqa: FBT003
    report = Report("mine", "1", "bfloat16", "cpu", targets={"vae_decoder/tiny/base": found})
    option = f"--keep '{','.join(globs)}'"
    assert f"  {option}" in questions_lines(report)
    assert option.replace("'", "&#39;") in render(report)


def test_columns_of_what_is_no_number() -> None:
    """In the table of an attention NaN takes no more room than a number."""
    cell = {"size": 40, "length": 77, "causal": False, "sdpa": 1e-3, "message": ""}
    cells = [{**cell, "err": err, "ratio": err, "verdict": "fail"} for err in (math.nan, 0.5)]
    report = Report("mine", "1", "bfloat16", "cpu", attention=Attention("f", cells))
    *_, row = questions_lines(report)
    assert row.startswith(f"  40    77       {'NaN':>10s} {'500':>9s} {'NaN':>9s} fail")


def test_names() -> None:
    """Stages, kinds and bits are what the tables say they are."""
    assert stage("text_model.encoder.layers.1.mlp.fc2.input") == "layers.1"
    assert stage("decoder.up_blocks.2.resnets.0") == "up_blocks.2"
    assert kind("unet", "tiny", "down_blocks.0.attentions.0.proj_in") == "convolution"
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    assert kind("unet", "tiny", f"{attention}.to_out.0.input") == "attention core"
    assert kind("unet", "tiny", f"{attention}.to_q") == "linear"
    assert kind("unet", "tiny", "down_blocks.0.resnets.0") == "sum or gate"
    assert main_output("vae_encoder", ["latents", "mean"]) == "mean"
    assert (bits(0.25), bits(0), bits(math.nan), bits(math.inf)) == (2, 53, None, -math.inf)


def test_wrong_numbers_are_the_worst() -> None:
    """Of samples that are not finite the spread is unknown, never a small number."""
    assert quantiles([1.0, math.nan, 2.0]) == {"p50": 2.0, "p99": None, "max": None}
    assert quantiles([1.0, 2.0, 4.0]) == {"p50": 2.0, "p99": 4.0, "max": 4.0}


def test_not_finite(main, tmp_path: Path) -> None:
    """A port that overflows is profiled all the same, and the first bad layer is named."""
    pytest.importorskip("diffusers")
    path = tmp_path / "overflowing.py"
    path.write_text(OVERFLOWING, "utf-8")
    code, out, _ = main("audit", f"{path}:Port", *TEXT, "--out", tmp_path / "out")
    assert code == 0
    assert "not finite from text_model.encoder.layers.1.mlp.fc2 on" in out
    facts = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
    assert facts["profiles"][0]["outputs"][0]["verdict"] == "fail"
    assert all(map(math.isfinite, numbers(facts)))


def test_picture() -> None:
    """A column is as high as its bits; what is exact reaches the top, what is unknown is a dot."""
    rows = bits_picture([53, 8, 4, None], ["a", "a", "b", "b"], height=2)
    assert [row[6:] for row in rows] == ["██", "███·", "  ╵"]
    assert rows[0].startswith("    8 ")
