"""The port in `examples/block`: conformant as it is, caught and named where it is made wrong."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance import cli
from conformance.case import find_case
from conformance.traces import have_oracle

PORT = Path(__file__).parents[2] / "examples" / "block" / "port.py"
TIME, RESNET = "block/time_embedding", "block/down_blocks.0.resnets.0"
LINEAR_2 = 'see("linear_2", layers.linear("linear_2", silu(hidden)))'

WRONG = {
    "eps": ("EPS = 1e-5", "EPS = 1e-6", RESNET, "norm1"),
    "groups": ("self.groups, -1)", "2 * self.groups, -1)", RESNET, "norm1"),
    "variance": (
        "(centred * centred).mean(-1, keepdims=True)",
        "rows.var(-1, keepdims=True, ddof=1)",
        RESNET,
        "norm1",
    ),
    "no-silu-before-conv1": ('"conv1", silu(hidden)', '"conv1", hidden', RESNET, "conv1"),
    "padding": ("(1, 1)])", '(1, 1)], mode="edge")', RESNET, "conv1"),
    "bias-of-convolution": ("out + bias[:, None, None]", "out", RESNET, "conv1"),
    "no-silu-before-time": ("silu(time)", "time", RESNET, "time_emb_proj"),
    "time-left-out": ("hidden + shift[:, :, None, None]", "hidden", RESNET, "norm2.input"),
    "no-shortcut": ("return sample + hidden", "return hidden", RESNET, "out"),
    "bias-of-linear": (' + self.weights[f"{name}.bias"]\n', "\n", TIME, "linear_1"),
    "no-silu-between": ('"linear_2", silu(hidden)', '"linear_2", hidden', TIME, "linear_2"),
    "tanh-for-sigmoid": ("x / (1 + np.exp(-x))", "x * (1 + np.tanh(x)) / 2", TIME, "linear_2"),
    "silu-at-the-end": (LINEAR_2, f"silu({LINEAR_2})", TIME, "out"),
}
"""What stands in the port, what is put there, and the block and probe where it shows first."""

SPLICED = {
    "eps": ["norm1", "norm2"],
    "padding": ["conv1", "conv2"],
    "no-silu-before-time": ["time_emb_proj"],
    "time-left-out": ["norm2.input"],
    "no-shortcut": ["out"],
}
"""All that is wrong in the resnet where each layer is given the oracle's values."""


@pytest.fixture
def judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a port file: exit code, summary, names of what fails."""
    out = tmp_path / "out"

    def run(path: Path, *options: str) -> tuple[int, dict, list[str]]:
        code = cli.main(["run", f"{path}:factory", "--out", str(out), *options])
        capsys.readouterr()
        lines = map(json.loads, (out / "results.jsonl").read_text("utf-8").splitlines())
        probes = [p for line in lines if line["type"] == "case" for p in line["probes"]]
        wrong = [p["name"] for p in probes if p["verdict"] == "fail"]
        return code, json.loads((out / "summary.json").read_text("utf-8")), wrong

    return run


@pytest.fixture
def wrong_port(tmp_path: Path):
    """Return a function that writes the port with one wrong choice."""

    def write(name: str) -> Path:
        right, wrong, *_ = WRONG[name]
        source = PORT.read_text("utf-8")
        assert source.count(right) == 1, right
        path = tmp_path / f"{name.replace('-', '_')}_port.py"
        path.write_text(source.replace(right, wrong), "utf-8")
        return path

    return write


def test_conformant(judged) -> None:
    """Both blocks pass in both arithmetics, and in splice mode too where there is an oracle."""
    code, summary, _ = judged(PORT, "--dtype", "float32,float64")
    assert (code, summary["verdict"]) == (0, "conformant")
    assert summary["counts"]["pass"] == 2 * 2 * (2 if have_oracle() else 1)
    assert summary["depth"] == ("splice" if have_oracle() else "trace")
    assert summary["worst_ratio"] <= 2


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_choice_is_caught_and_named(name: str, judged, wrong_port) -> None:
    """The first layer that is wrong is that of the wrong choice."""
    *_, block, probe = WRONG[name]
    code, summary, _ = judged(wrong_port(name), "--mode", "trace", "-k", block)
    first = summary["first_divergence"]
    assert (code, summary["verdict"]) == (1, "nonconformant")
    assert (first["case"].partition("[")[0], first["probe"]) == (f"{block}/tiny/base", probe)
    assert first["ratio"] >= 2 * first["limit"]


@pytest.mark.skipif(not have_oracle(), reason="splice mode needs the oracle")
@pytest.mark.parametrize("name", SPLICED)
def test_splice_mode_blames_wrong_layers_alone(name: str, judged, wrong_port) -> None:
    """What follows a wrong layer is right, since it is given the oracle's values."""
    code, summary, wrong = judged(wrong_port(name), "--mode", "splice", "-k", RESNET)
    assert (code, wrong) == (1, SPLICED[name])
    assert summary["first_divergence"]["kind"] == "fault"


def test_what_is_put_in_is_what_it_goes_on_with() -> None:
    """A value that is put in is read by all that follows, and the port's own one is shown."""
    case = find_case(f"{RESNET}/tiny/base")
    port = runpy.run_path(str(PORT))["factory"]()
    loaded = port.load(RESNET, case.variant, case.weights(), "float32", "cpu")
    _, own = loaded.run(case.inputs(), ["conv2"])
    zeros = {"conv2": np.zeros(own["conv2"].shape)}
    outputs, seen = loaded.run(case.inputs(), ["conv2"], zeros)
    assert np.array_equal(outputs["out"], case.inputs()["0"])
    assert np.array_equal(seen["conv2"], own["conv2"])
    assert outputs["out"].dtype == np.float32


def test_imports_numpy_alone() -> None:
    """A port needs neither torch nor the suite."""
    program = (
        f"import runpy, sys; runpy.run_path({str(PORT)!r});"
        "print([m for m in ('torch', 'conformance', 'safetensors') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


def test_readme_shows_what_is_printed(judged, wrong_port) -> None:
    """The verdict and the failure that the README shows are those of today."""
    readme = (PORT.parent / "README.md").read_text("utf-8")
    _, summary, _ = judged(wrong_port("eps"))
    first = summary["first_divergence"]
    mode = "splice" if have_oracle() else "trace"
    shown = (
        f"   First divergence in {RESNET}/tiny/base[float32-cpu-sdpa-splice]\n     probe  norm1\n"
    )
    assert shown in readme
    assert first["case"] == f"{RESNET}/tiny/base[float32-cpu-sdpa-{mode}]"
    assert first["probe"] == "norm1"
    assert len(readme.splitlines()) <= 60
