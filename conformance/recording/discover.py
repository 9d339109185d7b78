"""What `golden/spec/` freezes, derived from the oracle: parameters, probes, prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conformance import oracle, spec
from conformance.adapters.diffusers_networks import build_text_encoder, build_unet, build_vae
from conformance.adapters.torch_module import INPUT_SUFFIX, observe
from conformance.errors import GoldenError
from conformance.scenarios import scenarios
from conformance.variants import Variant, parse_variant


@dataclass(frozen=True)
class Rules:
    """Which modules of a network are probes.

    Attributes:
        blocks: Named blocks: what the cases other than `base` record.
        glue: Modules whose input is a probe too, since no module computes it.
        left_out: Modules that are none: their value is another probe's, or has no agreed shape.
    """

    blocks: re.Pattern[str]
    glue: re.Pattern[str]
    left_out: re.Pattern[str] = re.compile(r"(?!)")


_SAMPLERS = r"downsamplers|upsamplers"
_VAE = Rules(
    re.compile(
        rf".*\.(resnets|attentions|{_SAMPLERS}|down_blocks|up_blocks)\.\d+"
        r"|.*\.(conv_in|mid_block|conv_norm_out|conv_out)|quant_conv|post_quant_conv"
    ),
    # attention core; latents divided by 0.18215
    re.compile(r".*\.to_out\.0|post_quant_conv"),
    re.compile(r"encoder|decoder"),
)

RULES = {
    "unet": Rules(
        re.compile(
            rf"(.*\.(resnets|attentions|{_SAMPLERS})|(down|up)_blocks)\.\d+"
            r"|mid_block|time_proj|time_embedding|conv_in|conv_norm_out"
        ),
        # attention core; time embedding added, or first residual sum of a transformer block;
        # its second residual sum; skip concatenation
        re.compile(r".*\.(to_out\.0|norm2|norm3)|up_blocks\.\d+\.resnets\.\d+"),
    ),
    "text_encoder": Rules(
        re.compile(r"text_model\.(embeddings|final_layer_norm|encoder\.layers\.\d+)"),
        # attention core; first residual sum; activation
        re.compile(r".*\.(self_attn\.out_proj|layer_norm2|mlp\.fc2)"),
        # a position embedding may or may not have a batch axis
        re.compile(r"text_model(\.encoder|\.embeddings\.position_embedding)?"),
    ),
    "vae_encoder": _VAE,
    "vae_decoder": _VAE,
}


def discover_probes(component: str, variant: Variant) -> tuple[list[str], list[str]]:
    """Derive the canonical probes of a network from the oracle's own modules.

    Args:
        component: A network.
        variant: A variant that has every layer of every other one.

    Returns:
        Every probe in execution order, and the named blocks among them.
    """
    reference = oracle.network(component, variant, variant.weights(component), torch.float64)
    rules = RULES[component]
    names = _candidates(reference.module, rules)
    order: list[str] = []
    inputs = scenarios(component, variant)[0].inputs(variant)
    with torch.no_grad(), observe(reference.module, names, lambda name, _: order.append(name)):
        reference.call(reference.module, reference.tensors(inputs))
    return order, [name for name in order if rules.blocks.fullmatch(name)]


def _candidates(module: nn.Module, rules: Rules) -> list[str]:
    names: list[str] = []
    for path, child in module.named_modules():
        if not path or isinstance(child, (nn.ModuleList, nn.Sequential)):
            continue
        if next(child.parameters(), None) is None and path != "time_proj":
            continue
        if rules.left_out.fullmatch(path):
            continue
        if rules.glue.fullmatch(path):
            names.append(path + INPUT_SUFFIX)
        names.append(path)
    return names


def derive_spec() -> dict[str, str]:
    """Derive from the oracle what `golden/spec/` freezes.

    Returns:
        By file name, the text of `parameters.json` (names and shapes of every size),
        `probes.json` (probes of every network, in execution order) and `prompts.json` (the text
        encoder's inputs: ids of the texts that the file already holds).
    """
    parameters = {
        folder: _parameters(component, build)
        for folder, component, build in (
            ("text_encoder", "text_encoder", build_text_encoder),
            ("unet", "unet", build_unet),
            ("vae", "vae_encoder", build_vae),
        )
    }
    probes = {}
    for component in RULES:
        order, blocks = discover_probes(component, parse_variant(_WITH_EVERY_LAYER[component]))
        probes[component] = {"all": order, "blocks": blocks}
    prompts = {
        name: {"text": entry["text"], "input_ids": oracle.token_ids(entry["text"]).tolist()}
        for name, entry in spec.golden_prompts().items()
    }
    return {
        "parameters.json": json.dumps(parameters, separators=(",", ":")),
        "probes.json": json.dumps(probes, indent=0) + "\n",
        "prompts.json": _one_entry_a_line(prompts),
    }


_WITH_EVERY_LAYER = {
    "text_encoder": "sd1",
    "unet": "odd",
    "vae_encoder": "odd",
    "vae_decoder": "odd",
}
"""The size that has every layer of the others: the most layers, or widths that all differ."""


def _parameters(component: str, build: Callable[[Variant], nn.Module]) -> dict[str, Any]:
    """Return the names of the size with every layer, and the shapes of each size: null for none."""
    states = {
        size: build(parse_variant(size)).state_dict() for size in spec.architectures(component)
    }
    names = list(states[_WITH_EVERY_LAYER[component]])
    for size, state in states.items():
        if list(state) != [name for name in names if name in state]:
            message = f"{component}/{size} has parameters of another name or order"
            raise GoldenError(message)
    shapes = {
        size: [list(state[name].shape) if name in state else None for name in names]
        for size, state in states.items()
    }
    return {"names": names, "shapes": shapes}


def _one_entry_a_line(entries: dict[str, Any]) -> str:
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
