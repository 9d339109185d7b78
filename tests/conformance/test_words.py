"""The words of a report: levels, depth, expected failures, causes, and the command to run again."""

from __future__ import annotations

import math
from typing import Any

import pytest

from conformance.levels import LADDER
from conformance.report.records import Divergence, parse_summary
from conformance.report.terminal import verdict_lines
from conformance.report.text import pattern_of
from conformance.report.words import (
    headline,
    level_text,
    measured,
    rerun_command,
    rerun_of,
    sentence,
)

WHOLE = [component for rung in LADDER for component in rung.whole]
NO_SAMPLER = {"level": 2, "because": "it offers no scheduler"}
RERUN = {
    "scheduler/ddim/-/base[float64-cpu]": " --dtype float64",
    "tokenizer/-/plain[int64-cpu]": "",
    "pipeline/txt2img/sd1/ddim2[float16-cuda-sdpa-trace]": (
        " --variant sd1 --dtype float16 --device cuda --mode trace"
    ),
    "unet/tiny/base[float32-cpu-sdpa-splice]::mid_block": " --mode splice",
    "unet/tiny/base[bf16-matmul-cuda:1-math-trace]": (
        " --dtype bf16-matmul --device cuda:1 --backend math --mode trace"
    ),
    "unet/tiny/base[policy:fp16-norm32-cpu-sdpa-trace]": (
        " --dtype policy:fp16-norm32 --mode trace"
    ),
    "unet/tiny/base": "",
    "unet/tiny/base[]": "",
    "unet/tiny/base[x]": "",
}


@pytest.mark.parametrize(("item", "options"), RERUN.items(), ids=RERUN)
def test_rerun_command(item: str, options: str) -> None:
    """An id says how its case was run, its mode too; what is a default of `run` is left out."""
    name = item.partition("[")[0]
    assert rerun_command("mine", item) == f'sd1-conformance run mine -k "{name}"{options}'


def test_rerun_command_with_options() -> None:
    """What no id says is repeated, safe for a shell."""
    command = rerun_command("mine", "unet/tiny/base", ["--traces", "my packs"])
    assert command.endswith("-k \"unet/tiny/base\" --traces 'my packs'")


LEVELS = {
    "whole": ({"level": 1, "offers": WHOLE}, "1 components"),
    "next": (
        {"level": 1, "offers": WHOLE, "next_level": NO_SAMPLER},
        "1 components; what keeps it from level 2 (samplers): it offers no scheduler",
    ),
    "part": (
        {"level": 1, "offers": ["tokenizer", "unet", "vae_decoder"]},
        "1 components (offers 3 of 5; not offered: text_encoder, vae_encoder)",
    ),
    "little": (
        {"level": 1, "offers": ["unet"]},
        "1 components (offers 1 of 5; not offered: tokenizer, text_encoder, vae_encoder, 1 more)",
    ),
    "blocks": (
        {"level": 1, "offers": ["block/time_embedding"]},
        "1 components (offers none of 5 whole, only parts)",
    ),
    "contract": (
        {"level": 0, "offers": ["unet"], "next_level": {"level": 1, "because": "unet fails"}},
        "0 contract; what keeps it from level 1 (components): unet fails",
    ),
    "below": (
        {"level": None, "counts": {"fail": 1}, "next_level": {"level": 0, "because": "ids"}},
        "below 0 (contract); what keeps it from level 0 (contract): ids",
    ),
    "known-below": ({"level": None, "counts": {"xfail": 1}}, "below 0 (contract)"),
    "nothing": ({"level": None}, "\N{EN DASH}"),
    "old-file": ({"level": 2}, "2 samplers"),
    "garbled": ({"level": "2", "offers": 3, "next_level": ["x"]}, "2 samplers"),
    "future": (
        {"level": 7, "next_level": {"level": 8, "because": "it"}},
        "7; what keeps it from level 8: it",
    ),
    "share": (
        {"level": 1, "selection": {"cases": 4, "of": 96}},
        "1 components, of 4 of 96 cases",
    ),
    "all": ({"level": 1, "selection": {"cases": 96, "of": 96}}, "1 components"),
    "missing-shard": ({"level": 1, "missing_shards": ["2/2"]}, "1 components so far"),
    "environment": (
        {"level": 1, "first_divergence": {"kind": "environment"}},
        "not known: the environment is at fault",
    ),
}


@pytest.mark.parametrize(("record", "expected"), LEVELS.values(), ids=LEVELS)
def test_level_text(record: dict[str, Any], expected: str) -> None:
    """The level is named with what is offered of it and what keeps the port from the next."""
    assert level_text(parse_summary(record)) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"depth": "splice"}, "  depth  splice: layers by themselves"),
        ({"depth": "outputs"}, "  depth  outputs alone, it hands out no probe"),
        ({"level": 1, "next_level": NO_SAMPLER},
         "  level  1 components; what keeps it from level 2 (samplers): it offers no scheduler"),
        ({"xfails": {"file": "k", "entries": 4, "used": 3, "problems": ["line 3: old"]}},
         "  xfails 3 of 4 entries used; problem: line 3: old"),
        ({"xfails": {"file": "k", "entries": 1, "used": 1, "problems": ["a", "b", "c"]}},
         "  xfails 1 of 1 entry used; problem: a; and 2 problems more in summary.json"),
        ({"xfails": {"file": "k", "entries": 0}}, "  xfails 0 of 0 entries used"),
        ({"worst_ratio": 9.0, "limit": 4.0, "counts": {"xfail": 1}},
         "  worst  ratio 9, limit 4, expected failures included"),
    ],
    ids=["splice", "outputs", "level", "xfails", "problems", "empty-list", "worst"],
)  # fmt: skip
def test_verdict_lines(record: dict[str, Any], expected: str) -> None:
    """The terminal says level, depth and how the expected failures fit, a line each."""
    assert expected in verdict_lines(record)


def test_an_old_summary_has_no_new_lines() -> None:
    """A summary without the newer fields is shown as before."""
    lines = verdict_lines({"verdict": "conformant", "level": 1, "counts": {"pass": 1}})
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["items", "worst", "scope", "level"]


OPEN = {
    "shard": (
        {"missing_shards": ["2/2"], "counts": {"pass": 1}},
        "(1 item measured): shard 2/2 is missing; merge again with it.",
    ),
    "shards": (
        {"missing_shards": ["2/4", "3/4"], "counts": {"pass": 2}},
        "(2 items measured): shards 2/4, 3/4 are missing; merge again with them.",
    ),
    "errors": ({"counts": {"pass": 2, "error": 1}}, "(2 items measured): 1 item broke."),
    "control": (
        {"counts": {"pass": 2}, "control": {"port": "diffusers", "broke": [{}, {}]}},
        "(2 items measured): the control diffusers could not be run in 2 items.",
    ),
    "skipped": (
        {"counts": {"skip": 3}, "port": {"name": "p", "spec": "my port.py:p"}},
        (
            "(0 items measured): every item was skipped; `sd1-conformance doctor 'my port.py:p'` "
            "says what can be judged of it here."
        ),
    ),
    "nothing": ({}, "(0 items measured): nothing was judged."),
}


@pytest.mark.parametrize(("record", "expected"), OPEN.values(), ids=OPEN)
def test_incomplete_says_why(record: dict[str, Any], expected: str) -> None:
    """The sentence of an incomplete run gives its reason, and what would complete it."""
    found = sentence(parse_summary({"verdict": "incomplete", "port": {"name": "p"}} | record))
    assert found == f"Whether p computes Stable Diffusion v1 stays open {expected}"


def test_regression_in_the_headline() -> None:
    """A conformant run that got worse says so; one that did not, or is wrong, says its verdict."""
    worse = {"baseline": {"dir": "old", "regressions": [{"text": "unet"}]}}
    summary = parse_summary({"verdict": "conformant"} | worse)
    assert headline(summary) == "Conformant, ▲ worse than the baseline"
    assert headline(parse_summary({"verdict": "conformant"})) == "Conformant"
    assert headline(parse_summary({"verdict": "nonconformant"} | worse)) == "Not conformant"


CONTROLS = {
    "given": ("numpy", "cpu", " --control numpy"),
    "default-on-cpu": ("diffusers", "cpu", " --control diffusers"),
    "default": ("diffusers", "cuda", ""),
    "other-on-cuda": ("numpy", "cuda", " --control numpy"),
}


@pytest.mark.parametrize(("control", "device", "expected"), CONTROLS.values(), ids=CONTROLS)
def test_rerun_of_an_environment(control: str, device: str, expected: str) -> None:
    """It shows again only with its control, and the baseline that it fell behind."""
    first = {"case": f"unet/tiny/base[float32-{device}-sdpa-trace]", "kind": "environment"}
    record = {"port": {"name": "p"}, "first_divergence": first, "control": {"port": control}}
    summary = parse_summary(record)
    assert summary.divergence is not None
    plain = rerun_command("p", first["case"])
    assert rerun_of(summary, summary.divergence) == plain + expected
    behind = parse_summary(record | {"baseline": {"dir": "old"}})
    assert rerun_of(behind, summary.divergence) == f"{plain}{expected} --baseline old"
    own = parse_summary(record | {"first_divergence": first | {"kind": "fault"}})
    assert own.divergence is not None
    assert rerun_of(own, own.divergence) == plain


SHAPES = "shape (1, 2), expected (2, 2)"
MEASURED = {
    "ratio": (9.0, "", "ratio 9, limit 4"),
    "shape": (math.nan, SHAPES, SHAPES),
    "shape-in-a-hint": (math.nan, f"like the mutants a, b; {SHAPES}; usual", SHAPES),
    "scalar": (math.nan, "shape (), expected (2,)", "shape (), expected (2,)"),
    "not-finite": (math.nan, "3 of 4 values are not finite", "ratio not a number, limit 4"),
    "ratio-and-shape": (9.0, SHAPES, "ratio 9, limit 4"),
}


@pytest.mark.parametrize(("ratio", "hint", "expected"), MEASURED.values(), ids=MEASURED)
def test_measured(ratio: float, hint: str, expected: str) -> None:
    """A divergence is measured by its ratio, unless a shape is wrong: then by the shapes."""
    first = Divergence("unet/tiny/base", "conv_in", "", ratio, 4.0, "fault", hint)
    assert measured(first) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["layers.0.mlp.fc2.input", "layers.1.mlp.fc2.input"], "layers.*.mlp.fc2.input"),
        (["down.0.resnets.1", "down.1.resnets.1", "down.2.resnets.1"], "down.*.resnets.1"),
        (["down.0.resnets.1", "down.1.resnets.0"], "down.*.resnets.*"),
        (["conv_in"], "conv_in"),
        (["samples#3", "samples#49"], "samples#*"),
    ],
    ids=["constant-number", "three", "two-numbers", "one", "steps"],
)
def test_pattern_of(names: list[str], expected: str) -> None:
    """Only the numbers in which names differ become wild."""
    assert pattern_of(names) == pattern_of(set(names)) == expected


@pytest.mark.parametrize(
    ("fail", "failed", "told"),
    [
        (2, 2, "mine 1 does not keep 2 of 4 memory budgets."),
        (3, 2, "more than rounding explains, and it does not keep 2 of 4 memory budgets."),
    ],
)
def test_memory_is_told_apart(fail: int, failed: int, told: str) -> None:
    """What a port holds says nothing of what it computes, nor of a level."""
    found = parse_summary(
        {
            "port": {"name": "mine", "version": "1"},
            "verdict": "nonconformant",
            "counts": {"fail": fail},
            "memory": {"judged": 4, "failed": failed},
        }
    )
    assert sentence(found).endswith(told)
    assert level_text(found).startswith("below 0") == (fail > failed)
