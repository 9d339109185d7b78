"""`sd1_impl` and diffusers on the same weights in memory, each called as its own users call it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.adapters import diffusers_networks as theirs
from conformance.adapters import diffusers_schedulers, sd1_impl_sampling
from conformance.adapters import sd1_impl_networks as ours
from conformance.adapters.bench_device import Device, counted
from conformance.adapters.torch_module import DTYPES
from conformance.bench.tasks import DECODER, ENCODER, GUIDANCE, STEPS, TEXT, UNET, Task
from conformance.errors import SuiteError
from conformance.sampling import TEXT_TO_IMAGE, settings
from conformance.variants import Variant
from sd1_impl import packed
from sd1_impl.pipeline import Prompts, Text2Image
from sd1_impl.tokenizer import CLIPTokenizer

__all__ = ["DTYPES", "Device", "Models", "Side", "counted", "distance"]

OURS, THEIRS = "sd1_impl", "diffusers"

EAGER, PACKED, COMPILED, GRAPHS = "eager", "packed", "compiled", "graphs"

BESIDE = {EAGER: EAGER, PACKED: EAGER, COMPILED: COMPILED, GRAPHS: GRAPHS}
"""By way in which sd1_impl computes: that of diffusers which it is compared with."""

_BUILDERS: dict[str, dict[str, Callable[[Variant], nn.Module]]] = {
    OURS: {"text_encoder": ours.build_text_encoder, "unet": ours.build_unet, "vae": ours.build_vae},
    THEIRS: {"text_encoder": theirs.text_model, "unet": theirs.build_unet, "vae": theirs.build_vae},
}

_COMPILERS: dict[str, dict[str, Any]] = {COMPILED: {}, GRAPHS: {"mode": "reduce-overhead"}}
"""By way: what torch.compile is told; `reduce-overhead` is that with CUDA graphs."""

_SIZES = 64
"""So many sizes of one network may be compiled; torch goes on without compiling after 8."""

_SEED = 0
_TIMESTEP = 500
_PROMPT = "a photograph of an astronaut riding a horse"


@dataclass(frozen=True)
class Side:
    """One implementation, about to compute one thing in one way.

    Attributes:
        name: The implementation.
        way: How: `eager`, `compiled`, ...
        run: What is timed.
        output: Computes the same and returns it, to be compared.
    """

    name: str
    way: str
    run: Callable[[], Any]
    output: Callable[[], Tensor]


class Models:
    """Both implementations of a size; every network of both has the same tensors for weights.

    Args:
        variant: Architecture; its weights are the recipe's.
        device: Where, and in which dtype.
    """

    def __init__(self, variant: Variant, device: Device) -> None:
        self.variant = variant
        self.device = device.device
        self.dtype = device.dtype
        self.ways = ways(device)
        self.state = cache(self._state)
        self.network = cache(self._network)

    def sides(self, task: Task, *, compiled: bool) -> list[Side]:
        """Return what computes a task, in every way that there is here.

        Args:
            task: What is computed.
            compiled: In the compiled ways, or in the others.
        """
        pairs = [(w, BESIDE[w]) for w in self.ways if (BESIDE[w] in _COMPILERS) is compiled]
        own = [self._side(OURS, way, task) for way, _ in pairs]
        return own + [self._side(THEIRS, way, task) for way in dict.fromkeys(b for _, b in pairs)]

    def reference(self, task: Task) -> Side:
        """Return diffusers, not compiled: what all outputs are compared with."""
        return self._side(THEIRS, EAGER, task)

    def _side(self, name: str, way: str, task: Task) -> Side:
        make = {
            TEXT: self._text_encoder,
            UNET: self._unet,
            DECODER: self._decoder,
            ENCODER: self._encoder,
            TEXT_TO_IMAGE: self._pipeline,
        }[task.component]
        run, output = make(name, way, task)
        return Side(name, way, torch.no_grad()(run), torch.no_grad()(output))

    def _state(self, folder: str) -> dict[str, Tensor]:
        weights = self.variant.weights(TEXT_TO_IMAGE).part(folder)
        return {
            name: torch.from_numpy(array).to(self.device, self.dtype)
            for name, array in weights.items()
        }

    def _network(self, folder: str, name: str, way: str) -> nn.Module:
        """Build a network on the shared weights."""
        network = _BUILDERS[name][folder](self.variant)
        named = theirs.prefixed(network) if (folder, name) == (TEXT, THEIRS) else network
        named.load_state_dict(self.state(folder), strict=True, assign=True)
        network.to(self.device).eval().requires_grad_(requires_grad=False)
        return prepare(network, way)

    def _random(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def _text_encoder(self, name: str, way: str, task: Task) -> tuple[Any, Any]:
        network = self.network(TEXT, name, way)
        ids = torch.from_numpy(_tokens([_PROMPT] * task.batch)).to(self.device)
        run = partial(network, ids)
        return run, lambda: run()[0]  # last_hidden_state, then pooler_output

    def _unet(self, name: str, way: str, task: Task) -> tuple[Any, Any]:
        network = self.network("unet", name, way)
        architecture = self.variant.architecture(UNET)
        sample = self._random(task.batch, architecture["in_channels"], task.latent, task.latent)
        context = self._random(task.batch, 77, architecture["cross_attention_dim"])
        # Both as in their pipelines; what is compiled gets a tensor from either.
        plain = name == OURS and way not in _COMPILERS
        t = _TIMESTEP if plain else torch.tensor(_TIMESTEP, device=self.device)
        if name == OURS:
            run = partial(network, sample, t, context)
            return run, run
        run = partial(network, sample, t, context, return_dict=False)
        return run, lambda: run()[0]

    def _decoder(self, name: str, way: str, task: Task) -> tuple[Any, Any]:
        vae: Any = self.network("vae", name, way)
        latents = self._random(task.batch, 4, task.latent, task.latent)
        if name == OURS:
            return partial(vae.decode, latents), partial(vae.decode, latents)

        def run() -> Tensor:
            image: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
            return image

        return run, run

    def _encoder(self, name: str, way: str, task: Task) -> tuple[Any, Any]:
        vae: Any = self.network("vae", name, way)
        image = self._random(task.batch, 3, task.pixels, task.pixels).clamp(-1, 1)
        if name == OURS:
            return partial(vae.encode, image), lambda: vae.encode(image).mean
        return partial(vae.encode, image), lambda: vae.encode(image).latent_dist.mean

    def _pipeline(self, name: str, way: str, task: Task) -> tuple[Any, Any]:
        text = self.network(TEXT, name, COMPILED if way == GRAPHS else way)  # two calls, both kept
        unet, vae = (self.network(folder, name, way) for folder in ("unet", "vae"))
        given = {
            "prompt": [_PROMPT] * task.batch,
            "negative_prompt": [""] * task.batch,
            "latents": self._random(task.batch, 4, task.latent, task.latent),
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "height": task.pixels,
            "width": task.pixels,
        }
        from diffusers import StableDiffusionPipeline, utils

        utils.logging.set_verbosity_error()  # of absent safety checkers
        config = settings("ddim", STEPS)
        if name == OURS:
            kind = _TensorTime if way in _COMPILERS else Text2Image
            scheduler = sd1_impl_sampling.make_scheduler("ddim", config)
            own: Any = kind(CLIPTokenizer(), text, unet, vae, scheduler)
            return partial(own, **given), lambda: own(**given).image
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=_tokenizer(),
            unet=unet,
            scheduler=diffusers_schedulers.make_scheduler("ddim", config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return partial(pipe, **given), lambda: pipe(**given, output_type="pt").images


@contextmanager
def compiling() -> Iterator[None]:
    """Let every size be compiled for itself, and nothing be found that was compiled before.

    What a first call takes then is what compiling takes.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with TemporaryDirectory(prefix="sd1-bench-") as folder:
        os.environ[name] = folder
        try:
            with torch._dynamo.config.patch(recompile_limit=_SIZES):  # noqa: SLF001 - torch's name
                yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def ways(device: Device) -> tuple[str, ...]:
    """Return the ways in which `sd1_impl` computes on a device, those of `BESIDE`."""
    if device.is_cuda:
        return (EAGER, COMPILED, GRAPHS)
    packs = device.dtype in packed.DTYPES and torch.backends.mkldnn.is_available()
    return (EAGER, *((PACKED,) if packs else ()), COMPILED)


def prepare(network: nn.Module, way: str) -> nn.Module:
    """Make a network compute in one of the ways, as users of its implementation would.

    Args:
        network: On its device, with its weights.
        way: One of `BESIDE`.
    """
    if way == PACKED:
        packed.pack(network)
    if way in _COMPILERS:
        # Encoding and decoding go by the forward pass of the halves alone.
        halves = [half for key, half in network.named_children() if key in {"encoder", "decoder"}]
        for part in halves or [network]:
            part.compile(dynamic=False, **_COMPILERS[way])
    return network


class _TensorTime(Text2Image):
    """The pipeline with compiled networks: for each number it is told one is compiled anew."""

    def predict_noise(
        self, model_input: Tensor, t: Any, text: Prompts
    ) -> tuple[Tensor | None, Tensor]:
        return super().predict_noise(model_input, torch.tensor(t, device=model_input.device), text)


@cache
def _tokenizer() -> Any:
    return theirs.Tokenizer().tokenizer


def _tokens(texts: list[str]) -> np.ndarray:
    return theirs.Tokenizer().run({"text": np.array(texts)})[0]["input_ids"]


def distance(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Compare the outputs of two sides.

    Args:
        found: Of one side.
        wanted: Of the reference, of the same shape.
        dtype: What both compute in.

    Returns:
        Relative L2 distance, and how large it may be: half the digits of the dtype have to agree.

    Raises:
        SuiteError: The shapes differ, or a value of the reference is not finite.
    """
    if found.shape != wanted.shape:
        message = f"the outputs have the shapes {tuple(found.shape)} and {tuple(wanted.shape)}"
        raise SuiteError(message)
    a, b = found.double().cpu(), wanted.double().cpu()
    if not bool(torch.isfinite(b).all()):
        message = f"the reference is not finite in {str(dtype).removeprefix('torch.')}"
        raise SuiteError(message)
    error = float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))
    return error, float(torch.finfo(dtype).eps ** 0.5)
