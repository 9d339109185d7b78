"""`weights export`: a diffusers folder that holds what the recipe says, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from conformance import cli, export
from conformance.errors import UsageError
from conformance.variants import Weights, parse_variant

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the tiny variant once."""
    out = tmp_path_factory.mktemp("weights")
    assert cli.main(["weights", "export", "--variant", "tiny", "--out", str(out)]) == 0
    return out / "unet"


def test_tensors_are_the_recipe(exported: Path) -> None:
    """Every tensor of the file equals the recipe's, bit for bit, and no other is there."""
    weights = parse_variant("tiny").weights("unet")
    stored = load_file(exported / FILE)
    assert set(stored) == set(weights)
    for name, array in weights.items():
        assert stored[name].dtype == np.float32
        assert np.array_equal(stored[name], array), name


def test_file_layout(exported: Path) -> None:
    """The folder has two files; the tensors begin at a multiple of 8, as torch wants them."""
    assert sorted(p.name for p in exported.iterdir()) == ["config.json", FILE]
    assert int.from_bytes((exported / FILE).open("rb").read(8), "little") % 8 == 0
    assert (exported / FILE).stat().st_mode & 0o777 == 0o644
    with safe_open(exported / FILE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "sd1-conformance": "tiny, seed 1"}


def test_config(exported: Path) -> None:
    """The configuration is SD v1's, with the sizes of the variant."""
    config = json.loads((exported / "config.json").read_text("utf-8"))
    expected = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "block_out_channels": [32, 64, 128, 128],
        "cross_attention_dim": 64,
        "norm_num_groups": 8,
        "attention_head_dim": [8, 8, 8, 8],
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    assert {key: config[key] for key in expected} == expected


def test_printed(exported: Path, tmp_path: Path, capsys) -> None:
    """The command says where, how many parameters, and of which variant."""
    assert cli.main(["weights", "export", "--variant", "tiny-dense", "--out", str(tmp_path)]) == 0
    expected = f"{tmp_path / 'unet'}: 8,605,284 parameters, float32, tiny-dense\n"
    assert capsys.readouterr().out == expected
    first = load_file(tmp_path / "unet" / FILE)["conv_in.weight"]
    assert not np.array_equal(first, load_file(exported / FILE)["conv_in.weight"])


def test_unknown_variant(tmp_path: Path, capsys) -> None:
    """An unknown variant is bad usage, and nothing is written."""
    code = cli.main(["weights", "export", "--variant", "tinny", "--out", str(tmp_path / "w")])
    assert code == 2
    assert capsys.readouterr().err.startswith("sd1-conformance: unknown variant 'tinny': choose")
    assert not (tmp_path / "w").exists()


def test_interrupted(tmp_path: Path, monkeypatch) -> None:
    """An export that is broken off leaves the file that was there, and no other."""
    (tmp_path / FILE).write_text("whole", "utf-8")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Weights, "__getitem__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parse_variant("tiny").weights("unet").export(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", FILE]
    assert (tmp_path / FILE).read_text("utf-8") == "whole"


def test_component_without_configuration() -> None:
    """A component that diffusers does not configure is bad usage."""
    with pytest.raises(UsageError, match="component 'tokenizer' has no diffusers configuration"):
        export.diffusers_config("tokenizer", {})


@pytest.mark.parametrize(
    ("variant", "count"),
    [("tiny", 8_605_284), ("sd1", 859_520_964), ("sd1-inpaint", 859_535_364)],
)
def test_parameter_count(variant: str, count: int) -> None:
    """The full sizes have the published numbers of parameters."""
    assert parse_variant(variant).weights("unet").parameter_count() == count


def test_nothing_is_drawn_before_it_is_read(monkeypatch) -> None:
    """Weights of 860 million parameters cost nothing until one is read."""
    monkeypatch.setattr("conformance.recipe.words", None)
    weights = parse_variant("sd1").weights("unet")
    assert weights.recipes["conv_in.weight"].shape == (320, 4, 3, 3)
    assert len(weights) == len(list(weights)) == 686
