"""Repros: one layer's weights, inputs and output, and a script that judges another layer."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

pytest.importorskip("diffusers")

from conformance.case import find_case
from conformance.golden_files import load_golden
from conformance.requirements import ORACLE, adding
from conformance.spec import parameter_shapes
from conformance.tolerance import LIMIT

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("weights", "inputs", "expected")
UNET, QUIET, TEXT = "unet/tiny/base", "unet/tiny/quiet", "text_encoder/tiny/base"
NORM = "down_blocks.0.resnets.0.norm1"
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
MLP = "text_model.encoder.layers.1.mlp"
CONV = "up_blocks.0.resnets.0.conv1"
"""Not watched in cases other than `base`: the golden has no noise of it."""
SKIP = "up_blocks.0.resnets.0.input"

NUMPY = """
import math

w, x = ({k: v.astype(np.float32) for k, v in arrays.items()} for arrays in (weights, inputs))


def conv(x, weight, bias):  # 3x3, padded by 1
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return np.einsum("bchwij,ocij->bohw", rows, weight, optimize=True) + bias[:, None, None]


def group_norm(x, weight, bias, eps):  # 8 groups
    rows = x.reshape(len(x), 8, -1)
    mean, var = rows.mean(-1, keepdims=True), rows.var(-1, keepdims=True)
    normed = ((rows - mean) / np.sqrt(var + np.float32(eps))).reshape(x.shape)
    return normed * weight[:, None, None] + bias[:, None, None]


def attend(x, w, heads):
    q, k, v = (x @ w[f"to_{n}.weight"].T for n in "qkv")
    q, k, v = (a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2) for a in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / np.float32(math.sqrt(q.shape[-1]))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    out = scores / scores.sum(-1, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(x.shape)


def mlp(x, w):
    x = x @ w["fc1.weight"].T + w["fc1.bias"]
    x = x / (1 + np.exp(np.float32(-1.702) * x))
    return x @ w["fc2.weight"].T + w["fc2.bias"]

"""

RIGHT = {
    "conv": ("vae_decoder/tiny/base", "decoder.conv_in", "conv(x['0'], w['weight'], w['bias'])"),
    "norm": (UNET, NORM, "group_norm(x['0'], w['weight'], w['bias'], 1e-5)"),
    "attention": (UNET, f"{ATTENTION}.to_out.0.input", "attend(x['0'], w, 8)"),
    "skip": (
        UNET,
        SKIP,
        "np.concatenate([x['hidden_states'], x['res_hidden_states_tuple.2']], axis=1)",
    ),
    "scale": ("vae_decoder/tiny/base", "post_quant_conv.input", "x['latents'] / 0.18215"),
    "table": (TEXT, "text_model.embeddings.token_embedding", "w['weight'][inputs['0']]"),
    "several-layers": (TEXT, MLP, "mlp(x['0'], w)"),
    "not-recorded": (QUIET, CONV, "conv(x['0'], w['weight'], w['bias'])"),
}
WRONG = {
    "norm": (UNET, NORM, "group_norm(x['0'], w['weight'], w['bias'], 1e-6)"),
    "attention": (UNET, f"{ATTENTION}.to_out.0.input", "attend(x['0'], w, 4)"),
    "skip": (
        UNET,
        SKIP,
        "np.concatenate([x['res_hidden_states_tuple.2'], x['hidden_states']], axis=1)",
    ),
}


@pytest.fixture(scope="module")
def repro(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that writes a repro, each once, and returns its folder."""
    from conformance.repro import write_repro

    written: dict[tuple[str, str | None], Path] = {}

    def write(case_id: str, probe: str | None) -> Path:
        key = (case_id, probe)
        if key not in written:
            written[key] = tmp_path_factory.mktemp("repro")
            write_repro(find_case(case_id), probe, written[key])
        return written[key]

    return write


def fill_in(folder: Path, probe: str, layer: str) -> Path:
    """Fill in `layer` by text replacement."""
    body = NUMPY + f"return {{{probe!r}: {layer}}}"
    filled, count = re.subn(
        r"    raise NotImplementedError\(.*\)\n",
        lambda _: "".join(f"    {row}\n" for row in body.splitlines()),
        (folder / "repro.py").read_text("utf-8"),
    )
    assert count == 1
    (folder / "filled.py").write_text(filled, "utf-8")
    return folder / "filled.py"


def read_ratio(printed: str, probe: str) -> float:
    """Read the one line that a filled script prints."""
    name, error, ratio, limit = re.fullmatch(
        r"(.*): (?:right|WRONG), error (.*), ratio (.*), limit (.*)\n", printed
    ).groups()
    assert (name, float(limit)) == (probe, LIMIT)
    assert np.isfinite(float(error))
    return float(ratio)


@pytest.fixture
def judge_layer(repro, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a filled script here and returns the ratio that it prints."""

    def ratio_of(case_id: str, probe: str, layer: str) -> float:
        folder = repro(case_id, probe)
        monkeypatch.chdir(folder)
        runpy.run_path(str(fill_in(folder, probe, layer)))
        return read_ratio(capsys.readouterr().out, probe)

    return ratio_of


@pytest.mark.parametrize(("case_id", "probe", "layer"), RIGHT.values(), ids=RIGHT)
def test_honest_layer(judge_layer, case_id: str, probe: str, layer: str) -> None:
    """A layer in NumPy's float32, made of the files alone, is within the limit."""
    assert judge_layer(case_id, probe, layer) <= LIMIT


@pytest.mark.parametrize(("case_id", "probe", "layer"), WRONG.values(), ids=WRONG)
def test_wrong_layer(judge_layer, case_id: str, probe: str, layer: str) -> None:
    """Another eps, number of heads or order of channels is over the limit."""
    assert judge_layer(case_id, probe, layer) > 2 * LIMIT


def run_script(path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script where it lies."""
    return subprocess.run(
        [sys.executable, path.name], cwd=path.parent, capture_output=True, text=True, check=False
    )


def test_script_in_a_process_of_its_own(repro) -> None:
    """Once `layer` is filled in, the script needs NumPy and safetensors, and nothing of ours."""
    case_id, probe, layer = RIGHT["conv"]
    done = run_script(fill_in(repro(case_id, probe), probe, layer))
    assert (done.returncode, done.stderr) == (0, "")
    assert read_ratio(done.stdout, probe) <= LIMIT


def test_the_files(repro) -> None:
    """Weights are the module's own, under its own names, exact; the rest is the oracle's."""
    folder = repro(UNET, NORM)
    weights, inputs, expected = (load_file(folder / f"{name}.safetensors") for name in FILES)
    drawn = find_case(UNET).weights()
    assert {n: a.dtype for n, a in weights.items()} == {"weight": "float32", "bias": "float32"}
    assert all(np.array_equal(weights[n], drawn[f"{NORM}.{n}"]) for n in weights)
    assert {n: a.dtype for n, a in inputs.items()} == {"0": "float64"}
    assert {n: a.dtype for n, a in expected.items()} == {NORM: "float64"}
    golden = load_golden(find_case(UNET))
    norm = golden.norms[golden.probes.index(NORM)]
    assert np.linalg.norm(expected[NORM]) == pytest.approx(norm, rel=1e-9)
    with safe_open(folder / "weights.safetensors", "np") as file:
        facts = json.loads(file.metadata()["repro"])
    assert facts == {"case": UNET, "module": "GroupNorm", "path": NORM, "arguments": {}}


def test_the_script_as_written(repro) -> None:
    """It says what is missing until `layer` is filled in, and names what that gets and gives."""
    folder = repro(UNET, f"{ATTENTION}.to_out.0.input")
    text = (folder / "repro.py").read_text("utf-8")
    assert "0 (2, 256, 32)" in text
    assert text.startswith(f'"""{UNET}, {ATTENTION}.to_out.0.input (Attention). Write `layer`')
    done = run_script(folder / "repro.py")
    assert done.returncode == 1
    message = f"return a dict of arrays: {ATTENTION}.to_out.0.input (2, 256, 32)"
    assert done.stderr.splitlines()[-1] == f"NotImplementedError: {message}"


def test_whole_network(repro) -> None:
    """Without a probe, all weights, the case's own inputs and its outputs are written."""
    torch = pytest.importorskip("torch")
    from conformance.adapters.sd1_impl_networks import build_text_encoder
    from conformance.adapters.torch_module import assign_weights

    folder, case = repro(TEXT, None), find_case(TEXT)
    weights, inputs, expected = (load_file(folder / f"{name}.safetensors") for name in FILES)
    assert {n: a.shape for n, a in weights.items()} == parameter_shapes("text_encoder", "tiny")
    assert np.array_equal(inputs["input_ids"], case.inputs()["input_ids"])
    network = assign_weights(build_text_encoder(case.variant), weights, torch.float64)
    found = network(torch.tensor(inputs["input_ids"]))
    assert list(expected) == ["last_hidden_state", "pooler_output"]
    for mine, right in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(mine.numpy(), right, rtol=1e-9, atol=1e-9)
    assert f'"""{TEXT}, the whole network. Write' in (folder / "repro.py").read_text("utf-8")


def test_command(main, tmp_path: Path) -> None:
    """The command creates the folder, lists the files, says what to do next, and ends with 0."""
    out = tmp_path / "deep" / "er"
    code, text, err = main("repro", f"{TEXT}[float32-cpu-sdpa-splice]", MLP, "--out", out)
    assert (code, err) == (0, "")
    names = [*(f"{name}.safetensors" for name in FILES), "repro.py"]
    rows = [f"{out / name}: {(out / name).stat().st_size:,} bytes" for name in names]
    assert text.splitlines() == [*rows, f"fill in `layer` and run: cd {out} && python repro.py"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)


MISTAKES = {
    "case": (["unet/tiny/bass"], "unknown case 'unet/tiny/bass'"),
    "probe": ([UNET, "conv_inn"], "unknown probe 'conv_inn'"),
    "other-size": ([UNET, "down_blocks.3.attentions.0"], "unknown probe"),
    "tokenizer": (["tokenizer/-/plain"], "repro needs a case of a network"),
    "scheduler": (["scheduler/ddim/-/base", "samples#0"], "repro needs a case of a network"),
    "pipeline": (["pipeline/txt2img/tiny/base"], "repro needs a case of a network"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(main, tmp_path: Path, arguments: list[str], message: str) -> None:
    """A case or probe that has no layer ends with exit 2 and one line; nothing is written."""
    code, out, err = main("repro", *arguments, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"sd1-conformance: {message}")
    assert not (tmp_path / "out").exists()


def test_unknown_probe_is_answered_briefly(main, tmp_path: Path) -> None:
    """The probe that was meant is named, and not all the others of a UNet with it."""
    _, _, err = main("repro", UNET, "conv_inn", "--out", tmp_path / "out")
    assert "conv_in" in err.replace("conv_inn", "")
    assert len(err) < 1000


@pytest.mark.parametrize("out", ["file/out", "file", "taken", "/dev/null"])
def test_unwritable(main, tmp_path: Path, out: str) -> None:
    """A folder that cannot be written ends with exit 2 and one line."""
    (tmp_path / "file").write_text("mine", "utf-8")
    (tmp_path / "taken" / "weights.safetensors").mkdir(parents=True)
    (tmp_path / "taken" / "repro.py").touch()
    code, text, err = main("repro", TEXT, "text_model.embeddings", "--out", tmp_path / out)
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert err.startswith("sd1-conformance: cannot write ")
    assert f"{tmp_path / out}: " in err
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_without_the_oracle(main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where diffusers is not installed, the message says what to install."""
    monkeypatch.setitem(sys.modules, "conformance.repro", None)
    code, out, err = main("repro", UNET, "conv_in", "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"({adding(ORACLE)})" in err
