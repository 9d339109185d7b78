"""The schedulers and the text-to-image pipeline of `sd1_impl`, behind the port contract."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from conformance.adapters import sd1_impl_networks as networks
from conformance.adapters.torch_module import DTYPES, Load, assign_weights
from conformance.adapters.torch_sampling import Observe, PipelineComponent, SchedulerComponent
from conformance.errors import UnsupportedError
from conformance.sampling import RUN, SCHEDULERS, TABLES, TEXT_TO_IMAGE, step_name
from sd1_impl.pipeline import Picture, Step, Text2Image
from sd1_impl.schedulers import SCHEDULERS as ALGORITHMS
from sd1_impl.tokenizer import CLIPTokenizer

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

_IMPLEMENTED = {"timestep_spacing": "leading", "skip_prk_steps": True}
"""Settings that `sd1_impl` does not have, and the value that it implements."""


def make_scheduler(algorithm: str, config: Mapping[str, Any]) -> Any:
    """Build sd1_impl's scheduler.

    Args:
        algorithm: `ddpm`, `ddim` or `pndm`.
        config: Full configuration, as `sampling.settings` makes it.

    Returns:
        The scheduler.

    Raises:
        UnsupportedError: A setting has a value that sd1_impl does not implement.
    """
    for name, value in _IMPLEMENTED.items():
        if config.get(name, value) != value:
            message = f"sd1_impl's {algorithm} has {name} {value!r} only, not {config[name]!r}"
            raise UnsupportedError(message)
    run = {"scheduler", *RUN} - {"eta"}  # eta is a setting of this DDIM, not of its step
    arguments = {k: v for k, v in config.items() if k not in run and k not in _IMPLEMENTED}
    settings, scheduler = cast("tuple[Any, Any]", ALGORITHMS[algorithm])
    return scheduler(settings(**arguments))


class _Sampler:
    """One run, as `torch_sampling.Sampler`."""

    def __init__(self, algorithm: str, config: dict[str, Any]) -> None:
        self.scheduler = make_scheduler(algorithm, config)
        self.run = self.scheduler.start(config["num_inference_steps"])
        self.timesteps = self.run.timesteps[config["begin_index"] :]
        self.tables: dict[str, Any] = {name: getattr(self.scheduler, name) for name in TABLES}

    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        return self.scheduler.scale_model_input(sample, t)

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


def _draw(
    tokenizer: CLIPTokenizer, module: Any, inputs: Mapping[str, Any], observe: Observe
) -> None:
    """Run the pipeline; what its callback and its picture hold is all that there is to see."""
    config = inputs["config"]
    scheduler = make_scheduler(config["scheduler"], config)
    pipe = Text2Image(tokenizer, module["text_encoder"], module["unet"], module["vae"], scheduler)
    watch = module["vae"].post_quant_conv.register_forward_pre_hook(
        lambda _, args: observe("vae.post_quant_conv.input", args[0])
    )
    factor = module["vae"].config.downsampling_factor
    height, width = (factor * side for side in inputs["latents"].shape[2:])
    try:
        picture = pipe(
            inputs["prompt"],
            negative_prompt=inputs["negative_prompt"],
            num_inference_steps=config["num_inference_steps"],
            guidance_scale=inputs["guidance_scale"],
            height=height,
            width=width,
            latents=inputs["latents"],
            noise=inputs.get("noise"),
            callback=partial(_observe_step, observe),
        )
    finally:
        watch.remove()
    _observe_picture(observe, picture)


def _observe_step(observe: Observe, step: Step) -> None:
    terms = {name: value for name, value in vars(step).items() if isinstance(value, Tensor)}
    terms["timestep"] = step.latents.new_tensor(step.timestep, dtype=int)
    for name, value in terms.items():
        observe(step_name(name, step.index), value)


def _observe_picture(observe: Observe, picture: Picture) -> None:
    last = {"latents": None, "decoded": "vae"}  # `latents#k` has been seen; names of the contract
    for name, value in vars(picture).items():
        known_as = last.get(name, name)
        if value is not None and known_as is not None:
            observe(known_as, value)


LOADERS: dict[str, Load] = {
    **{name: partial(_load_scheduler, name.partition("/")[2]) for name in SCHEDULERS},
    TEXT_TO_IMAGE: load_pipeline,
}
"""By component: loads it for the port `sd1_impl`."""
