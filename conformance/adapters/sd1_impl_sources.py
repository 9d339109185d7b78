"""Which lines of `sd1_impl` compute a probe: read from the class that owns it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from torch import nn

import sd1_impl
import sd1_impl.training
from conformance.adapters.sd1_impl_networks import NETWORKS
from conformance.case import Case
from conformance.sampling import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE, term_and_step
from conformance.spec import TOKENIZER
from conformance.training import GRADIENT, TRAINED, VAE_TRAINING
from conformance.variants import Variant
from sd1_impl.image_to_image import Image2Image
from sd1_impl.inpainting import Inpaint
from sd1_impl.pipeline import Text2Image
from sd1_impl.schedulers import SCHEDULERS, NoiseSchedule
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.vae import AutoencoderKL

MOST_LINES = 40
_BEFORE = 4
"""Lines before the first marked one, where a method is too long to be shown whole."""

_ROOT = Path(sd1_impl.__file__).parents[1]
_INPUT = ".input"
_BUILT = "__init__"

_VAE_OUTPUTS = {
    "mean": "encode",
    "logvar": "encode",
    "latents": "sample_latents",
    "image": "_decode",
}
"""By output of the autoencoder, the method that makes it."""

_TABLES = ("betas", "alphas_cumprod", "final_alpha_cumprod")
_SCHEDULER_TERMS = {
    "sigmas": "grid",
    "lambdas": "grid",
    "init_noise_sigma": "initial_sigma",
    "timesteps": "timesteps",
    "model_inputs": "scale_model_input",
}
"""By term of a scheduler, the method that makes it."""

_PIPELINES = {TEXT_TO_IMAGE: Text2Image, IMAGE_TO_IMAGE: Image2Image, INPAINT: Inpaint}
_PIPELINE_TERMS = {
    "input_ids": "encode",
    "negative_input_ids": "encode_prompts",
    "prompt_embeds": "encode",
    "negative_prompt_embeds": "encode_prompts",
    "init_image": "normalize",
    "image_latents": "encode_pixels",
    "mask": "latent_mask",
    "masked_image": "mask_image",
    "masked_image_latents": "encode_masked_image",
    "initial_latents": "initial_latents",
    "timestep": "denoise",
    "model_input": "denoise",
    "noise_pred_uncond": "predict_noise",
    "noise_pred_text": "predict_noise",
    "noise_pred": "guide",
    "vae": "decode",
    "image": "to_image",
    "image_uint8": "to_uint8",
}
"""By term of a pipeline, the method that makes it."""
_IN_THE_LOOP = {"timestep": r"\btimesteps\b|, t,", "model_input": r"\bmodel_input\b"}
"""What marks the lines of `denoise`, which makes several terms."""


_LOSSES = {False: sd1_impl.training.denoising_loss, True: sd1_impl.training.autoencoder_loss}
"""By whether the autoencoder is trained."""
_ENCODER = ("encoder.", "quant_conv")
"""How the names of what the encoder owns begin."""


def source_of(case: Case, probe: str) -> dict[str, Any] | None:
    """Return the lines that compute a probe or output right.

    Args:
        case: Gives the component, its architecture and, of a pipeline, the scheduler.
        probe: Canonical name.

    Returns:
        `file`, `start`, `lines` and `marked`, as docs/report.md says; None where nothing is found.
    """
    try:
        if case.is_network:
            return _of_network(case, probe)
        if case.component == TOKENIZER:
            return _snippet(CLIPTokenizer, ["encode"])
        if case.is_scheduler:
            return _of_scheduler(case.component.partition("/")[2], term_and_step(probe)[0])
        if case.is_pipeline:
            return _of_pipeline(case, term_and_step(probe)[0])
        return _of_training(case, probe)
    except Exception:  # noqa: BLE001 - a name that sd1_impl has not, a file that is not there
        return None


def _of_network(case: Case, probe: str) -> dict[str, Any] | None:
    module = _built(case.component, case.variant)
    path = probe.removesuffix(_INPUT)
    if not _has(module, path):
        if isinstance(module, AutoencoderKL):
            return _snippet(AutoencoderKL, [_VAE_OUTPUTS[probe]])
        return _snippet(type(module), ["forward"])
    own = module.get_submodule(path)
    if probe == path and _is_ours(own):
        return _snippet(type(own), ["forward"])
    while path:
        path, _, attribute = path.rpartition(".")
        owner = module.get_submodule(path)
        if _is_ours(owner):
            kind: type = type(owner)
            # Of a layer, how it is built comes first; of what enters it, how it is called.
            entered = probe.endswith(_INPUT)
            names = sorted(_methods(kind), key=lambda name: (name == _BUILT) == entered)
            return _snippet(kind, names, rf"\bself\.{re.escape(attribute)}\b")
    return None


@lru_cache(maxsize=1)
def _built(component: str, variant: Variant) -> nn.Module:
    """Build a network on the meta device; probes of one component are asked for in turn."""
    build, _ = NETWORKS[component]
    return build(variant)


def _has(module: nn.Module, path: str) -> bool:
    return path in dict(module.named_modules())


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == sd1_impl.__name__


def _of_scheduler(algorithm: str, term: str) -> dict[str, Any] | None:
    if term in _TABLES:
        return _snippet(NoiseSchedule, [_BUILT], rf"\bself\.{term} =")
    _, scheduler = SCHEDULERS[algorithm]
    step = "solve" if hasattr(scheduler, "solve") else "step"
    return _snippet(scheduler, [_SCHEDULER_TERMS.get(term, step)])


def _of_pipeline(case: Case, term: str) -> dict[str, Any] | None:
    pipeline: Any = _PIPELINES[case.component]
    scenario: Any = case.scenario
    channels = case.variant.architecture("unet")["in_channels"]
    latents = case.variant.architecture("vae_decoder")["latent_channels"]
    if pipeline is Inpaint and channels == latents and term == "latents":
        return _snippet(pipeline, ["blend"])
    if term in {"latents", "unblended"}:
        return _of_scheduler(scenario.algorithm, term)
    if pipeline is Inpaint and channels != latents and term == "model_input":
        return _snippet(pipeline, ["unet_input"])
    if pipeline is Image2Image and term == "initial_latents":
        return _snippet(pipeline, ["noisy_latents"])
    if term == "vae.post_quant_conv.input":
        return _snippet(AutoencoderKL, ["_decode"])
    return _snippet(pipeline, [_PIPELINE_TERMS[term]], _IN_THE_LOOP.get(term))


def _of_training(case: Case, probe: str) -> dict[str, Any] | None:
    """Return the lines of a term of a loss, or of the layer whose parameter has a gradient."""
    network, of_vae = TRAINED[case.component], case.component == VAE_TRAINING
    layer = probe.removeprefix(GRADIENT).rpartition(".")[0] if probe.startswith(GRADIENT) else ""
    if of_vae:
        network = "vae_encoder" if layer.startswith(_ENCODER) else "vae_decoder"
    if layer or probe.startswith("time_"):
        return _of_network(replace(case, component=network), layer or probe)
    if probe == "target":
        return _of_function(sd1_impl.training.prediction_target)
    if probe in {"mean", "logvar"}:
        return _snippet(AutoencoderKL, ["encode"])
    return _of_function(_LOSSES[of_vae], rf"^    {probe} =")


def _of_function(function: Any, pattern: str | None = None) -> dict[str, Any] | None:
    """Show a function of a module: see `_snippet`."""
    path = Path(inspect.getfile(function))
    text = path.read_text(encoding="utf-8").splitlines()
    lines, start = inspect.getsourcelines(function)
    end = start + len(lines) - 1
    returns = [n for n in range(start, end + 1) if re.search(r"\breturn\b", text[n - 1])]
    method = _Method(start, end, frozenset(returns))
    marks = _marks(method, text, pattern)
    if not marks:
        return None
    return {"file": path.relative_to(_ROOT).as_posix(), **_shown([(method, marks)], text)}


@dataclass(frozen=True)
class _Method:
    """Where a method stands in its file.

    Attributes:
        first: Number of its first line.
        last: Number of its last.
        returns: Numbers of the lines that return something.
    """

    first: int
    last: int
    returns: frozenset[int]


@cache
def _methods(owner: type) -> dict[str, _Method]:
    """Return the methods that a class itself defines."""
    lines, start = inspect.getsourcelines(owner)
    (tree,) = ast.parse(textwrap.dedent("".join(lines))).body
    return {
        node.name: _Method(
            start - 1 + min([node.lineno, *(d.lineno for d in node.decorator_list)]),
            start - 1 + (node.end_lineno or node.lineno),
            frozenset(
                start - 1 + line
                for own in ast.walk(node)
                if isinstance(own, ast.Return)
                for line in range(own.lineno, (own.end_lineno or own.lineno) + 1)
            ),
        )
        for node in ast.iter_child_nodes(tree)
        if isinstance(node, ast.FunctionDef)
    }


def _snippet(
    owner: type, names: Iterable[str], pattern: str | None = None
) -> dict[str, Any] | None:
    """Show methods of a class, or the part of one that matters most.

    Args:
        owner: The class, or one that inherits them.
        names: Methods, the most telling first.
        pattern: Marks lines; None marks what is returned.

    Returns:
        The lines; None where nothing is marked.
    """
    for own in inspect.getmro(owner):
        if not own.__module__.startswith(sd1_impl.__name__):
            continue
        path = Path(inspect.getfile(own))
        text = path.read_text(encoding="utf-8").splitlines()
        found = []
        for name in names:
            method = _methods(own).get(name)
            marks = [] if method is None else _marks(method, text, pattern)
            if method is not None and marks:
                found.append((method, marks))
        if found:
            return {"file": path.relative_to(_ROOT).as_posix(), **_shown(found, text)}
    return None


def _marks(method: _Method, text: list[str], pattern: str | None) -> list[int]:
    if pattern is None:
        return sorted(method.returns) or [method.last]
    numbers = range(method.first, method.last + 1)
    return [number for number in numbers if re.search(pattern, text[number - 1])]


def _shown(found: list[tuple[_Method, list[int]]], text: list[str]) -> dict[str, Any]:
    """Return all methods where they are short enough together, else the best lines of the first."""
    first = min(method.first for method, _ in found)
    last = max(method.last for method, _ in found)
    if last - first >= MOST_LINES:
        method, marks = found[0]
        first, last = method.first, method.last
        if last - first >= MOST_LINES:
            first = max(first, min(marks[0] - _BEFORE, last - MOST_LINES + 1))
            last = min(last, first + MOST_LINES - 1)
    marked = sorted(n for _, marks in found for n in marks if first <= n <= last)
    return {"start": first, "lines": text[first - 1 : last], "marked": marked}
