"""diffusers' schedulers and its text-to-image pipeline, assembled offline, behind the contract."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial, wraps
from itertools import count
from types import ModuleType
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conformance.adapters.diffusers_networks import (
    Tokenizer,
    build_unet,
    build_vae,
    prefixed,
    text_model,
)
from conformance.adapters.torch_module import DTYPES, Load, assign_weights
from conformance.adapters.torch_sampling import Observe, PipelineComponent, SchedulerComponent
from conformance.errors import UnsupportedError
from conformance.sampling import RUN, SCHEDULERS, TEXT_TO_IMAGE, step_name

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

diffusers.utils.logging.set_verbosity_error()  # of cut prompts and absent safety checkers

MakeScheduler = Callable[[str, dict[str, Any]], Any]


def make_scheduler(
    algorithm: str,
    config: Mapping[str, Any],
    load: Callable[[str], ModuleType] = importlib.import_module,
) -> Any:
    """Build diffusers' scheduler, its timesteps set.

    Args:
        algorithm: `ddpm`, `ddim` or `pndm`.
        config: Full configuration, as `sampling.settings` makes it.
        load: Finds the module of the scheduler's class.

    Returns:
        The scheduler.
    """
    module = load(f"diffusers.schedulers.scheduling_{algorithm}")
    arguments = {k: v for k, v in config.items() if k not in (*RUN, "scheduler")}
    scheduler = getattr(module, f"{algorithm.upper()}Scheduler")(**arguments)
    scheduler.set_timesteps(config["num_inference_steps"])
    return scheduler


@contextmanager
def noise_as_data(scheduler: Any, noise: Iterator[Tensor]) -> Iterator[None]:
    """Let a scheduler take its noise from here instead of drawing it."""
    module: Any = importlib.import_module(type(scheduler).__module__)
    plain = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *_, **__: next(noise)
    try:
        yield
    finally:
        if plain is None:
            del module.randn_tensor
        else:
            module.randn_tensor = plain


class DiffusersSampler:
    """One run of a diffusers scheduler, as `torch_sampling.Sampler`."""

    def __init__(self, scheduler: Any, config: Mapping[str, Any]) -> None:
        self.scheduler = scheduler
        self.timesteps = scheduler.timesteps[config["begin_index"] :]
        final = getattr(scheduler, "final_alpha_cumprod", None)
        self.tables: dict[str, Any] = {
            "betas": scheduler.betas,
            "alphas_cumprod": scheduler.alphas_cumprod,
            "final_alpha_cumprod": scheduler.one if final is None else final,
        }
        self.arguments = {"eta": config["eta"]} if config.get("eta") else {}

    def scale_model_input(self, sample: Tensor, t: Tensor) -> Tensor:
        """Return what the model is given."""
        return self.scheduler.scale_model_input(sample, t)

    def step(self, model_output: Tensor, t: Tensor, sample: Tensor, noise: Tensor | None) -> Tensor:
        """Return the next sample."""
        own = iter(() if noise is None else (noise,))
        with noise_as_data(self.scheduler, own):
            return self.scheduler.step(model_output, t, sample, **self.arguments).prev_sample


@dataclass
class Maker:
    """Makes the schedulers of a component; whoever wants another arithmetic replaces `make`."""

    make: MakeScheduler = make_scheduler


def scheduler_component(
    algorithm: str, dtype: torch.dtype, device: str = "cpu", make: MakeScheduler = make_scheduler
) -> SchedulerComponent:
    """Return diffusers' scheduler of that name as a component; its `module` is a `Maker`."""
    maker = Maker(make)

    def begin(config: dict[str, Any]) -> DiffusersSampler:
        return DiffusersSampler(maker.make(algorithm, config), config)

    return SchedulerComponent(begin, dtype, device, maker)


class Networks(nn.Module):
    """The three networks of a checkpoint, and what makes their scheduler.

    The text encoder has the names of the checkpoint; `clip` is the same model as transformers'.
    """

    def __init__(self, variant: Variant, weights: Weights, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        clip = text_model(variant)
        self.text_encoder = assign_weights(
            prefixed(clip), weights.part("text_encoder"), dtype, device
        )
        self.clip = [clip.eval()]  # in a list: its weights are those of `text_encoder`
        self.unet = assign_weights(build_unet(variant), weights.part("unet"), dtype, device)
        self.vae = assign_weights(build_vae(variant), weights.part("vae"), dtype, device)
        self.make: MakeScheduler = make_scheduler


def pipeline_component(
    variant: Variant, weights: Weights, dtype: torch.dtype, device: str = "cpu"
) -> PipelineComponent:
    """Return diffusers' StableDiffusionPipeline as a component; its `module` is `Networks`.

    Args:
        variant: Architecture.
        weights: Of the whole checkpoint.
        dtype: What it computes in.
        device: Where.

    Returns:
        The component.
    """
    networks = Networks(variant, weights, dtype, device)

    def draw(inputs: Mapping[str, Any], observe: Observe) -> None:
        config = inputs["config"]
        _draw(networks, networks.make(config["scheduler"], config), inputs, observe)

    return PipelineComponent(draw, dtype, device, networks)


def _draw(networks: Networks, scheduler: Any, inputs: Mapping[str, Any], observe: Observe) -> None:
    """Run the pipeline as its users do, watching what goes into and comes out of its parts."""
    config, batch = inputs["config"], len(inputs["prompt"])
    pipe = StableDiffusionPipeline(
        vae=networks.vae,
        text_encoder=networks.clip[0],
        tokenizer=_tokenizer(),
        unet=networks.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    noise = iter(inputs["noise"]) if "noise" in inputs else iter(())
    with ExitStack() as stack:
        stack.enter_context(noise_as_data(scheduler, noise))
        for handle in (
            _watch_text(networks, observe),
            _watch_unet(networks, batch, observe),
            *_watch_vae(networks, observe),
        ):
            stack.callback(handle.remove)
        stack.enter_context(_watch_steps(scheduler, observe))
        height, width = (pipe.vae_scale_factor * side for side in inputs["latents"].shape[2:])
        image = pipe(
            inputs["prompt"],
            negative_prompt=inputs["negative_prompt"],
            latents=inputs["latents"],
            guidance_scale=inputs["guidance_scale"],
            num_inference_steps=config["num_inference_steps"],
            eta=config.get("eta", 0.0),
            height=height,
            width=width,
            output_type="pt",
        ).images
    observe("image", image)
    observe("image_uint8", _to_uint8(image))


@cache
def _tokenizer() -> Any:
    return Tokenizer().tokenizer


def _to_uint8(image: Tensor) -> Tensor:
    """Round as diffusers does, which goes through float32; float64 images stay what they are."""
    array = image.cpu().permute(0, 2, 3, 1)
    array = (array if array.dtype is torch.float64 else array.float()).numpy()
    pictures = VaeImageProcessor.numpy_to_pil(array)
    return torch.tensor(np.stack([np.asarray(picture) for picture in pictures]))


def _watch_text(networks: Networks, observe: Observe) -> RemovableHandle:
    """Watch token ids and embeddings: prompts first, then the negative ones."""
    names = iter([("input_ids", "prompt_embeds"), ("negative_input_ids", "negative_prompt_embeds")])

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        ids_name, embeds_name = next(names)
        observe(ids_name, args[0] if args else kwargs["input_ids"])
        observe(embeds_name, output[0])

    return networks.clip[0].register_forward_hook(after, with_kwargs=True)


def _watch_unet(networks: Networks, batch: int, observe: Observe) -> RemovableHandle:
    """Watch the UNet's input, timestep and output; of a guided batch the halves."""
    calls = count()

    def after(_: nn.Module, args: Any, _kwargs: Any, output: Any) -> None:
        k, sample, t = next(calls), args[0], args[1]
        if k == 0:
            observe("initial_latents", sample[:batch])
        observe(step_name("timestep", k), t)
        observe(step_name("model_input", k), sample[:batch])
        *uncond, text = output[0].split(batch)
        for half in uncond:
            observe(step_name("noise_pred_uncond", k), half)
        observe(step_name("noise_pred_text", k), text)

    return networks.unet.register_forward_hook(after, with_kwargs=True)


def _watch_vae(networks: Networks, observe: Observe) -> list[RemovableHandle]:
    """Watch what enters the decoder's first convolution, and what leaves its last."""
    return [
        networks.vae.post_quant_conv.register_forward_pre_hook(
            lambda _, args: observe("vae.post_quant_conv.input", args[0])
        ),
        networks.vae.decoder.register_forward_hook(lambda _, __, out: observe("vae", out)),
    ]


@contextmanager
def _watch_steps(scheduler: Any, observe: Observe) -> Iterator[None]:
    """Watch guided noise and latents of every step."""
    plain = scheduler.step
    calls = count()

    @wraps(plain)  # the pipeline looks at its signature
    def step(model_output: Tensor, t: Any, sample: Tensor, **arguments: Any) -> Any:
        k = next(calls)
        observe(step_name("noise_pred", k), model_output)
        answer = plain(model_output, t, sample, **arguments)
        observe(step_name("latents", k), answer[0])
        return answer

    scheduler.step = step
    try:
        yield
    finally:
        scheduler.step = plain


def _dtype(arithmetic: str) -> torch.dtype:
    """Return the dtype of an arithmetic that diffusers' own schedulers can be judged in."""
    if arithmetic == "float64":
        message = (
            f"diffusers {diffusers.__version__} computes the tables of its schedulers in float32: "
            "float64 would judge those alone"
        )
        raise UnsupportedError(message)
    return DTYPES[arithmetic]


def _load_scheduler(
    algorithm: str, _variant: Variant, _weights: Weights, arithmetic: str, device: str
) -> SchedulerComponent:
    return scheduler_component(algorithm, _dtype(arithmetic), device)


def _load_pipeline(
    variant: Variant, weights: Weights, arithmetic: str, device: str
) -> PipelineComponent:
    return pipeline_component(variant, weights, _dtype(arithmetic), device)


LOADERS: dict[str, Load] = {
    **{name: partial(_load_scheduler, name.partition("/")[2]) for name in SCHEDULERS},
    TEXT_TO_IMAGE: _load_pipeline,
}
"""By component: loads it for the port `diffusers`."""
