"""Files of weights on the command line: inspected and converted."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance import cli
from sd1_weights import names

WRITTEN = {
    "a.safetensors": ("compvis", "float32"),
    "half.ckpt": ("compvis", "float16"),
    "brain": ("diffusers", "bfloat16"),
}


@pytest.fixture
def main(capsys):
    """Run a command and return its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def changed(source: Path, to: Path, change) -> Path:
    """Copy a safetensors file, its tensors changed."""
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, to)
    return to


# --- inspect ------------------------------------------------------------------------------------

COUNTS = ("8,605,284 parameters in 686 tensors", "5,252,487 parameters in 248", "3,317,120")


@pytest.mark.parametrize("name", WRITTEN)
def test_inspect(main, files: Path, name: str) -> None:
    """Layout, size, counts and dtypes of a whole checkpoint; nothing is wrong with it."""
    layout, dtype = WRITTEN[name]
    code, out, err = main("weights", "inspect", files / name)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [f"{files / name}: layout {layout}", "ema          none"]
    for network, count in zip(("unet", "vae", "text_encoder"), COUNTS, strict=True):
        (line,) = (line for line in lines if line.startswith(f"{network} "))
        assert f"tiny: {count}" in line
        assert line.endswith(f", {dtype}")
    assert ("scheduler    PNDMScheduler" in lines) == (layout == "diffusers")


def test_inspect_names_what_is_wrong(main, files: Path, tmp_path: Path) -> None:
    """Missing and unexpected keys, averaged weights, mixed dtypes: exit code 1."""

    def spoil(tensors) -> None:
        del tensors["model.diffusion_model.out.2.bias"]
        tensors["first_stage_model.loss.logvar"] = np.zeros(1, np.float32)
        key = "model.diffusion_model.input_blocks.0.0.weight"
        tensors[key] = tensors[key].astype(np.float16)
        tensors["model_ema.diffusion_modelout2bias"] = np.zeros(4, np.float32)

    path = changed(files / "a.safetensors", tmp_path / "spoilt.safetensors", spoil)
    code, out, _ = main("weights", "inspect", path)
    assert code == 1
    assert "1 averaged weights of the UNet: left alone; --ema takes them" in out
    (line,) = (line for line in out.splitlines() if line.startswith("unet "))
    assert line.startswith("unet         tiny: 8,605,280 parameters in 685 tensors, ")
    assert set(line.split(", ")[-2:]) == {"float16 (1)", "float32 (684)"}
    assert "1 missing (model.diffusion_model.out.2.bias)" in out
    assert "1 unexpected (first_stage_model.loss.logvar)" in out


def test_inspect_of_a_missing_network(main, files: Path, tmp_path: Path) -> None:
    """A single file without its VAE is told so."""

    def drop(tensors) -> None:
        for key in [key for key in tensors if key.startswith("first_stage_model.")]:
            del tensors[key]

    path = changed(files / "a.safetensors", tmp_path / "no-vae.safetensors", drop)
    code, out, _ = main("weights", "inspect", path)
    assert code == 1
    assert "vae          missing" in out.splitlines()


# --- convert ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_round_trip_is_bit_exact(main, files: Path, tmp_path: Path, name: str) -> None:
    """Through every layout and back, no bit of any tensor changes."""
    steps = [
        ("diffusers", "folder"),
        ("compvis", "b.ckpt"),
        ("compvis", "c.safetensors"),
        ("diffusers", "last"),
    ]
    path = files / name
    for layout, to in steps:
        code, out, _ = main("weights", "convert", path, "--layout", layout, "--out", tmp_path / to)
        assert (code, f"{tmp_path / to}: layout {layout}, from" in out) == (0, True)
        path = tmp_path / to
    first, last = digests(tmp_path / "folder"), digests(path)
    assert first == last
    if name == "brain":
        assert first == digests(files / name)
    if name == "a.safetensors":
        assert digests(tmp_path / "c.safetensors") == digests(files / name)


def digests(path: Path) -> dict[str, bytes]:
    """Return what follows the header of every safetensors file, by name."""
    found = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        raw = file.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__", None)
        found[file.name if path.is_dir() else ""] = (
            json.dumps(header, sort_keys=True).encode() + raw[8 + size :]
        )
    return found


def test_convert_to_another_dtype(main, files: Path, tmp_path: Path) -> None:
    """Values are rounded once; the file is half as large."""
    out = tmp_path / "b.safetensors"
    assert main("weights", "convert", files / "a.safetensors", "--layout", "compvis",
                "--dtype", "float16", "--out", out)[0] == 0  # fmt: skip
    wide, narrow = load_file(files / "a.safetensors"), load_file(out)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert np.array_equal(narrow[key], wide[key].astype(np.float16))
    assert narrow["alphas_cumprod"].dtype == np.float32


def test_convert_onto_itself(main, files: Path, tmp_path: Path) -> None:
    """The file that is read is replaced only when the new one is whole."""
    path = tmp_path / "a.safetensors"
    path.write_bytes((files / "a.safetensors").read_bytes())
    before = digests(path)
    assert main("weights", "convert", path, "--layout", "compvis", "--out", path)[0] == 0
    assert digests(path) == before


def test_convert_takes_the_averaged_weights(main, files: Path, tmp_path: Path) -> None:
    """With --ema; without, it says that they are left out."""

    def add(tensors) -> None:
        start = names.prefix("unet")
        for key in [key for key in tensors if key.startswith(start)]:
            flat = "diffusion_model" + key.removeprefix(start).replace(".", "")
            tensors[f"model_ema.{flat}"] = tensors[key] * np.float32(0.5)

    path = changed(files / "a.safetensors", tmp_path / "both.safetensors", add)
    for option in ([], ["--ema"]):
        out = tmp_path / "out"
        code, told, _ = main(
            "weights", "convert", path, "--layout", "diffusers", "--out", out, *option
        )
        assert code == 0
        assert ("left out" in told) == (not option)
        found = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
        plain = load_file(files / "a.safetensors")["model.diffusion_model.input_blocks.0.0.weight"]
        assert np.array_equal(found, plain * np.float32(0.5 if option else 1))


def test_convert_keeps_the_scheduler(main, files: Path, tmp_path: Path) -> None:
    """A folder's scheduler goes along; a single file has no place for another noise schedule."""
    main("weights", "convert", files / "brain", "--layout", "diffusers", "--out", tmp_path / "f")
    path = tmp_path / "f" / "scheduler" / "scheduler_config.json"
    options = json.loads(path.read_text()) | {"_class_name": "DDIMScheduler"}
    path.write_text(json.dumps(options))
    main("weights", "convert", tmp_path / "f", "--layout", "diffusers", "--out", tmp_path / "g")
    assert json.loads((tmp_path / "g" / path.relative_to(tmp_path / "f")).read_text()) == options
    path.write_text(json.dumps(options | {"beta_schedule": "linear"}))
    out = tmp_path / "x.safetensors"
    code, _, err = main("weights", "convert", tmp_path / "f", "--layout", "compvis", "--out", out)
    assert code == 2
    assert "beta_schedule is 'linear'" in err
    assert not out.exists()


def test_convert_refuses_what_a_single_file_cannot_say(main, files, tmp_path: Path) -> None:
    """Another number of heads is in no shape: the layout would lose it."""
    main("weights", "convert", files / "brain", "--layout", "diffusers", "--out", tmp_path / "f")
    path = tmp_path / "f" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 4}))
    out = tmp_path / "x.safetensors"
    code, _, err = main("weights", "convert", tmp_path / "f", "--layout", "compvis", "--out", out)
    assert code == 2
    assert "num_heads is (4, 4, 4, 4), in size tiny it is [8, 8, 8, 8]" in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "compvis", "--out", "x.bin"], "ends in .safetensors or .ckpt"),
        (["--layout", "diffusers", "--out", "x", "--ema"], "has no averaged weights (model_ema.*)"),
        (["--layout", "diffusers", "--out", "x", "--files", "fp16"], "there are no fp16 files to"),
    ],
    ids=["ending", "ema", "files"],
)
def test_mistakes_of_convert(main, files: Path, tmp_path, monkeypatch, words, message) -> None:
    """One line, exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = main("weights", "convert", files / "a.safetensors", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["model.fp16.safetensors", "x.bin", "model.safetensors.index.json"]
)
def test_other_files_of_weights_are_in_the_way(main, files, tmp_path: Path, name: str) -> None:
    """A loader might take them instead of what is written: nothing is."""
    out = tmp_path / "out"
    (out / "text_encoder").mkdir(parents=True)
    (out / "text_encoder" / name).write_text("mine")
    code, _, err = main(
        "weights", "convert", files / "a.safetensors", "--layout", "diffusers", "--out", out
    )
    assert code == 2
    assert f"{out / 'text_encoder'}: it has 1 other files of weights ({name})" in err
    assert [path.name for path in out.rglob("*") if path.is_file()] == [name]


def test_a_folder_is_not_named_as_a_file(main, tmp_path: Path) -> None:
    """The default layout with the ending of the other is a slip."""
    out = tmp_path / "x.safetensors"
    code, _, err = main("weights", "export", "--variant", "tiny", "--out", out)
    assert code == 2
    assert "layout diffusers is a folder, whose name does not end in .safetensors" in err
    assert not out.exists()


def test_files_that_are_something_else(main, files: Path, tmp_path: Path) -> None:
    """Each is named for what it is, with what to do."""
    whole = (files / "a.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "begun.safetensors").write_bytes(whole[:5000])
    (tmp_path / "note.ckpt").write_text("not weights at all")
    save_file({"lora_unet_down.alpha": np.zeros(1)}, tmp_path / "lora.safetensors")
    shards = tmp_path / "shards"
    for network in ("unet", "vae", "text_encoder"):
        (shards / network).mkdir(parents=True)
        (shards / network / "config.json").write_text("{}")
        (shards / network / "model.safetensors.index.json").write_text("{}")
    for name, message in {
        "half.safetensors": "is cut off: its tensors take",
        "begun.safetensors": "is cut off: its header takes",
        "note.ckpt": "is neither safetensors nor a torch archive",
        "lora.safetensors": "is a LoRA file",
        "shards": "weights in several files (shards) are not read",
    }.items():
        code, out, err = main("weights", "inspect", tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
