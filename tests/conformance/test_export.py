"""`weights export`: a diffusers folder that holds what the recipe says, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from conformance import cli
from conformance.case import find_case
from conformance.errors import UsageError
from conformance.golden_files import load_golden
from conformance.recipe import TensorRecipe
from conformance.spec import CHECKPOINT_FOLDERS
from conformance.variants import parse_variant
from sd1_weights.configs import published_config

FILE = "diffusion_pytorch_model.safetensors"
FILES = {"text_encoder": "model.safetensors", "unet": FILE, "vae": FILE}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the tiny variant once."""
    out = tmp_path_factory.mktemp("weights")
    assert cli.main(["weights", "export", "--variant", "tiny", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("folder", "components"),
    [
        ("text_encoder", ["text_encoder"]),
        ("unet", ["unet"]),
        ("vae", ["vae_encoder", "vae_decoder"]),
    ],
    ids=["text_encoder", "unet", "vae"],
)
def test_tensors_are_the_recipe(exported: Path, folder: str, components: list[str]) -> None:
    """Every tensor of a file equals the recipe's, bit for bit, and no other is there."""
    stored = load_file(exported / folder / FILES[folder])
    weights = [parse_variant("tiny").weights(component) for component in components]
    assert sorted(stored) == sorted(name for half in weights for name in half)
    for half in weights:
        for name, array in half.items():
            assert stored[name].dtype == np.float32
            assert np.array_equal(stored[name], array), name


def test_layout(exported: Path) -> None:
    """All that diffusers' pipelines load is there, and nothing else; the VAE's halves share one."""
    names = sorted(p.name for p in exported.iterdir())
    assert names == ["model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]


def test_a_pipeline_is_given_the_whole_checkpoint(exported: Path, tmp_path: Path) -> None:
    """Its weights are named folder/key, and are written as the same three folders."""
    weights = parse_variant("tiny").weights("pipeline/txt2img")
    for folder, file in FILES.items():
        stored = load_file(exported / folder / file)
        part = weights.part(folder)
        assert list(part) == [n.partition("/")[2] for n in weights if n.startswith(f"{folder}/")]
        assert sorted(part) == sorted(stored)
        name = next(iter(part))
        assert np.array_equal(part[name], stored[name])
        assert np.array_equal(weights[f"{folder}/{name}"], stored[name])
    assert weights.export(tmp_path / "all") == tmp_path / "all"
    for folder, file in FILES.items():
        written = (tmp_path / "all" / folder / file).read_bytes()
        assert written == (exported / folder / file).read_bytes()


@pytest.mark.parametrize("folder", FILES)
def test_file_layout(exported: Path, folder: str) -> None:
    """A folder has two files; the tensors begin at a multiple of 8, as torch wants them."""
    path = exported / folder / FILES[folder]
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", path.name]
    assert int.from_bytes(path.open("rb").read(8), "little") % 8 == 0
    assert path.stat().st_mode & 0o777 == 0o644
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {
            "format": "pt",
            "sd1-conformance": "weights of the recipe, seed 1",
        }


@pytest.mark.parametrize("half", ["vae_encoder", "vae_decoder"])
def test_either_half_writes_both(exported: Path, tmp_path: Path, half: str) -> None:
    """A port that exports one half of the VAE can load the folder with any loader."""
    folder = parse_variant("tiny").weights(half).export(tmp_path / "v")
    assert (folder / FILE).read_bytes() == (exported / "vae" / FILE).read_bytes()


def test_text_encoder_loads_in_transformers(exported: Path) -> None:
    """The folder is one of transformers' own: every key fits, and it gives the golden's numbers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, found = transformers.CLIPTextModel.from_pretrained(
        exported / "text_encoder", output_loading_info=True, local_files_only=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    case = find_case("text_encoder/tiny/short")
    with torch.no_grad():
        answer = model(torch.tensor(case.inputs()["input_ids"]))
    for name, truth in load_golden(case).outputs.items():
        assert np.abs(answer[name].numpy() - truth).max() < 1e-4, name


def test_vae_loads_in_diffusers(exported: Path) -> None:
    """The folder is one of diffusers' own: every key fits, and it gives the golden's numbers."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    vae, found = diffusers.AutoencoderKL.from_pretrained(
        exported / "vae", output_loading_info=True, local_files_only=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    assert vae.config.scaling_factor == 0.18215
    case = find_case("vae_decoder/tiny/base")
    with torch.no_grad():
        image = vae.decode(torch.tensor(case.inputs()["latents"]) / 0.18215).sample
    assert np.abs(image.numpy() - load_golden(case).outputs["image"]).max() < 1e-3


def test_config(exported: Path) -> None:
    """The configuration is SD v1's, with the sizes of the variant."""
    config = json.loads((exported / "unet" / "config.json").read_text("utf-8"))
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


PUBLISHED = {
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "vae_decoder": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
}


@pytest.mark.parametrize("component", PUBLISHED)
def test_published_config(component: str) -> None:
    """The full size is configured as the published checkpoint is."""
    architecture = parse_variant("sd1").architecture(component)
    config = published_config(CHECKPOINT_FOLDERS[component], architecture)
    assert {key: config[key] for key in PUBLISHED[component]} == PUBLISHED[component]


def test_printed(exported: Path, tmp_path: Path, capsys) -> None:
    """The command says where, how many parameters, and of which variant."""
    assert cli.main(["weights", "export", "--variant", "tiny-dense", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'text_encoder'}: 3,317,120 parameters, float32, tiny-dense",
        f"{tmp_path / 'unet'}: 8,605,284 parameters, float32, tiny-dense",
        f"{tmp_path / 'vae'}: 5,252,487 parameters, float32, tiny-dense",
    ]
    first = load_file(tmp_path / "unet" / FILE)["conv_in.weight"]
    assert not np.array_equal(first, load_file(exported / "unet" / FILE)["conv_in.weight"])


def test_inpainting_has_the_plain_networks_around_it(exported, tmp_path: Path, capsys) -> None:
    """Only the UNet differs in an inpainting checkpoint: the others are those of the plain size."""
    assert cli.main(["weights", "export", "--variant", "tiny-inpaint", "--out", str(tmp_path)]) == 0
    printed = [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["tiny", "tiny-inpaint", "tiny"]
    for folder in ("text_encoder", "vae"):
        stored = (tmp_path / folder / FILES[folder]).read_bytes()
        assert stored == (exported / folder / FILES[folder]).read_bytes()
    assert load_file(tmp_path / "unet" / FILE)["conv_in.weight"].shape == (32, 9, 3, 3)


@pytest.mark.parametrize("name", ["tinny", "-"])
def test_unknown_variant(tmp_path: Path, capsys, name: str) -> None:
    """An unknown variant is bad usage, and nothing is written; so is that of the tokenizer."""
    code = cli.main(["weights", "export", "--variant", name, "--out", str(tmp_path / "w")])
    assert code == 2
    assert capsys.readouterr().err.startswith(f"sd1-conformance: unknown variant '{name}': ")
    assert not (tmp_path / "w").exists()


def test_interrupted(tmp_path: Path, monkeypatch) -> None:
    """An export that is broken off leaves the file that was there, and no other."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / FILE).write_text("whole", "utf-8")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorRecipe, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parse_variant("tiny").weights("unet").export(tmp_path / "unet")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "unet",
        f"unet/{FILE}",
    ]
    assert (tmp_path / "unet" / FILE).read_text("utf-8") == "whole"


def test_component_without_weights(tmp_path: Path) -> None:
    """A component that has no weights cannot be exported: it is bad usage, and says so."""
    with pytest.raises(UsageError, match="component 'tokenizer' has no weights"):
        parse_variant("-").weights("tokenizer").export(tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("component", "variant", "count"),
    [
        ("unet", "tiny", 8_605_284),
        ("unet", "sd1", 859_520_964),
        ("unet", "sd1-inpaint", 859_535_364),
        ("text_encoder", "sd1", 123_060_480),
        ("vae_encoder", "sd1", 34_163_664),
        ("vae_decoder", "sd1", 49_490_199),
    ],
)
def test_parameter_count(component: str, variant: str, count: int) -> None:
    """The full sizes have the published numbers of parameters."""
    assert parse_variant(variant).weights(component).parameter_count() == count


def test_nothing_is_drawn_before_it_is_read(monkeypatch) -> None:
    """Weights of 860 million parameters cost nothing until one is read."""
    monkeypatch.setattr("conformance.recipe.words", None)
    weights = parse_variant("sd1").weights("unet")
    assert weights.recipes["conv_in.weight"].shape == (320, 4, 3, 3)
    assert len(weights) == len(list(weights)) == 686
