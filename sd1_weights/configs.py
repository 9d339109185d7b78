"""The JSON files of a diffusers folder, written from an architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sd1_weights.schedule import BETA_END, BETA_START, TRAIN_STEPS

INPAINT_CHANNELS = 9

SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": TRAIN_STEPS,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
"""``scheduler/scheduler_config.json`` of the published SD v1-5."""


SCALING_FACTOR = 0.18215
"""Of the latents."""

BEYOND_SIZES: dict[str, Any] = {
    "has_attention": (True, True, True, False),
    "scaling_factor": SCALING_FACTOR,
}
"""Numbers of a config that are the same in every size: the UNet's levels, the VAE's factor."""

UNSAID = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""What diffusers takes where a scheduler's options leave it out."""

TRAINING = {
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": TRAIN_STEPS,
    "prediction_type": "epsilon",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""What a scheduler's options say of the training, with SD v1's values: those of single files."""


def published_config(network: str, architecture: dict[str, Any]) -> dict[str, Any]:
    """Return what `config.json` says of a network.

    Args:
        network: `unet`, `text_encoder` or `vae`.
        architecture: Widths, heads, groups; names as in `golden/spec/variants.json`. A UNet's
            `has_attention` and a VAE's `scaling_factor` are SD v1's where they are absent.

    Returns:
        Keyword arguments of diffusers' `UNet2DConditionModel` (whose `attention_head_dim` is, for
        historical reasons, the number of heads) and `AutoencoderKL`, and of transformers'
        `CLIPTextConfig`.
    """
    made = {"unet": _unet_config, "text_encoder": _text_config, "vae": _vae_config}
    return made[network](architecture)


def _unet_config(architecture: dict[str, Any]) -> dict[str, Any]:
    attends = architecture.get("has_attention", BEYOND_SIZES["has_attention"])
    cross = ["CrossAttn" if has else "" for has in attends]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": architecture["in_channels"],
        "out_channels": architecture["out_channels"],
        "block_out_channels": architecture["block_out_channels"],
        "layers_per_block": architecture["layers_per_block"],
        "cross_attention_dim": architecture["cross_attention_dim"],
        "attention_head_dim": architecture["num_heads"],
        "norm_num_groups": architecture["norm_num_groups"],
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "center_input_sample": False,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "down_block_types": [f"{kind}DownBlock2D" for kind in cross],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(cross)],
    }


def _text_config(architecture: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": architecture["vocab_size"],
        "hidden_size": architecture["hidden_size"],
        "intermediate_size": architecture["intermediate_size"],
        "num_hidden_layers": architecture["num_layers"],
        "num_attention_heads": architecture["num_heads"],
        "max_position_embeddings": architecture["max_position_embeddings"],
        "projection_dim": architecture["hidden_size"],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


def _vae_config(architecture: dict[str, Any]) -> dict[str, Any]:
    levels = len(architecture["block_out_channels"])
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "in_channels": architecture["in_channels"],
        "out_channels": architecture["out_channels"],
        "latent_channels": architecture["latent_channels"],
        "block_out_channels": architecture["block_out_channels"],
        "layers_per_block": architecture["layers_per_block"],
        "norm_num_groups": architecture["norm_num_groups"],
        "act_fn": "silu",
        "scaling_factor": architecture.get("scaling_factor", SCALING_FACTOR),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def model_index(scheduler: str, in_channels: int) -> dict[str, Any]:
    """Return `model_index.json`: the classes that diffusers makes of the folders.

    Args:
        scheduler: `_class_name` of the scheduler.
        in_channels: Of the UNet: 9 where it is made for inpainting.
    """
    inpaint = in_channels == INPAINT_CHANNELS
    return {
        "_class_name": f"StableDiffusion{'Inpaint' if inpaint else ''}Pipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def tokenizer_files(
    vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Return the files of `tokenizer/`, by name: JSON, and the merges as text.

    Args:
        vocabulary: Token to id.
        merges: Pairs of tokens, the most urgent first.
    """
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>"} | dict.fromkeys(
        ("eos_token", "unk_token", "pad_token"), end
    )
    return {
        "vocab.json": dict(vocabulary),
        "merges.txt": "".join(f"{line}\n" for line in ["#version: 0.2", *map(" ".join, merges)]),
        "special_tokens_map.json": special,
        "tokenizer_config.json": special
        | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
    }
