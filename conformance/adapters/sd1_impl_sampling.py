"""The schedulers and the text-to-image pipeline of `sd1_impl`, behind the port contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from conformance.adapters import sd1_impl_networks as networks
from conformance.adapters.torch_module import DTYPES, Load, assign_weights
from conformance.adapters.torch_sampling import Observe, PipelineComponent, SchedulerComponent
from conformance.errors import UnsupportedError
from conformance.sampling import RUN, SCHEDULERS, TABLES, TEXT_TO_IMAGE, step_name
from sd1_impl.pipeline import Prompts, Text2Image
from sd1_impl.schedulers import SCHEDULERS as ALGORITHMS
from sd1_impl.tokenizer import CLIPTokenizer

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights


def make_scheduler(algorithm: str, config: Mapping[str, Any]) -> Any:
    """Build sd1_impl's scheduler.

    Args:
        algorithm: `ddpm`, `ddim` or `pndm`.
        config: Full configuration, as `sampling.settings` makes it.

    Returns:
        The scheduler.

    Raises:
        UnsupportedError: sd1_impl has no such setting, or not this value of it.
    """
    run = {"scheduler", *RUN} - {"eta"}  # eta is a setting of this DDIM, not of its step
    arguments = {name: value for name, value in config.items() if name not in run}
    settings, scheduler = cast("tuple[Any, Any]", ALGORITHMS[algorithm])
    unknown = sorted(set(arguments) - {field.name for field in fields(settings)})
    if unknown:
        raise UnsupportedError(f"sd1_impl's {algorithm} has no {', '.join(unknown)}")
    try:
        own = settings(**arguments)
    except ValueError as error:
        raise UnsupportedError(f"sd1_impl's {algorithm}: {error}") from error
    return scheduler(own)


class _Sampler:
    """One run, as `torch_sampling.Sampler`."""

    def __init__(self, algorithm: str, config: dict[str, Any]) -> None:
        self.scheduler = make_scheduler(algorithm, config)
        steps, begin = config["num_inference_steps"], config["begin_index"]
        self.run = self.scheduler.start(steps, begin_index=begin)
        self.timesteps = self.run.timesteps
        self.tables: dict[str, Any] = {name: getattr(self.scheduler, name) for name in TABLES}

    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        return self.scheduler.scale_model_input(sample, t, self.run)

    def step(self, model_output: Tensor, t: Any, sample: Tensor, noise: Tensor | None) -> Tensor:
        own = () if noise is None else (noise,)
        return self.scheduler.step(model_output, t, sample, self.run, *own)


def _load_scheduler(
    algorithm: str, _variant: Variant, _weights: Weights, arithmetic: str, device: str
) -> SchedulerComponent:
    return SchedulerComponent(partial(_Sampler, algorithm), DTYPES[arithmetic], device)


def load_pipeline(
    variant: Variant, weights: Weights, arithmetic: str, device: str
) -> PipelineComponent:
    """Load the text-to-image pipeline.

    Args:
        variant: Architecture.
        weights: Of the whole checkpoint.
        arithmetic: What it computes in.
        device: Where.

    Returns:
        The component.
    """
    parts = {
        "text_encoder": networks.build_text_encoder(variant),
        "unet": networks.build_unet(variant),
        "vae": networks.build_vae(variant),
    }
    dtype = DTYPES[arithmetic]
    module = nn.ModuleDict(
        {name: assign_weights(m, weights.part(name), dtype, device) for name, m in parts.items()}
    )
    return PipelineComponent(partial(_draw, CLIPTokenizer(), module), dtype, device, module)


class _Watched(Text2Image):
    """The pipeline, each of whose terms is shown at once: whoever looks may overwrite it."""

    def __init__(self, observe: Observe, *parts: Any) -> None:
        super().__init__(*parts)
        self.observe = observe
        self.calls = count()

    def encode_prompts(self, prompts: list[str], negative: list[str] | None) -> Prompts:
        text = super().encode_prompts(prompts, negative)
        self._show(vars(text))
        return text

    def initial_latents(self, noise: Tensor, run: Any) -> Tensor:
        latents = super().initial_latents(noise, run)
        self._show({"initial_latents": latents})
        return latents

    def predict_noise(
        self, model_input: Tensor, t: Any, text: Prompts
    ) -> tuple[Tensor | None, Tensor]:
        step = next(self.calls)
        kind = float if isinstance(t, float) else int
        told = {"timestep": model_input.new_tensor(t, dtype=kind), "model_input": model_input}
        self._show(told, step)
        uncond, conditional = super().predict_noise(model_input, t, text)
        self._show({"noise_pred_uncond": uncond, "noise_pred_text": conditional}, step)
        return uncond, conditional

    def decode(self, latents: Tensor) -> Tensor:
        decoded = super().decode(latents)
        self._show({"vae": decoded})
        return decoded

    def to_image(self, decoded: Tensor) -> Tensor:
        image = super().to_image(decoded)
        self._show({"image": image})
        return image

    def to_uint8(self, image: Tensor) -> Tensor:
        pixels = super().to_uint8(image)
        self._show({"image_uint8": pixels})
        return pixels

    def _show(self, terms: Mapping[str, Tensor | None], step: int | None = None) -> None:
        for name, value in terms.items():
            if value is not None:
                self.observe(name if step is None else step_name(name, step), value)


def _watch_steps(scheduler: Any, observe: Observe) -> None:
    """Show the guided noise that each step is given, and the latents that it makes."""
    plain, calls = scheduler.step, count()

    def step(model_output: Tensor, *arguments: Any) -> Tensor:
        k = next(calls)
        observe(step_name("noise_pred", k), model_output)
        latents = plain(model_output, *arguments)
        observe(step_name("latents", k), latents)
        return latents

    scheduler.step = step


def _draw(
    tokenizer: CLIPTokenizer, module: Any, inputs: Mapping[str, Any], observe: Observe
) -> None:
    """Run the pipeline and show its terms as they are computed."""
    config = inputs["config"]
    scheduler = make_scheduler(config["scheduler"], config)
    _watch_steps(scheduler, observe)
    parts = (module["text_encoder"], module["unet"], module["vae"])
    pipe = _Watched(observe, tokenizer, *parts, scheduler)
    watch = module["vae"].post_quant_conv.register_forward_pre_hook(
        lambda _, args: observe("vae.post_quant_conv.input", args[0])
    )
    factor = module["vae"].config.downsampling_factor
    height, width = (factor * side for side in inputs["latents"].shape[2:])
    try:
        pipe(
            inputs["prompt"],
            negative_prompt=inputs["negative_prompt"],
            num_inference_steps=config["num_inference_steps"],
            guidance_scale=inputs["guidance_scale"],
            height=height,
            width=width,
            latents=inputs["latents"],
            noise=inputs.get("noise"),
        )
    finally:
        watch.remove()


LOADERS: dict[str, Load] = {
    **{name: partial(_load_scheduler, name.partition("/")[2]) for name in SCHEDULERS},
    TEXT_TO_IMAGE: load_pipeline,
}
"""By component: loads it for the port `sd1_impl`."""
