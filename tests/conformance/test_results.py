"""What a run leaves behind: verdicts, exit codes, the first divergence, and strict JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from conformance.case import COMPONENTS, all_cases, find_case
from conformance.environment import environment
from conformance.errors import ExitCode
from conformance.evidence.data_folder import DATA
from conformance.execution import Execution
from conformance.port import Hello
from conformance.report.junit import write_junit
from conformance.report.records import parse_summary
from conformance.report.run import read_run
from conformance.report.terminal import verdict_lines
from conformance.result import Result
from conformance.results import FILES, Results, plain
from conformance.sampling import SCHEDULERS
from conformance.summary import VERDICTS, earliest, exit_code, summarise

if TYPE_CHECKING:
    from pathlib import Path

HELLO = Hello("fake", "1.0", ("unet",))
PORT = {"name": "fake", "version": "1.0", "spec": "fake.py:make"}


def line(verdict: str = "pass", name: str = "base", **changes: object) -> dict[str, Any]:
    """Build a case line."""
    made = Result(find_case(f"unet/tiny/{name}"), Execution(), verdict).as_json()
    ratio = {"pass": 0.5, "warn": 3.0, "fail": 48.0}.get(verdict)
    first = divergence("conv_in", name=name) if verdict == "fail" else None
    return made | {"ratio": ratio, "first_divergence": first} | changes


def divergence(probe: str, ratio: float | str = 48.0, name: str = "base") -> dict[str, Any]:
    """Build a first divergence."""
    case = f"unet/tiny/{name}[float32-cpu-sdpa-trace]"
    facts = {"case": case, "probe": probe, "after": None, "ratio": ratio}
    return facts | {"limit": 4.0, "kind": "fault", "hint": ""}


OUTPUTS = {
    "tokenizer": ["input_ids"],
    "text_encoder": ["last_hidden_state", "pooler_output"],
    "unet": ["sample"],
    "vae_encoder": ["mean", "logvar", "latents"],
    "vae_decoder": ["image"],
}


def wrong_line(component: str, probe: str) -> dict[str, Any]:
    """Build a case line that is wrong from a probe or output on."""
    records = [{"name": name, "kind": "output", "note": ""} for name in OUTPUTS[component]]
    first = divergence(probe)
    return line("fail", component=component, first_divergence=first, probes=records)


def summary_of(*verdicts: str) -> dict[str, Any]:
    """Summarise cases with these verdicts."""
    return summarise([line(verdict) for verdict in verdicts], PORT, HELLO, "scope")


def read(out: Path) -> list[dict[str, Any]]:
    """Read results.jsonl as strict JSON: no NaN, no Infinity, every line an object."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (out / "results.jsonl").read_text("ascii")
    assert text.endswith("\n")
    return [json.loads(row, parse_constant=refuse) for row in text.split("\n")[:-1]]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass"], "conformant"),
        (["warn"], "conformant"),
        (["pass", "warn", "skip"], "conformant"),
        (["xfail"], "conformant"),
        (["pass", "xfail"], "conformant"),
        (["pass", "fail"], "nonconformant"),
        (["fail", "error"], "nonconformant"),
        (["error", "fail", "skip"], "nonconformant"),
        (["pass", "xpass"], "nonconformant"),
        (["xpass", "error"], "nonconformant"),
        (["pass", "error"], "incomplete"),
        (["error"], "incomplete"),
        (["error", "xfail"], "incomplete"),
        (["skip"], "incomplete"),
        (["skip", "skip"], "incomplete"),
        ([], "incomplete"),
    ],
    ids="-".join,
)
def test_verdict(verdicts: list[str], expected: str) -> None:
    """A fail or xpass wins over an error; where nothing is judged, the run is incomplete."""
    summary = summary_of(*verdicts)
    assert summary["verdict"] == expected
    assert summary["counts"] == {v: verdicts.count(v) for v in VERDICTS}
    assert list(summary["counts"]) == list(VERDICTS)


def test_selection() -> None:
    """It counts the cases run, each once, and those of their components and variants."""
    names = ("unet/tiny/base[a-trace]", "unet/tiny/base[a-splice]", "unet/tiny/quiet[a-trace]")
    lines = [line(case=name) for name in names]
    every = [case.id for case in all_cases() if case.id.startswith("unet/tiny/")]
    assert summarise(lines, PORT, HELLO, "")["selection"] == {"cases": 2, "of": len(every)}
    lines = [line(case=name) for name in every]
    share = parse_summary(summarise(lines, PORT, HELLO, "")).selection
    assert share is not None
    assert not share.partial


@pytest.mark.parametrize(
    ("verdict", "code"), [("conformant", 0), ("nonconformant", 1), ("incomplete", 3)]
)
def test_exit_code(verdict: str, code: int) -> None:
    """Exit codes are those that docs/ci.md promises."""
    assert exit_code({"verdict": verdict}) == code


def test_usage_exit_code() -> None:
    """Bad usage is 2."""
    assert ExitCode.USAGE == 2


@pytest.mark.parametrize(
    ("ratios", "worst"),
    [
        ([0.5, 3.0, None], 3.0),
        ([1.0, math.inf, 2.0], math.inf),
        ([None], None),
        (["inf"], math.inf),
    ],
    ids=["finite", "infinite", "none", "resumed"],
)
def test_worst_ratio(ratios: list[Any], worst: float | None) -> None:
    """The worst ratio is over all cases that have one, also those read back from a file."""
    lines = [line("pass", ratio=ratio) for ratio in ratios]
    assert summarise(lines, PORT, HELLO, "scope")["worst_ratio"] == worst


@pytest.mark.parametrize("nan", [math.nan, "nan"], ids=["number", "resumed"])
def test_nan_is_the_worst_ratio(nan: object) -> None:
    """NaN is worse than any number."""
    lines = [line(ratio=1e30), line(ratio=nan), line(ratio=9.0)]
    assert math.isnan(summarise(lines, PORT, HELLO, "scope")["worst_ratio"])


def test_scope_names_what_is_not_offered() -> None:
    """The scope lists the components that the port lacks; of a whole family the family."""
    scope = summary_of("pass")["scope"]
    assert scope == (
        "scope; not offered: tokenizer, text_encoder, vae_encoder, vae_decoder, scheduler/*, "
        "pipeline/*, training/*"
    )
    some = Hello("some", "1", tuple(n for n in COMPONENTS if n not in SCHEDULERS[-2:]))
    scope = summarise([line()], PORT, some, "scope")["scope"]
    assert scope == "scope; not offered: scheduler/heun, scheduler/dpmpp_2m"
    offered = Hello("all", "1", COMPONENTS)
    assert summarise([line()], PORT, offered, "scope")["scope"] == "scope"


def test_scope_names_what_was_only_skipped() -> None:
    """An arithmetic or a backend that judged nothing is marked, where others judged something."""
    port = Hello("all", "1", COMPONENTS)
    skips = [line("skip", backend="efficient"), line("skip", dtype="tf32")]
    scope = summarise([line(), *skips], PORT, port, "scope")["scope"]
    assert scope == "scope; skipped: tf32, efficient"
    assert summarise(skips, PORT, port, "scope")["scope"] == "scope"


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        (["up_blocks.0.resnets.0.norm1", "conv_in", "mid_block.resnets.0.conv1"], "conv_in"),
        (["conv_out", "conv_norm_out"], "conv_norm_out"),
        (["sample", "conv_out"], "conv_out"),
        (["down_blocks.0.resnets.0.norm2", "time_embedding"], "time_embedding"),
        (["down_blocks.0.resnets.0.norm2.input", "down_blocks.0.resnets.0.norm2"],
         "down_blocks.0.resnets.0.norm2.input"),
        (["sample"], "sample"),
        ([], None),
    ],
    ids=["three", "end", "output-is-last", "time-is-first", "input-before-layer", "output", "none"],
)  # fmt: skip
def test_earliest(probes: list[str], expected: str | None) -> None:
    """Over all cases the earliest probe in execution order is named, not the first case's."""
    lines = [line("pass"), *(wrong_line("unet", p) for p in probes)]
    found = earliest(lines)
    assert (found and found["probe"]) == expected


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (
            [
                ("vae_decoder", "decoder.conv_in"),
                ("unet", "conv_out"),
                ("text_encoder", "pooler_output"),
            ],
            "pooler_output",
        ),
        ([("vae_decoder", "post_quant_conv"), ("vae_encoder", "latents")], "latents"),
        ([("text_encoder", "text_model.embeddings"), ("tokenizer", "input_ids")], "input_ids"),
        (
            [
                ("text_encoder", "pooler_output"),
                ("text_encoder", "text_model.final_layer_norm"),
                ("text_encoder", "text_model.encoder.layers.1.mlp.fc2.input"),
            ],
            "text_model.encoder.layers.1.mlp.fc2.input",
        ),
        ([("vae_encoder", "quant_conv"), ("vae_encoder", "encoder.conv_in")], "encoder.conv_in"),
        ([("vae_encoder", "latents"), ("vae_encoder", "logvar")], "logvar"),
        ([("vae_encoder", "mean"), ("vae_encoder", "quant_conv")], "quant_conv"),
    ],
    ids=[
        "pipeline",
        "halves",
        "tokenizer-first",
        "text-encoder",
        "encoder",
        "outputs-in-order",
        "outputs-last",
    ],
)
def test_earliest_component_first(wrong: list[tuple[str, str]], expected: str) -> None:
    """A picture is made by one component after another: the first wrong one is named."""
    lines = [wrong_line(component, probe) for component, probe in wrong]
    assert earliest(lines)["probe"] == expected


@pytest.mark.parametrize(
    "ratios", [[5.0, 48.0, 7.0], [48.0, "inf"], ["inf", 48.0]], ids=["middle", "last", "first"]
)
def test_earliest_of_equals_is_the_clearest(ratios: list[Any]) -> None:
    """Of two cases that fail at the same probe, the one with the larger ratio is shown."""
    lines = [line("fail", first_divergence=divergence("conv_in", r)) for r in ratios]
    assert float(earliest(lines)["ratio"]) == max(map(float, ratios))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, '"nan"'),
        (math.inf, '"inf"'),
        (-math.inf, '"-inf"'),
        ([math.nan, (1.5,)], '["nan",[1.5]]'),
        ({"a": {"b": math.nan}}, '{"a":{"b":"nan"}}'),
        (None, "null"),
        (True, "true"),
    ],
    ids=["nan", "inf", "minus-inf", "list", "dict", "none", "bool"],
)
def test_plain(value: object, expected: str) -> None:
    """What JSON cannot write becomes a string."""
    assert json.dumps(plain(value), separators=(",", ":"), allow_nan=False) == expected


def test_files_of_a_run(tmp_path: Path) -> None:
    """A run leaves four files; results.jsonl is strict JSON with header, cases and footer."""
    run = Results(tmp_path / "new" / "out", HELLO, "fake.py:make", "unet; tiny")
    run.add(line("fail", ratio=math.nan, message="ü \ud800 \x1b[31m \u2028", seconds=math.inf))
    run.add(line("pass", "quiet"))
    summary = run.close()
    out = tmp_path / "new" / "out"
    assert {p.name for p in out.iterdir()} - {DATA} == set(FILES)
    header, first, second, footer = read(out)
    assert [r["type"] for r in (header, first, second, footer)] == [
        "header", "case", "case", "footer",
    ]  # fmt: skip
    assert (header["port"], header["limit"], header["scope"]) == (PORT, 4.0, "unet; tiny")
    assert len(header["goldens"]) == 64
    assert (first["ratio"], first["seconds"]) == ("nan", "inf")
    assert footer["counts"] == summary["counts"]
    stored = json.loads((out / "summary.json").read_text("utf-8"))
    assert stored["worst_ratio"] == "nan"
    assert stored["environment"]["python"]
    design = {"suite", "port", "verdict", "scope", "level", "stamps", "counts", "limit"}
    design |= {"worst_ratio", "first_divergence", "faults", "environment", "seconds"}
    design |= {"next_level", "depth", "offers", "xfails", "options"}
    assert design <= set(stored)


def test_lines_are_written_at_once(tmp_path: Path) -> None:
    """A case line is on disk before the next case starts; an old run's files are gone."""
    for name in FILES:
        (tmp_path / name).write_text("old", "utf-8")
    run = Results(tmp_path, HELLO, "fake.py:make", "unet; tiny")
    run.add(line())
    assert [r["type"] for r in read(tmp_path)] == ["header", "case"]
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]


def test_environment() -> None:
    """The environment says what machine and which NumPy; every value is text."""
    facts = environment()
    assert {"python", "platform", "machine", "cpus", "numpy"} <= set(facts)
    assert all(isinstance(value, str) for value in facts.values())


def test_options_are_repeated_by_the_rerun_command(tmp_path: Path) -> None:
    """What no id says is handed on to every command that runs a case again, unfinished runs too."""
    results = Results(tmp_path, HELLO, "fake.py:make", "unet", options=("--traces", "my packs"))
    results.add(line("fail"))
    again = "-k \"unet/tiny/base\" --mode trace --traces 'my packs'"
    assert again in (write_junit(read_run(tmp_path))).read_text("utf-8")
    assert any(text.endswith(again) for text in verdict_lines(results.close()))


def test_nobody_listens(tmp_path: Path) -> None:
    """Whoever closes the pipe (`run | head`) finds all the files nevertheless."""
    run = Results(tmp_path, HELLO, "fake.py:make", "unet; tiny")
    run.add(line())

    def hang_up(_: dict[str, Any]) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run.close(tell=hang_up)
    assert {path.name for path in tmp_path.iterdir()} >= set(FILES)
