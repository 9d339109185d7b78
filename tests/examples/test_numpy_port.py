"""The NumPy port's networks conform, need NumPy alone, and are caught where something is wrong."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conformance.case import find_case
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.tolerance import LIMIT

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "numpy"
CASES = [
    "tokenizer/-/plain",
    "tokenizer/-/special-in-capitals-then-symbol",
    "block/time_embedding/tiny/base",
    "block/down_blocks.0.resnets.0/tiny/base",
    "text_encoder/tiny/base",
    "text_encoder/odd/base",
    "unet/tiny/base",
    "unet/tiny/oddsize",
    "unet/odd-lowvar/base",
    "unet/tiny-inpaint/base",
    "vae_encoder/tiny/base",
    "vae_encoder/tiny/oddsize",
    "vae_decoder/tiny/base",
]
NETWORKS = [case for case in CASES if find_case(case).is_network]


def part(name: str):
    """Return a file of the port, once the port is imported: to look at it or to spoil it."""
    return importlib.import_module(f"sd1_numpy.{name}")


def judged(runner, case_id: str, dtype: str = "float32", mode: str = "trace"):
    """Run one case."""
    case = find_case(case_id)
    return runner.run(case, Execution(dtype=dtype, mode=mode).for_case(case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case_id", CASES)
def test_conforms(runner, case_id: str, dtype: str) -> None:
    """A case of each component passes, at no more than half the limit."""
    result = judged(runner, case_id, dtype)
    assert result.verdict == "pass", result.message
    assert result.worst.ratio < LIMIT / 2


@pytest.mark.parametrize("case_id", NETWORKS)
def test_offers_every_probe(runner, case_id: str) -> None:
    """A network hands out all that it is asked for, in the order of execution."""
    case = find_case(case_id)
    asked = load_golden(case).asked
    _, probes = runner.load(case, Execution()).run(case.inputs(), asked)
    assert sorted(probes) == sorted(asked)


def test_needs_nothing_but_numpy() -> None:
    """Using it imports no package but NumPy: neither torch nor the suite nor sd1_impl."""
    script = (
        "import json, sys; import numpy; before = set(sys.modules); import port; "
        "loaded = port.factory().load('tokenizer', None, {}, 'int64', 'cpu'); "
        "loaded.run({'text': numpy.array(['a photo'])}); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    foreign = set(json.loads(done.stdout)) - set(sys.stdlib_module_names)
    assert foreign - {"numpy"} == {"port", "sd1_numpy"}  # NumPy loads some of its parts late


def test_splices(runner) -> None:
    """In splice mode every layer alone is within the limit, and every output."""
    pytest.importorskip("diffusers")
    result = judged(runner, "unet/tiny/base", mode="splice")
    assert result.verdict == "pass", result.message
    assert result.worst.ratio < LIMIT / 2


def test_a_replaced_probe_is_read_by_all_its_readers(runner) -> None:
    """It shows its own value; the next layer and the later reader of the skip get the other one."""
    case = find_case("unet/tiny/base")
    loaded = runner.load(case, Execution())
    skip, later = "down_blocks.0.attentions.0", "up_blocks.3.resnets.1.input"
    names = [skip, "down_blocks.0.resnets.1.norm1", later]
    _, own = loaded.run(case.inputs(), names)
    value = np.full_like(own[skip], 0.5)
    _, spliced = loaded.run(case.inputs(), names, {skip: value})
    assert np.array_equal(spliced[skip], own[skip])
    flat = spliced[names[1]]  # what is constant is normed to nothing but the bias of a channel
    assert np.ptp(flat, axis=(0, 2, 3)).max() == 0
    assert np.array_equal(spliced[later][:, -value.shape[1] :], value)


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_a_residual_sum_takes_what_its_norm_was_given(runner, name: str) -> None:
    """What is put before a norm also reaches the sum after it, and is not shown as the port's."""
    case = find_case(f"{name}/tiny/base")
    loaded = runner.load(case, Execution(dtype="float64"))
    block, norm, after = {
        "unet": ("mid_block.attentions.0.transformer_blocks.0", "norm3", "ff"),
        "text_encoder": ("text_model.encoder.layers.1", "layer_norm2", "mlp"),
    }[name]
    entering, added = f"{block}.{norm}.input", f"{block}.{after}"
    _, own = loaded.run(case.inputs(), [entering])
    value = own[entering] + 1
    _, spliced = loaded.run(case.inputs(), [entering, added, block], {entering: value})
    assert np.array_equal(spliced[entering], own[entering])
    assert np.array_equal(spliced[block], value + spliced[added])


@pytest.mark.usefixtures("runner")
def test_the_recorder_refuses_what_would_blind_it() -> None:
    """A probe shown twice would show what was put in; a value of another shape cannot stand in."""
    recorder = part("module").Recorder(["x"], {"y": np.zeros(3)})
    recorder.see("x", np.ones(2))
    with pytest.raises(ValueError, match="x is shown twice"):
        recorder.see("x", np.ones(2))
    with pytest.raises(ValueError, match="y has shape"):
        recorder.see("y", np.ones(2))


def exchanged(wrapped):
    """Exchange cosines and sines."""
    return lambda times, width: np.roll(wrapped(times, width), width // 2, axis=1)


def unmasked(wrapped):
    """Attend to later tokens."""
    return lambda q, k, v, heads, _mask=None: wrapped(q, k, v, heads)


def by_tanh(_wrapped):
    """Approximate GELU as GPT-2 does."""
    return lambda x: x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))) / 2


FIRST_TRANSFORMER = "down_blocks.0.attentions.0.transformer_blocks.0"
WRONG = {
    "eps": (
        "unet",
        "TRANSFORMER_EPS",
        1e-5,
        "unet/tiny-lowvar/base",
        "down_blocks.0.attentions.0.norm",
    ),
    "sines-first": ("unet", "sinusoids", exchanged, "unet/tiny/base", "time_proj"),
    "tanh": ("unet", "gelu", by_tanh, "unet/tiny/base", f"{FIRST_TRANSFORMER}.ff.net.0"),
    "no-mask": (
        "text",
        "attention",
        unmasked,
        "text_encoder/tiny/base",
        "text_model.encoder.layers.0.self_attn.out_proj.input",
    ),
    "scale": ("vae", "SCALE", 0.18, "vae_decoder/tiny/base", "post_quant_conv.input"),
}
"""Part, what stands in it, what is put there, the case and the probe where it shows first."""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_choice_is_caught(runner, monkeypatch, wrong: str) -> None:
    """The first divergence is the layer that was made wrong."""
    room, name, value, case_id, probe = WRONG[wrong]
    owner = part(room)
    monkeypatch.setattr(owner, name, value(getattr(owner, name)) if callable(value) else value)
    result = judged(runner, case_id)
    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == probe


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A copy of the port's tokenizer that has no `golden` beside it."""
    text = (FOLDER / "sd1_numpy" / "tokenizer.py").read_text("utf-8")
    place = tmp_path / "a" / "b" / "sd1_numpy" / "tokenizer.py"
    place.parent.mkdir(parents=True)
    place.write_text(text, "utf-8")
    monkeypatch.delenv("SD1_GOLDEN", raising=False)
    spec = importlib.util.spec_from_file_location("copied_tokenizer", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_copy_reads_the_installed_merges(copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `golden` is found wherever it is installed, without the suite's code."""
    golden = str(FOLDER.parents[1] / "golden")
    found = SimpleNamespace(submodule_search_locations=[golden])
    monkeypatch.setattr(importlib.util, "find_spec", {"golden": found}.get)
    assert copied.Tokenizer()("a cat") == part("tokenizer").Tokenizer()("a cat")


@pytest.mark.parametrize("variable", ["set", ""])
def test_a_copy_without_merges_says_where_they_are(
    copied, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is installed, and where the variable leads nowhere, it is named."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    if variable:
        monkeypatch.setenv("SD1_GOLDEN", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"clip_merges.*: set SD1_GOLDEN to the folder"):
        copied.read_merges()
