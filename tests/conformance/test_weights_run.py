"""Judging on one's own weights: `run --weights`."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance import cli
from conformance.case import select_cases
from conformance.checkpoints import cases_on, file_variant
from conformance.export import write_checkpoint
from conformance.traces import have_oracle
from conformance.variants import parse_variant

NEEDS_ORACLE = pytest.mark.skipif(not have_oracle(), reason="goldens are recorded by the oracle")
WRITTEN = ("a.safetensors", "half.ckpt", "brain")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache that the tests share: goldens are recorded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def main(capsys, monkeypatch, cache: Path):
    """Run a command and return its exit code, output and errors."""
    monkeypatch.setenv("SD1_CACHE", str(cache))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def nudged(source: Path, to: Path) -> Path:
    """Copy a safetensors file, one bit of one weight changed."""
    tensors = load_file(source)
    key = "model.diffusion_model.out.2.bias"
    tensors[key] = np.nextafter(tensors[key], np.float32(np.inf))
    save_file(tensors, to)
    return to


BASE = ("--scenario", "base", "--component", "text_encoder")


@NEEDS_ORACLE
def test_run_on_every_layout(main, files: Path, tmp_path: Path) -> None:
    """Goldens are recorded once for the values, whatever file they come from, and then reused."""
    main("weights", "convert", files / "a.safetensors", "--layout", "diffusers", "--out",
         tmp_path / "folder")  # fmt: skip
    recorded = []
    for path in (*(files / name for name in WRITTEN), tmp_path / "folder"):
        out = tmp_path / "report"
        code, told, err = main("run", "--weights", path, *BASE, "--out", out)
        assert (code, err) == (0, "")
        recorded.append("recorded from the oracle" in told)
        summary = json.loads((out / "summary.json").read_text())
        assert summary["verdict"] == "conformant"
        assert summary["counts"]["pass"] == 2
        assert summary["weights"]["path"] == str(path)
        assert f"sha256 {summary['weights']['sha256'][:12]}" in summary["scope"]
        assert summary["options"] == ["--weights", str(path)]
        assert summary["stamps"] == []
    assert recorded == [True, False, False, False]  # the recipe's values fit 8 bits


@NEEDS_ORACLE
def test_run_without_a_cache(main, files: Path, tmp_path: Path, monkeypatch) -> None:
    """Nothing is kept, and it works."""
    monkeypatch.setenv("SD1_CACHE", "")
    path = files / "a.safetensors"
    code, told, _ = main("run", "--weights", path, *BASE, "--mode", "trace", "--out", tmp_path)
    assert (code, "recorded from the oracle" in told) == (0, True)


@NEEDS_ORACLE
def test_more_arithmetics_are_recorded_when_asked_for(main, files: Path, tmp_path: Path) -> None:
    """What is kept has the noise of what was asked before; more is added."""
    words = ("run", "--weights", files / "brain", *BASE, "--mode", "trace", "--out", tmp_path)
    assert main(*words)[0] == 0
    code, told, _ = main(*words, "--dtype", "bfloat16")
    assert (code, "recorded from the oracle" in told) == (0, True)
    assert "recorded from the oracle" not in main(*words, "--dtype", "float32,bfloat16")[1]


@NEEDS_ORACLE
def test_run_in_several_processes(main, files: Path, tmp_path: Path) -> None:
    """Workers open the file themselves."""
    out = tmp_path / "report"
    words = ("-k", "text_encoder and (base or empty)", "-n", "2", "--out", out)
    code, _, _ = main("run", "--weights", files / "a.safetensors", *words)
    assert code == 0
    assert json.loads((out / "summary.json").read_text())["counts"]["pass"] == 4


WRONG_PORT = '''
from conformance.adapters.sd1_impl import port as make


class Wrong:
    """sd1_impl, but for one layer of the text encoder."""

    def __init__(self):
        self.own = make()

    def hello(self):
        return self.own.hello()

    def load(self, component, variant, weights, arithmetic, device):
        loaded = self.own.load(component, variant, weights, arithmetic, device)
        loaded.module.text_model.encoder.layers[1].layer_norm1.eps = 1e-3
        return loaded
'''


@NEEDS_ORACLE
def test_a_wrong_port_fails_on_ones_own_weights(main, files, tmp_path, monkeypatch) -> None:
    """The first wrong layer is named, and the command that runs it again has the weights."""
    (tmp_path / "wrong.py").write_text(WRONG_PORT)
    monkeypatch.chdir(tmp_path)
    path = files / "a.safetensors"
    code, told, _ = main("run", "wrong.py:Wrong", "--weights", path, *BASE, "--out", "report")
    assert code == 1
    summary = json.loads(Path("report/summary.json").read_text())
    first = summary["first_divergence"]
    assert first["probe"] == "text_model.encoder.layers.1.layer_norm1"
    assert f"--weights {path}" in told
    code, _, err = main(
        "run", "wrong.py:Wrong", "--weights", nudged(path, tmp_path / "b.safetensors"), *BASE,
        "--out", "report", "--resume",
    )  # fmt: skip
    assert code == 2
    assert "cannot resume report, its run is another: scope " in err


def test_bare_clip_is_judged_alone(main, files: Path, tmp_path: Path) -> None:
    """Of a file with one network, only its cases are selected."""
    found = load_file(files / "a.safetensors")
    start = "cond_stage_model.transformer."
    own = {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}
    save_file(own, tmp_path / "clip.safetensors")
    variant = file_variant(tmp_path / "clip.safetensors", tmp_path)
    assert (variant.size, variant.networks, variant.layout) == ("tiny", ("text_encoder",), "clip")
    assert variant.offers("text_encoder")
    assert not any(map(variant.offers, ("unet", "vae_decoder", "pipeline/txt2img")))
    words = ("run", "--weights", tmp_path / "clip.safetensors", "--component", "unet")
    code, _, err = main(*words)
    assert code == 2
    assert "it has text_encoder of size tiny" in err


def test_networks_of_an_inpainting_file(tmp_path: Path) -> None:
    """Its UNet and pipeline have a size of their own, the networks around it the plain one."""
    write_checkpoint(parse_variant("tiny-inpaint"), "compvis", "float32", tmp_path / "a.ckpt")
    variant = file_variant(tmp_path / "a.ckpt", tmp_path)
    selection = select_cases(variants=["tiny*"], scenario_names=["base"])
    found = {case.component: case for case in cases_on(variant, selection)}
    named = {name: case.variant.name for name, case in found.items() if case.variant.name != "-"}
    assert named == {
        "text_encoder": "tiny",
        "unet": "tiny-inpaint",
        "vae_encoder": "tiny",
        "vae_decoder": "tiny",
        "pipeline/inpaint": "tiny-inpaint",
    }
    assert found["unet"].weights()["conv_in.weight"].shape == (32, 9, 3, 3)
    assert len(found["vae_decoder"].weights()) == len(parse_variant("tiny").weights("vae_decoder"))


def test_same_values_have_the_same_digest(files: Path, tmp_path: Path) -> None:
    """Neither layout nor container matters; one bit of one weight does."""
    write_checkpoint(parse_variant("tiny"), "diffusers", "float16", tmp_path / "folder")
    one = file_variant(files / "half.ckpt", tmp_path)
    other = file_variant(tmp_path / "folder", tmp_path)
    assert (one.digest, one.layout) == (other.digest, "compvis")
    path = nudged(files / "a.safetensors", tmp_path / "b.safetensors")
    assert file_variant(path, tmp_path).digest != one.digest


def test_weights_are_the_files(files: Path, tmp_path: Path) -> None:
    """A port is handed the file's values, as float32, by canonical name."""
    variant = file_variant(files / "half.ckpt", tmp_path)
    recipe = parse_variant("tiny")
    for component in ("unet", "vae_decoder", "text_encoder", "pipeline/txt2img"):
        own, drawn = variant.weights(component), recipe.weights(component)
        assert list(own) == list(drawn)
        name = list(own)[5]
        assert own[name].dtype == np.float32
        assert np.array_equal(own[name], drawn[name].astype(np.float16).astype(np.float32))
    exported = variant.weights("unet").export(tmp_path / "unet")
    stored = load_file(exported / "diffusion_pytorch_model.safetensors")
    assert np.array_equal(stored["conv_in.weight"], variant.weights("unet")["conv_in.weight"])


MISTAKES = {
    "size": (["--variant", "odd"], "are of size tiny; leave --variant out"),
    "witness": (["--witness", "v1-4"], "needs your own weights (--weights PATH) and the published"),
    "witness-size": (
        ["--witness", "v1-4", "--witness-inputs", "."],
        "slices are published of size sd1, the weights of",
    ),
    "no-inputs": (["--witness-inputs", "x"], "--witness-inputs holds the noise of published slic"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_of_run(main, files: Path, tmp_path: Path, words, message) -> None:
    """One line, exit code 2."""
    path = files / "a.safetensors"
    code, _, err = main("run", "--weights", path, *BASE, "--out", tmp_path / "r", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize("option", [["--ema"], ["--files", "fp16"]], ids=["ema", "files"])
def test_a_choice_without_weights(main, option) -> None:
    """What chooses among weights needs some."""
    code, _, err = main("run", *BASE, *option)
    assert code == 2
    assert f"{option[0]} chooses among the weights of a path" in err


def test_config_that_contradicts_the_shapes(main, files: Path, tmp_path: Path) -> None:
    """A folder whose config has other heads than the size of its shapes is refused."""
    main("weights", "convert", files / "brain", "--layout", "diffusers", "--out", tmp_path / "f")
    path = tmp_path / "f" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 4}))
    code, _, err = main("run", "--weights", tmp_path / "f", *BASE)
    assert code == 2
    assert f"{path}: num_heads is (4, 4, 4, 4), but of size tiny, whose shapes the weights" in err


def test_what_cannot_be_written_is_found_first(main, files: Path, tmp_path, monkeypatch) -> None:
    """Before the oracle is asked for anything: the report's folder, and the cache's."""
    (tmp_path / "file").write_text("mine")
    path = files / "a.safetensors"
    code, told, err = main("run", "--weights", path, *BASE, "--out", tmp_path / "file")
    assert (code, "recorded" in told) == (2, False)
    assert "cannot write the report to" in err
    monkeypatch.setenv("SD1_CACHE", str(tmp_path / "file"))
    code, told, err = main("run", "--weights", path, *BASE, "--out", tmp_path / "report")
    assert (code, told) == (2, "")
    assert f"cannot keep goldens in {tmp_path / 'file' / 'sd1-goldens'}" in err
