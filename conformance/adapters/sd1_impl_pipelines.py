"""The pipelines of `sd1_impl`, each of whose terms is shown, behind the port contract."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from conformance.adapters import sd1_impl_networks as networks
from conformance.adapters import sd1_impl_sampling as sampling
from conformance.adapters.torch_module import DTYPES, Load, assign_weights
from conformance.adapters.torch_sampling import Observe, PipelineComponent
from conformance.sampling import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE, step_name
from sd1_impl.image_to_image import Image2Image
from sd1_impl.inpainting import Inpaint
from sd1_impl.pipeline import Prompts, Text2Image
from sd1_impl.tokenizer import CLIPTokenizer

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights


def load_pipeline(
    task: str, variant: Variant, weights: Weights, arithmetic: str, device: str
) -> PipelineComponent:
    """Load a pipeline.

    Args:
        task: One of `sampling.PIPELINES`.
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
    draw = partial(_draw, _WATCHED[task], CLIPTokenizer(), module)
    return PipelineComponent(draw, dtype, device, module)


class _Watched(Text2Image):
    """The pipeline, each of whose terms is shown at once: whoever looks may overwrite it."""

    after_step = "latents"

    def __init__(self, observe: Observe, *parts: Any) -> None:
        super().__init__(*parts)
        self.observe = observe
        self.calls = count()

    def encode_prompts(self, prompts: list[str], negative: list[str] | None) -> Prompts:
        text = super().encode_prompts(prompts, negative)
        ids = (text.input_ids, text.negative_input_ids)
        self._show(dict(zip(("input_ids", "negative_input_ids"), ids, strict=True)))
        return text

    def repeat_prompts(self, text: Prompts, count: int) -> Prompts:
        text = super().repeat_prompts(text, count)
        names = ("prompt_embeds", "negative_prompt_embeds")
        self._show({name: getattr(text, name) for name in names})
        return text

    def initial_latents(self, noise: Tensor, run: Any) -> Tensor:
        return self._shown("initial_latents", super().initial_latents(noise, run))

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
        return self._shown("vae", super().decode(latents))

    def to_image(self, decoded: Tensor) -> Tensor:
        return self._shown("image", super().to_image(decoded))

    def to_uint8(self, image: Tensor) -> Tensor:
        return self._shown("image_uint8", super().to_uint8(image))

    def _shown(self, name: str, value: Tensor) -> Tensor:
        self.observe(name, value)
        return value

    def _show(self, terms: Mapping[str, Tensor | None], step: int | None = None) -> None:
        for name, value in terms.items():
            if value is not None:
                self.observe(name if step is None else step_name(name, step), value)


class _WatchedEdit(_Watched, Image2Image):
    """The same of image to image."""

    def normalize(self, image: Tensor) -> Tensor:
        return self._shown("init_image", super().normalize(image))

    def encode_image(self, init_image: Tensor, noise: Tensor) -> Tensor:
        return self._shown("image_latents", super().encode_image(init_image, noise))

    def noisy_latents(self, image_latents: Tensor, noise: Tensor, run: Any) -> Tensor:
        return self._shown("initial_latents", super().noisy_latents(image_latents, noise, run))


class _WatchedInpainting(_WatchedEdit, Inpaint):
    """The same of inpainting, where what is known may be put back after a step."""

    def __init__(self, observe: Observe, *parts: Any) -> None:
        super().__init__(observe, *parts)
        self.blends = count()
        if self.unet.config.in_channels == self.vae.config.latent_channels:
            self.after_step = "unblended"

    def latent_mask(self, redrawn: Tensor) -> Tensor:
        return self._shown("mask", super().latent_mask(redrawn))

    def mask_image(self, init_image: Tensor, redrawn: Tensor) -> Tensor:
        return self._shown("masked_image", super().mask_image(init_image, redrawn))

    def encode_masked_image(self, masked_image: Tensor, noise: Tensor) -> Tensor:
        latents = super().encode_masked_image(masked_image, noise)
        return self._shown("masked_image_latents", latents)

    def blend(self, latents: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        name = step_name("latents", next(self.blends))
        return self._shown(name, super().blend(latents, known, mask))


_WATCHED: dict[str, type[_Watched]] = {
    TEXT_TO_IMAGE: _Watched,
    IMAGE_TO_IMAGE: _WatchedEdit,
    INPAINT: _WatchedInpainting,
}


def _watch_steps(scheduler: Any, after_step: str, observe: Observe) -> None:
    """Show the guided noise that each step is given, and the latents that it makes."""
    plain, calls = scheduler.step, count()

    def step(model_output: Tensor, *arguments: Any) -> Tensor:
        k = next(calls)
        observe(step_name("noise_pred", k), model_output)
        latents = plain(model_output, *arguments)
        observe(step_name(after_step, k), latents)
        return latents

    scheduler.step = step


_OWN_SETTINGS = ("prompt", "config")


def _draw(
    kind: type[_Watched],
    tokenizer: CLIPTokenizer,
    module: Any,
    inputs: Mapping[str, Any],
    observe: Observe,
) -> None:
    """Run the pipeline and show its terms as they are computed."""
    config = inputs["config"]
    scheduler = sampling.make_scheduler(config["scheduler"], config)
    parts = (module["text_encoder"], module["unet"], module["vae"])
    pipe = kind(observe, tokenizer, *parts, scheduler)
    _watch_steps(scheduler, pipe.after_step, observe)
    given = {name: value for name, value in inputs.items() if name not in _OWN_SETTINGS}
    if kind is _Watched:
        factor = module["vae"].config.downsampling_factor
        height, width = (factor * side for side in inputs["latents"].shape[2:])
        given |= {"height": height, "width": width}
    watch = module["vae"].post_quant_conv.register_forward_pre_hook(
        lambda _, args: observe("vae.post_quant_conv.input", args[0])
    )
    try:
        pipe(inputs["prompt"], num_inference_steps=config["num_inference_steps"], **given)
    finally:
        watch.remove()


LOADERS: dict[str, Load] = {task: partial(load_pipeline, task) for task in _WATCHED}
"""By component: loads it for the port `sd1_impl`."""
