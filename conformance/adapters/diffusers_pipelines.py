"""diffusers' pipelines, assembled offline and watched from outside, behind the contract."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial, wraps
from itertools import count
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders import vae as vae_module
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conformance.adapters.diffusers_networks import (
    Tokenizer,
    build_unet,
    build_vae,
    prefixed,
    text_model,
)
from conformance.adapters.diffusers_schedulers import (
    LoadModule,
    MakeScheduler,
    drawn,
    dtype_of,
    make_scheduler,
    module_of,
)
from conformance.adapters.torch_module import Load, assign_weights
from conformance.adapters.torch_sampling import Observe, PipelineComponent
from conformance.sampling import (
    IMAGE_TO_IMAGE,
    INPAINT,
    TEXT_TO_IMAGE,
    step_name,
)

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

diffusers.utils.logging.set_verbosity_error()  # of cut prompts and absent safety checkers

_CLASSES = {
    TEXT_TO_IMAGE: ("pipeline_stable_diffusion", "StableDiffusionPipeline"),
    IMAGE_TO_IMAGE: ("pipeline_stable_diffusion_img2img", "StableDiffusionImg2ImgPipeline"),
    INPAINT: ("pipeline_stable_diffusion_inpaint", "StableDiffusionInpaintPipeline"),
}
"""Module and class by component."""


class Networks(nn.Module):
    """The three networks of a checkpoint, and what makes their scheduler and pipeline.

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
        self.load_module: LoadModule = importlib.import_module


def pipeline_component(
    task: str, variant: Variant, weights: Weights, dtype: torch.dtype, device: str = "cpu"
) -> PipelineComponent:
    """Return a pipeline of diffusers as a component; its `module` is `Networks`.

    Args:
        task: One of `sampling.PIPELINES`.
        variant: Architecture.
        weights: Of the whole checkpoint.
        dtype: What it computes in.
        device: Where.

    Returns:
        The component.
    """
    networks = Networks(variant, weights, dtype, device)
    return PipelineComponent(partial(_draw, task, networks), dtype, device, networks)


def _draw(task: str, networks: Networks, inputs: Mapping[str, Any], observe: Observe) -> None:
    """Run the pipeline as its users do, watching what goes into and comes out of its parts."""
    config = inputs["config"]
    scheduler = networks.make(config["scheduler"], config)
    pipe = _assemble(task, networks, scheduler)
    each = int(inputs.get("num_images_per_prompt", 1))
    watch = _Watch(pipe, inputs, each * len(inputs["prompt"]), observe)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have passed", FutureWarning)  # one image for all
        for context in (*_handed_over(task, pipe, inputs), *watch.methods(task)):
            stack.enter_context(context)
        for handle in watch.hooks(networks):
            stack.callback(handle.remove)
        image = pipe(
            inputs["prompt"],
            negative_prompt=inputs["negative_prompt"],
            guidance_scale=inputs["guidance_scale"],
            num_inference_steps=config["num_inference_steps"],
            num_images_per_prompt=each,
            eta=config.get("eta", 0.0),
            output_type="pt",
            callback_on_step_end=watch.latents,
            **_arguments(task, pipe, inputs),
        ).images
    observe("image", image)
    observe("image_uint8", _to_uint8(image))


def _assemble(task: str, networks: Networks, scheduler: Any) -> Any:
    """Put a pipeline together."""
    module, name = _CLASSES[task]
    pipelines = networks.load_module(f"diffusers.pipelines.stable_diffusion.{module}")
    pipe = getattr(pipelines, name)(
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
    return pipe


@cache
def _tokenizer() -> Any:
    return Tokenizer().tokenizer


def _arguments(task: str, pipe: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what only some of the pipelines are given."""
    height, width = (pipe.vae_scale_factor * side for side in inputs["latents"].shape[2:])
    size = {"height": height, "width": width}
    if task == TEXT_TO_IMAGE:
        return {"latents": inputs["latents"], **size}
    image = _unit(inputs["image"], inputs["latents"]).permute(0, 3, 1, 2)
    arguments = {"image": image, "strength": inputs["strength"]}
    if task == IMAGE_TO_IMAGE:
        return arguments
    return arguments | size | {"mask_image": _unit(inputs["mask"], inputs["latents"])[:, None]}


def _unit(pixels: Tensor, like: Tensor) -> Tensor:
    """Bring bytes to 0..1: in float32 at least, as pictures are read."""
    return pixels.to(torch.promote_types(like.dtype, torch.float32)) / 255


def _handed_over(task: str, pipe: Any, inputs: Mapping[str, Any]) -> Iterator[Any]:
    """Yield contexts in which what diffusers would draw is what the inputs hold."""
    yield drawn(module_of(pipe.scheduler), iter(inputs.get("noise", ())))
    if task == TEXT_TO_IMAGE:
        return
    yield drawn(module_of(pipe), iter((inputs["latents"],)))
    posterior = [inputs[name] for name in ("image_noise", "masked_image_noise") if name in inputs]
    if task == INPAINT and "masked_image_noise" not in inputs:
        posterior.append(torch.zeros_like(posterior[0]))  # the masked image is encoded for nothing
    yield drawn(vae_module, iter(posterior))


class _Watch:
    """Shows what a pipeline computes, as soon as it is computed: it may be overwritten then."""

    def __init__(self, pipe: Any, inputs: Mapping[str, Any], batch: int, observe: Observe) -> None:
        self.pipe = pipe
        self.inputs = inputs
        self.batch = batch
        self.observe = observe
        self.steps, self.calls, self.encodings = count(), count(), count()

    def methods(self, task: str) -> Iterator[Any]:
        """Yield contexts in which methods of the pipeline and its scheduler are watched."""
        pipe, scheduler = self.pipe, self.pipe.scheduler
        yield _around(pipe, "encode_prompt", self.encode_prompt)
        yield _around(pipe, "prepare_latents", self.prepare_latents)
        yield _around(scheduler, "step", self.step)
        if task != TEXT_TO_IMAGE:
            yield _around(pipe.image_processor, "preprocess", self.preprocess)
        if task == IMAGE_TO_IMAGE:
            yield _around(scheduler, "add_noise", self.add_noise)
        if task == INPAINT:
            yield _around(pipe, "_encode_vae_image", self.encode_image)
            yield _around(pipe, "prepare_mask_latents", self.prepare_mask)

    def hooks(self, networks: Networks) -> Iterator[RemovableHandle]:
        """Yield hooks on the networks."""
        names = iter(("input_ids", "negative_input_ids"))

        def text(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.observe(next(names), args[0] if args else kwargs["input_ids"])

        yield networks.clip[0].register_forward_pre_hook(text, with_kwargs=True)
        yield networks.unet.register_forward_hook(self.unet)
        yield networks.vae.post_quant_conv.register_forward_pre_hook(
            lambda _, args: self.observe("vae.post_quant_conv.input", args[0])
        )
        yield networks.vae.decoder.register_forward_hook(
            lambda _, __, out: self.observe("vae", out)
        )

    def encode_prompt(self, plain: Any, *args: Any, **kwargs: Any) -> Any:
        """Show the embeddings, repeated for several pictures of a prompt."""
        text, negative = plain(*args, **kwargs)
        self.observe("prompt_embeds", text)
        if negative is not None:
            self.observe("negative_prompt_embeds", negative)
        return text, negative

    def preprocess(self, plain: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Show the picture in -1..1."""
        image = plain(*args, **kwargs)
        self.observe("init_image", image)
        return image

    def add_noise(self, plain: Any, original: Tensor, *args: Any) -> Tensor:
        """Show a picture's latents where noise is added; other rows are copies of the first."""
        images = len(self.inputs["image"])
        own = original[:images].clone()
        self.observe("image_latents", own)
        return plain(own.repeat(len(original) // images, 1, 1, 1), *args)

    def encode_image(self, plain: Any, image: Tensor, generator: Any) -> Tensor:
        """Show the picture's latents, if they are wanted; then the masked picture and its own."""
        encoded = "image_noise" in self.inputs and not next(self.encodings)
        if encoded:
            latents = plain(image, generator)
            self.observe("image_latents", latents)
            return latents
        shown = "masked_image_noise" in self.inputs
        if shown:
            self.observe("masked_image", image)
        latents = plain(image, generator)
        if shown:
            self.observe("masked_image_latents", latents)
        return latents

    def prepare_mask(self, plain: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Show the mask of the latents; other rows are copies of the first."""
        mask, latents = plain(*args)
        self.observe("mask", mask[: len(self.inputs["mask"])])
        return mask, latents

    def prepare_latents(self, plain: Any, *args: Any, **kwargs: Any) -> Any:
        """Show what the loop begins with."""
        result = plain(*args, **kwargs)
        self.observe("initial_latents", result[0] if isinstance(result, tuple) else result)
        return result

    def unet(self, _: nn.Module, args: Any, output: Any) -> None:
        """Show the UNet's input, timestep and output; of a guided batch the halves."""
        k, sample, t = next(self.calls), args[0], args[1]
        self.observe(step_name("timestep", k), t)
        self.observe(step_name("model_input", k), sample[: self.batch])
        *uncond, text = output[0].split(self.batch)
        for half in uncond:
            self.observe(step_name("noise_pred_uncond", k), half)
        self.observe(step_name("noise_pred_text", k), text)

    def step(self, plain: Any, guided: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Show the guided noise that a step is given, and what it makes before it is blended."""
        k = next(self.steps)
        self.observe(step_name("noise_pred", k), guided)
        result = plain(guided, *args, **kwargs)
        self.observe(step_name("unblended", k), result[0])
        return result

    def latents(self, _pipe: Any, k: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Show the latents after a step."""
        self.observe(step_name("latents", k), values["latents"])
        return values


@contextmanager
def _around(owner: Any, name: str, watch: Callable[..., Any]) -> Iterator[None]:
    """Let `watch` be called in a method's stead, given the method."""
    plain = getattr(owner, name)

    @wraps(plain)  # pipelines look at the signature of a step
    def method(*args: Any, **kwargs: Any) -> Any:
        return watch(plain, *args, **kwargs)

    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)


def _to_uint8(image: Tensor) -> Tensor:
    """Round as diffusers does, which goes through float32; float64 images stay what they are."""
    array = image.cpu().permute(0, 2, 3, 1)
    array = (array if array.dtype is torch.float64 else array.float()).numpy()
    pictures = VaeImageProcessor.numpy_to_pil(array)
    return torch.tensor(np.stack([np.asarray(picture) for picture in pictures]))


def _load_pipeline(
    task: str, variant: Variant, weights: Weights, arithmetic: str, device: str
) -> PipelineComponent:
    return pipeline_component(task, variant, weights, dtype_of(arithmetic), device)


LOADERS: dict[str, Load] = {task: partial(_load_pipeline, task) for task in _CLASSES}
"""By component: loads it for the port `diffusers`."""
