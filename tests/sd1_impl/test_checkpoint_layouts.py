"""Saving a pipeline in a layout, and loading it again, whole or one network of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd1_impl import (
    SD_V1_PNDM,
    CheckpointError,
    DDIMConfig,
    DDIMScheduler,
    Inpaint,
    PNDMScheduler,
    Text2Image,
    load_network,
    load_pipeline,
    save_pipeline,
    synthetic_pipeline,
)

NETWORKS = ("text_encoder", "unet", "vae")
PLACES = {"diffusers": "folder", "compvis": "a.safetensors", "compvis-ckpt": "a.ckpt"}


def save(pipeline: Text2Image, folder: Path, place: str, dtype: torch.dtype | None = None) -> Path:
    """Save a pipeline; return where."""
    path = folder / PLACES[place]
    save_pipeline(pipeline, path, place.removesuffix("-ckpt"), dtype)
    return path


def states(pipeline: Text2Image) -> dict[str, torch.Tensor]:
    """Return all weights by network and name."""
    return {
        f"{name}.{key}": tensor
        for name in NETWORKS
        for key, tensor in getattr(pipeline, name).state_dict().items()
    }


def assert_same(got: Text2Image, wanted: Text2Image) -> None:
    """Compare every weight, dtype included."""
    ours, theirs = states(got), states(wanted)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_saved_and_loaded(tiny: Text2Image, tmp_path: Path, place: str, dtype: torch.dtype):
    """In the dtype of the files nothing changes; networks and scheduler are what they were."""
    path = save(tiny, tmp_path, place, dtype)
    pipeline = load_pipeline(path, dtype=None)
    rounded = synthetic_pipeline("tiny", dtype=dtype)
    assert_same(pipeline, rounded)
    for name in NETWORKS:
        assert getattr(pipeline, name).config == getattr(tiny, name).config
    assert pipeline.scheduler.config == SD_V1_PNDM


@pytest.mark.parametrize("place", PLACES)
def test_odd_widths_and_inpainting(tmp_path: Path, place: str):
    """Sizes of which a single file says nothing are recognised, nine channels too."""
    for size, kind in (("odd", Text2Image), ("tiny-inpaint", Inpaint)):
        pipeline = synthetic_pipeline(size, pipeline=kind)
        found = load_pipeline(save(pipeline, tmp_path / size, place), pipeline=kind)
        assert_same(found, pipeline)
        assert found.unet.config == pipeline.unet.config


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("place", PLACES)
def test_one_network(tiny: Text2Image, tmp_path: Path, place: str, name: str):
    """It is taken from the others, and computes in the dtype asked for."""
    path = save(tiny, tmp_path, place)
    network = load_network(name, path, dtype=torch.float64)
    wanted = getattr(tiny, name)
    assert type(network) is type(wanted)
    for key, tensor in wanted.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor.double())


def test_a_network_that_is_not_there(tiny: Text2Image, tmp_path: Path):
    """A text encoder alone is no pipeline, and has no UNet."""
    save(tiny, tmp_path, "diffusers")
    path = tmp_path / "folder" / "text_encoder" / "model.safetensors"
    network = load_network("text_encoder", path)
    assert torch.equal(
        network.text_model.final_layer_norm.weight,
        tiny.text_encoder.text_model.final_layer_norm.weight,
    )
    with pytest.raises(CheckpointError, match="layout clip and has no unet, only text_encoder"):
        load_network("unet", path)
    with pytest.raises(CheckpointError, match="layout clip and has no"):
        load_pipeline(path)


def test_the_averaged_weights(tiny: Text2Image, tmp_path: Path):
    """They are the UNet's if asked for; by default the others are, as in the original code."""
    path = save(tiny, tmp_path, "compvis")
    tensors = load_file(path)
    start = "model.diffusion_model."
    for key in [key for key in tensors if key.startswith(start)]:
        flat = key.removeprefix("model.").replace(".", "")
        tensors[f"model_ema.{flat}"] = tensors[key] * 0.5
    save_file(tensors, path)
    assert_same(load_pipeline(path), tiny)
    averaged = load_pipeline(path, ema=True)
    for key, tensor in tiny.unet.state_dict().items():
        assert torch.equal(averaged.unet.state_dict()[key], tensor * 0.5)
    assert torch.equal(averaged.vae.quant_conv.weight, tiny.vae.quant_conv.weight)


def test_other_schedulers_are_kept_in_a_folder(tiny: Text2Image, tmp_path: Path):
    """Class and numbers come back."""
    config = DDIMConfig(set_alpha_to_one=True, timestep_spacing="trailing")
    pipeline = Text2Image(
        tiny.tokenizer, tiny.text_encoder, tiny.unet, tiny.vae, DDIMScheduler(config)
    )
    found = load_pipeline(save(pipeline, tmp_path, "diffusers")).scheduler
    assert (type(found), found.config) == (DDIMScheduler, config)


def test_another_noise_schedule_has_no_place_in_a_file(tiny: Text2Image, tmp_path: Path):
    """A single file's tables are SD v1's: nothing is written."""
    scheduler = PNDMScheduler(replace(SD_V1_PNDM, beta_schedule="linear"))
    pipeline = Text2Image(tiny.tokenizer, tiny.text_encoder, tiny.unet, tiny.vae, scheduler)
    with pytest.raises(CheckpointError, match=r"noise schedule of Stable Diffusion v1.*'linear'"):
        save(pipeline, tmp_path, "compvis")
    assert not list(tmp_path.iterdir())


def test_unknown_layout_and_dtype(tiny: Text2Image, tmp_path: Path):
    """Both are named with what there is."""
    with pytest.raises(CheckpointError, match="layout is 'onnx', expected diffusers or compvis"):
        save_pipeline(tiny, tmp_path / "x", "onnx")
    with pytest.raises(CheckpointError, match=r"dtype is torch\.int8, expected one of float32"):
        save_pipeline(tiny, tmp_path / "x", dtype=torch.int8)
    assert not list(tmp_path.iterdir())


def test_a_value_that_does_not_fit(tiny: Text2Image, tmp_path: Path):
    """It is refused by name, and the file that was there stays."""
    path = save(tiny, tmp_path, "compvis")
    before = path.read_bytes()
    vae = load_network("vae", path)
    with torch.no_grad():
        vae.quant_conv.bias[2] = 1e5
    pipeline = Text2Image(tiny.tokenizer, tiny.text_encoder, tiny.unet, vae, tiny.scheduler)
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias has values up to 100000, which"):
        save_pipeline(pipeline, path, "compvis", torch.float16)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saving_over_the_mapped_file(tiny: Text2Image, tmp_path: Path):
    """Weights that are mapped from a file stay when other weights are saved in its place."""
    path = save(tiny, tmp_path, "compvis")
    mapped = load_pipeline(path, dtype=None)
    other = synthetic_pipeline("tiny", seed=1)
    save_pipeline(other, path, "compvis")
    assert_same(mapped, tiny)
    assert_same(load_pipeline(path), other)
    save_pipeline(load_pipeline(path, dtype=None), path, "compvis")  # from itself onto itself
    assert_same(load_pipeline(path), other)


def test_writing_into_weights_leaves_the_file(tiny: Text2Image, tmp_path: Path):
    """The map is private: training does not change the checkpoint."""
    path = save(tiny, tmp_path, "compvis")
    before = path.read_bytes()
    network = load_network("unet", path, dtype=None)
    with torch.no_grad():
        network.conv_in.weight.zero_()
    assert path.read_bytes() == before


def test_nothing_is_half_loaded(tiny: Text2Image, tmp_path: Path, monkeypatch):
    """If the last network is wrong, no weight of the first has been taken."""
    save(tiny, tmp_path, "diffusers")
    taken = []
    monkeypatch.setattr(
        torch.nn.Module, "load_state_dict", lambda self, *_, **__: taken.append(type(self))
    )
    path = tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["quant_conv.bias"][3] = torch.nan
    shutil.copy(path, tmp_path / "kept")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias holds 1 values .* at \(3,\)"):
        load_pipeline(tmp_path / "folder")
    assert not taken
