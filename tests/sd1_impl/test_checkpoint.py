"""Loading: the published files, today's, and every file that is none of them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd1_impl import (
    SD_V1_PNDM,
    SD_V1_TEXT_ENCODER,
    SD_V1_UNET,
    SD_V1_VAE,
    CheckpointError,
    PNDMScheduler,
    Text2Image,
    load_pipeline,
)
from sd1_impl.checkpoint_config import (
    read_scheduler,
    read_text_encoder_config,
    read_unet_config,
    read_vae_config,
)
from sd1_impl.schedulers import SCHEDULERS

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture
def folder(weights_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint, whose files a test may replace."""
    return shutil.copytree(weights_folder, tmp_path / "copy", copy_function=os.link)


def edit(path: Path, **changes: object) -> None:
    """Replace options of a JSON file; None takes one away."""
    given = json.loads(path.read_text()) | changes
    path.unlink()  # the original is linked to
    path.write_text(json.dumps({k: v for k, v in given.items() if v is not None}))


def edit_weights(path: Path, change: Callable[[dict], object]) -> None:
    """Change a file's weights."""
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def assert_same_weights(got: Text2Image, wanted: Text2Image) -> None:
    """Compare every weight of every network."""
    for name in WEIGHTS:
        ours, theirs = (getattr(pipeline, name).state_dict() for pipeline in (got, wanted))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def error_of(folder: Path) -> str:
    """Return what is said of a folder that cannot be loaded: one line."""
    with pytest.raises(CheckpointError) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_published_configs_are_sd_v1(published_configs: dict, tmp_path: Path):
    """The files of SD v1-5 say what `sd1_impl.config` says."""
    for name, config in published_configs.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(config))
    assert read_unet_config(tmp_path / "unet/config.json") == SD_V1_UNET
    assert read_vae_config(tmp_path / "vae/config.json") == SD_V1_VAE
    assert read_text_encoder_config(tmp_path / "text_encoder/config.json") == SD_V1_TEXT_ENCODER
    scheduler = read_scheduler(tmp_path / "scheduler/scheduler_config.json")
    assert isinstance(scheduler, PNDMScheduler)
    assert scheduler.config == SD_V1_PNDM


def test_the_published_layout_is_loaded(weights_folder: Path, tiny: Text2Image):
    """Old names are read as today's; every weight is there, on the CPU and in float32."""
    pipeline = load_pipeline(weights_folder)
    assert_same_weights(pipeline, tiny)
    assert pipeline.unet.config == tiny.unet.config
    assert pipeline.scheduler.config == SD_V1_PNDM


def test_weights_are_converted(weights_folder: Path, tiny: Text2Image):
    """To the dtype that is asked for, whatever the files have."""
    pipeline = load_pipeline(weights_folder, dtype=torch.float16)
    for name in WEIGHTS:
        wanted = getattr(tiny, name).state_dict()
        for key, tensor in getattr(pipeline, name).state_dict().items():
            assert torch.equal(tensor, wanted[key].half()), key


def test_what_diffusers_saves_today_is_loaded(weights_folder: Path, tiny, tmp_path: Path):
    """All of the options of today's config files are known, and no name has changed."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    for name, kind in {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "scheduler": diffusers.PNDMScheduler,
    }.items():
        kind.from_pretrained(weights_folder / name).save_pretrained(tmp_path / name)
    pipeline = load_pipeline(tmp_path)
    assert_same_weights(pipeline, tiny)
    assert pipeline.scheduler.config == SD_V1_PNDM


def test_what_the_suite_exports_is_loaded(tmp_path: Path):
    """`sd1-conformance weights export` writes the same layout."""
    cli = pytest.importorskip("conformance.cli")
    assert cli.main(["weights", "export", "--variant", "odd", "--out", str(tmp_path)]) == 0
    pipeline = load_pipeline(tmp_path)
    assert pipeline.unet.config.num_heads == (6, 4, 3, 4)
    assert pipeline.scheduler.config == SD_V1_PNDM
    wanted = load_file(tmp_path / WEIGHTS["unet"])
    assert all(torch.equal(t, wanted[k]) for k, t in pipeline.unet.state_dict().items())


@pytest.mark.parametrize("file", [*WEIGHTS.values(), "unet/config.json"])
def test_a_missing_file_is_named(folder: Path, file: str):
    """With what should be there."""
    (folder / file).unlink()
    assert error_of(folder).startswith(f"{folder / file} is missing: expected a folder in diff")


BROKEN = {
    "weights": (WEIGHTS["vae"], "not safetensors", "is neither safetensors nor a torch archive"),
    "json": ("unet/config.json", "{", "cannot be read: Expecting property name"),
    "list": ("vae/config.json", "[]", "expected an object of options"),
    "latin": ("scheduler/scheduler_config.json", "\xe9", "_config.json cannot be read: 'utf-8'"),
}


@pytest.mark.parametrize(("file", "content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_an_unreadable_file_is_named(folder: Path, file: str, content: str, message: str):
    """As it is."""
    (folder / file).unlink()
    (folder / file).write_text(content, encoding="latin-1")
    error = error_of(folder)
    assert str(folder / file) in error
    assert message in error


WRONG_WEIGHTS = {
    "missing": (
        WEIGHTS["unet"],
        lambda w: w.pop("conv_in.bias"),
        "1 missing (conv_in.bias), 0 unexpected",
    ),
    "unexpected": (
        WEIGHTS["text_encoder"],
        lambda w: w.update({"text_model.extra.weight": torch.zeros(2)}),
        "0 missing, 1 unexpected (text_model.extra.weight)",
    ),
    "many": (
        WEIGHTS["vae"],
        lambda w: [w.pop(key) for key in list(w) if key.startswith("encoder.mid")],
        "26 missing (encoder.mid_block.attentions.0.group_norm.weight, ",
    ),
    "shape": (
        WEIGHTS["unet"],
        lambda w: w.update({"conv_in.bias": torch.zeros(320)}),
        "conv_in.bias is F32 of shape (320,), expected shape (32,) and one of F32, F16, BF16, F64",
    ),
    "integers": (
        WEIGHTS["vae"],
        lambda w: w.update({"quant_conv.bias": torch.zeros(8, dtype=torch.int8)}),
        "quant_conv.bias is I8 of shape (8,), expected",
    ),
}


@pytest.mark.parametrize(
    ("file", "change", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS.keys()
)
def test_wrong_weights_are_named(folder: Path, file: str, change: Callable, message: str):
    """Which are missing, which are left over, which have another shape."""
    edit_weights(folder / file, change)
    assert error_of(folder).startswith(f"{folder / file}: {message}")


CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
WRONG_CONFIGS = {
    "sd2-text": ("text_encoder", {"hidden_act": "gelu"}, "hidden_act is 'gelu', but in Stable"),
    "vocabulary": ("text_encoder", {"vocab_size": 30_522}, "vocab_size is 30522, but in Stable"),
    "heads": ("text_encoder", {"num_attention_heads": 5}, "hidden_size 64 is not divisible by 5"),
    "upcast": ("unet", {"upcast_attention": True}, "upcast_attention is True, which is not known"),
    "sdxl": ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
    "class": ("unet", {"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel', but"),
    "eps": (
        "unet",
        {"norm_eps": 1e-6},
        "norm_eps is 1e-06, but in Stable Diffusion v1 it is 1e-05",
    ),
    "act": ("vae", {"act_fn": "gelu"}, "act_fn is 'gelu', but in Stable Diffusion v1 it is 'silu'"),
    "absent": ("unet", {"cross_attention_dim": None}, "missing cross_attention_dim"),
    "no-heads": ("unet", {"attention_head_dim": None}, "attention_head_dim is None, expected list"),
    "type": ("unet", {"layers_per_block": "2"}, "layers_per_block is '2', expected int"),
    "levels": ("unet", {"block_out_channels": 32}, "block_out_channels is 32, expected list of i"),
    "groups": ("vae", {"norm_num_groups": 24}, "width 32 is not divisible by 24 norm groups"),
    "few-heads": ("unet", {"attention_head_dim": [8, 8]}, "num_heads has 2 entries for 4 levels"),
    "block": (
        "unet",
        {"down_block_types": ["X"] * 4},
        "down_block_types is ['X', 'X', 'X', 'X'], ",
    ),
    "blocks": ("unet", {"down_block_types": [CROSS] * 3}, "expected 4 of CrossAttnDownBlock2D or "),
    "up": (
        "unet",
        {"down_block_types": [PLAIN] * 4},
        "up_block_types are not the down_block_types",
    ),
    "vae-block": ("vae", {"up_block_types": ["UpBlock2D"] * 4}, "expected 4 of UpDecoderBlock2D"),
}


@pytest.mark.parametrize(
    ("part", "changes", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS.keys()
)
def test_a_config_that_is_not_sd_v1s_is_refused(
    folder: Path, part: str, changes: dict, message: str
):
    """With the file, the option and the value."""
    edit(folder / part / "config.json", **changes)
    error = error_of(folder)
    assert error.startswith(f"{folder / part / 'config.json'}: ")
    assert message in error


def test_networks_of_two_models_are_refused(folder: Path):
    """The UNet reads what the text encoder writes, and 4 channels of latents."""
    edit(folder / "unet/config.json", cross_attention_dim=768)
    assert "hidden_size is 64, but the UNet's cross_attention_dim is 768" in error_of(folder)
    edit(folder / "unet/config.json", cross_attention_dim=64, in_channels=9)
    assert "the UNet reads 9: it is made for inpainting" in error_of(folder)


def test_numbers_of_the_config_are_used(folder: Path):
    """Heads per level, attention per level, scaling factor."""
    blocks = ["CrossAttnUpBlock2D"] * 4
    edit(folder / "unet/config.json", attention_head_dim=[8, 4, 2, 1], up_block_types=blocks)
    edit(folder / "unet/config.json", down_block_types=[CROSS] * 4)
    edit(folder / "vae/config.json", scaling_factor=1)
    unet = read_unet_config(folder / "unet/config.json")
    assert unet.num_heads == (8, 4, 2, 1)
    assert unet.has_attention == (True,) * 4
    scaling_factor = read_vae_config(folder / "vae/config.json").scaling_factor
    assert (scaling_factor, type(scaling_factor)) == (1, float)


@pytest.mark.parametrize("sd_v1", [True, False], ids=["sd1", "defaults"])
@pytest.mark.parametrize("name", [kind.__name__ for _, kind in SCHEDULERS.values()])
def test_schedulers_are_those_of_diffusers(
    published_configs: dict,
    tmp_path: Path,
    name: str,
    sd_v1: bool,  # noqa: FBT001 - a parameter
):
    """What diffusers makes of a file, whether options are there or not, is what we make of it."""
    diffusers = pytest.importorskip("diffusers")
    options = published_configs["scheduler/scheduler_config.json"] if sd_v1 else {}
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(options | {"_class_name": name}))
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    absent_and_there = [read_scheduler(path)]
    theirs.save_pretrained(tmp_path)
    absent_and_there.append(read_scheduler(path))
    for ours in absent_and_there:
        assert type(ours).__name__ == name
        for option, value in asdict(ours.config).items():
            assert theirs.config.get(option, value) == value, option
        if name != "HeunDiscreteScheduler":  # whose defaults are SD v1's
            assert (ours.config.beta_start == 0.00085) == sd_v1


def test_leftovers_of_another_scheduler_are_known(published_configs: dict, tmp_path: Path):
    """`from_config` of diffusers keeps the options of the scheduler that it replaces."""
    diffusers = pytest.importorskip("diffusers")
    options = published_configs["scheduler/scheduler_config.json"]
    options = options | {"variance_type": "fixed_small", "clip_sample_range": 1.0}
    for _, own in SCHEDULERS.values():
        kind = getattr(diffusers, own.__name__)
        theirs = kind.from_config(options)
        theirs.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert {"variance_type", "clip_sample_range", "skip_prk_steps"} <= saved.keys()
        ours = read_scheduler(tmp_path / "scheduler_config.json")
        assert type(ours).__name__ == kind.__name__
        assert ours.config.steps_offset == 1


WRONG_SCHEDULERS = {
    "unknown": ({"_class_name": "UniPCMultistepScheduler"}, "_class_name is 'UniPCMultistepSched"),
    "nameless": ({"_class_name": None}, "_class_name is None, expected one of PNDMScheduler, DDIM"),
    "clip": ({"clip_sample": True}, "clip_sample is True, but in Stable Diffusion v1 it is False"),
    "spacing": ({"timestep_spacing": "even"}, "timestep_spacing is 'even', expected one of lead"),
    "solver": (
        {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"},
        "solver_type is 'heun', but in Stable Diffusion v1 it is 'midpoint'",
    ),
    "third-order": (
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
        "solver_order is 3, but",
    ),
    "ancestral-karras": (
        {"_class_name": "EulerAncestralDiscreteScheduler", "use_karras_sigmas": True},
        "use_karras_sigmas is True, but Euler-ancestral has no",
    ),
    "exponential": (
        {"_class_name": "EulerDiscreteScheduler", "use_exponential_sigmas": True},
        "use_exponential_sigmas is True, which is not known here",
    ),
    "betas": ({"trained_betas": [0.1]}, "trained_betas is [0.1], which is not known here"),
    "terminal-snr": ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True, which"),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2', exp"),
    "sample": ({"prediction_type": "sample"}, "prediction_type is 'sample', expected one of eps"),
    "type": ({"beta_start": "low"}, "beta_start is 'low', expected float"),
    "threshold": (
        {"_class_name": "DDIMScheduler", "thresholding": True},
        "thresholding is True, w",
    ),
    "learned": (
        {"_class_name": "DDPMScheduler", "variance_type": "learned"},
        "'learned', expected",
    ),
}


@pytest.mark.parametrize(
    ("changes", "message"), WRONG_SCHEDULERS.values(), ids=WRONG_SCHEDULERS.keys()
)
def test_a_scheduler_that_is_not_there_is_refused(folder: Path, changes: dict, message: str):
    """An option is never passed over: other numbers would come out."""
    path = folder / "scheduler/scheduler_config.json"
    edit(path, **changes)
    error = error_of(folder)
    assert error.startswith(f"{path}: ")
    assert message in error
