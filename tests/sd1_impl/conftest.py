"""What the comparisons with the references share."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sd1_impl import (
    EulerAncestralDiscreteScheduler,
    Image2Image,
    Inpaint,
    Picture,
    Text2Image,
    synthetic_pipeline,
)
from sd1_impl.schedulers import NoiseSchedule
from sd1_impl.tokenizer import MERGES_FILE

THEIR_PIPELINES = {
    Text2Image: "StableDiffusionPipeline",
    Image2Image: "StableDiffusionImg2ImgPipeline",
    Inpaint: "StableDiffusionInpaintPipeline",
}
ROUNDING = {torch.float64: 5e-13, torch.float32: 5e-5}  # float32: that of diffusers' tables


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a second thread, which here is another worker's core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def _calls(model: nn.Module) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    record: list[tuple[str, Tensor, Tensor]] = []

    def hook(path: str) -> Callable:
        def note(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            out = output if isinstance(output, Tensor) else output[0]
            record.append((path, first.clone(), out.clone()))

        return note

    handles = [
        module.register_forward_hook(hook(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path and (path == "time_proj" or any(True for _ in module.parameters()))
    ]
    yield record
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="session")
def calls() -> Callable:
    """Collect (path, first input, first output) of modules with parameters and `time_proj`."""
    return _calls


@pytest.fixture(scope="session")
def randomise() -> Callable:
    """Move every parameter of a model at random, far enough to matter everywhere."""

    def move(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise.to(parameter.dtype))
        return model

    return move


@pytest.fixture(scope="session")
def their_tokenizer():
    """Transformers' tokenizer, as the published checkpoint of SD v1 configures it."""
    transformers = pytest.importorskip("transformers")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(x + "</w>" for x in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@pytest.fixture(scope="session")
def tiny() -> Text2Image:
    """A small pipeline with random weights; not to be changed."""
    return synthetic_pipeline("tiny")


@pytest.fixture(scope="session")
def published_configs() -> dict[str, dict]:
    """The JSON files of the published SD v1-5, by path."""
    return json.loads(Path(__file__).with_name("published_configs.json").read_text())


@pytest.fixture(scope="session")
def weights_folder(tiny: Text2Image, published_configs: dict, tmp_path_factory) -> Path:
    """The small pipeline in the published layout, with its old names; not to be changed."""
    folder = tmp_path_factory.mktemp("weights")
    widths = {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 8}
    changes = {
        "unet/config.json": widths | {"cross_attention_dim": 64},
        "vae/config.json": widths,
        "text_encoder/config.json": {
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    }
    for name, config in published_configs.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(config | changes.get(name, {})))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = tiny.vae.state_dict()
    for new, name in old.items():
        vae = {key.replace(f".{new}.", f".{name}."): vae[key] for key in vae}
    text = tiny.text_encoder.state_dict()
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tiny.unet.state_dict(), folder / "unet/diffusion_pytorch_model.safetensors")
    save_file(vae, folder / "vae/diffusion_pytorch_model.safetensors")
    save_file(text, folder / "text_encoder/model.safetensors")
    return folder


def _their_scheduler(ours: NoiseSchedule, dtype: torch.dtype) -> Any:
    """Return diffusers' scheduler of this config; in float64 with our tables."""
    diffusers = pytest.importorskip("diffusers")
    left_out = {"eta", "min_variance"}
    if isinstance(ours, EulerAncestralDiscreteScheduler):
        left_out.add("use_karras_sigmas")
    config = {k: v for k, v in vars(ours.config).items() if k not in left_out}
    theirs = getattr(diffusers, type(ours).__name__)(**config)
    if dtype == torch.float64:
        theirs.alphas_cumprod = torch.from_numpy(ours.alphas_cumprod.copy())
        theirs.final_alpha_cumprod = torch.tensor(ours.final_alpha_cumprod, dtype=dtype)
    return theirs


def _their_networks(ours: Text2Image) -> dict[str, nn.Module]:
    """Return diffusers' networks with our weights, and in float64 our sinusoids of the time."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    unet, vae, text = ours.unet.config, ours.vae.config, ours.text_encoder.config
    their_unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        in_channels=unet.in_channels,
        block_out_channels=unet.block_out_channels,
        attention_head_dim=unet.num_heads,
        cross_attention_dim=unet.cross_attention_dim,
        norm_num_groups=unet.norm_num_groups,
    )
    levels = len(vae.block_out_channels)
    their_vae = diffusers.AutoencoderKL(
        block_out_channels=vae.block_out_channels,
        layers_per_block=vae.layers_per_block,
        norm_num_groups=vae.norm_num_groups,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    their_text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_layers,
            num_attention_heads=text.num_heads,
        )
    )
    their_unet.load_state_dict(ours.unet.state_dict())
    their_vae.load_state_dict(ours.vae.state_dict())
    state = ours.text_encoder.state_dict()
    their_text_encoder.load_state_dict({k.removeprefix("text_model."): state[k] for k in state})
    dtype = ours.unet.conv_in.weight.dtype
    their_unet.time_proj.register_forward_hook(
        lambda _, args, __: ours.unet.time_proj(args[0].to(dtype))
    )
    theirs = {"text_encoder": their_text_encoder, "unet": their_unet, "vae": their_vae}
    return {name: network.to(dtype) for name, network in theirs.items()}


@pytest.fixture(scope="session")
def pair(tiny: Text2Image, their_tokenizer) -> Callable[..., tuple[Text2Image, Any]]:
    """Build one of our pipelines and diffusers' of the same weights.

    The networks are shared by all pairs of a size and a dtype, and are not to be changed.
    """
    diffusers = pytest.importorskip("diffusers")

    @cache
    def networks(size: str, dtype: torch.dtype) -> tuple[Text2Image, dict[str, nn.Module]]:
        is_tiny = (size, dtype) == ("tiny", torch.float32)
        ours = tiny if is_tiny else synthetic_pipeline(size, pipeline=Inpaint, dtype=dtype)
        return ours, _their_networks(ours)

    def build(
        kind: type[Text2Image],
        size: str = "tiny",
        *,
        dtype: torch.dtype = torch.float32,
        scheduler: NoiseSchedule | None = None,
    ) -> tuple[Text2Image, Any]:
        parts, theirs = networks(size, dtype)
        scheduler = scheduler or parts.scheduler
        their_pipeline = getattr(diffusers, THEIR_PIPELINES[kind])(
            **theirs,
            tokenizer=their_tokenizer,
            scheduler=diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        their_pipeline.set_progress_bar_config(disable=True)
        # Only now: a pipeline is not built without changing other settings to SD v1's.
        their_pipeline.scheduler = _their_scheduler(scheduler, dtype)
        ours = kind(parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, scheduler)
        return ours, their_pipeline

    return build


def _assert_close(got: Tensor, wanted: Tensor, what: str) -> None:
    """Compare by relative L2 distance, at the rounding of the dtype."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), what
    assert float((got - wanted).norm() / wanted.norm()) < ROUNDING[got.dtype], what


def _for_diffusers(image: Tensor | None = None, mask: Tensor | None = None) -> dict[str, Any]:
    """Return an image and a mask as diffusers' users give them."""
    from PIL import Image

    if image is None:
        return {}
    images = {"image": [Image.fromarray(pixels) for pixels in image.numpy()]}
    if mask is not None:
        images["mask_image"] = [Image.fromarray(grey) for grey in mask.numpy()]
        images["height"], images["width"] = image.shape[1:3]
    return images


@pytest.fixture(scope="session")
def same_pictures() -> Callable[..., Picture]:
    """Run a pair from the same seed; compare every step's tensors, pixels, and draws."""

    def same(
        both: tuple[Text2Image, Any],
        prompt: str | list[str],
        *,
        seed: int = 0,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        **arguments: Any,
    ) -> Picture:
        ours, theirs = both
        own = {name: t for name, t in (("image", image), ("mask", mask)) if t is not None}
        names = ["latent_model_input", "noise_pred", "latents"]
        if arguments["guidance_scale"] > 1:
            names += ["noise_pred_uncond", "noise_pred_text"]
        theirs._callback_tensor_inputs = names
        wanted, got = [], []
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        their_image = theirs(
            prompt,
            generator=generators[0],
            eta=getattr(ours.scheduler.config, "eta", 0.0),
            output_type="pt",
            callback_on_step_end=lambda _, *step: wanted.append(step) or {},
            callback_on_step_end_tensor_inputs=names,
            **_for_diffusers(**own),
            **arguments,
        ).images
        picture = ours(prompt, generator=generators[1], callback=got.append, **own, **arguments)

        assert len(got) == len(wanted)
        for step, (index, timestep, tensors) in zip(got, wanted, strict=True):
            assert step.index == index
            assert step.timestep == pytest.approx(float(timestep), abs=2e-3)  # Karras, float32
            model_input = tensors.pop("latent_model_input")[: len(step.latents)]
            _assert_close(step.model_input, model_input, f"step {index}, model_input")
            for name, tensor in tensors.items():
                _assert_close(getattr(step, name), tensor, f"step {index}, {name}")
            assert (step.noise_pred_uncond is None) == ("noise_pred_uncond" not in names)
        _assert_close(picture.latents, wanted[-1][2]["latents"], "latents")
        _assert_close(picture.image, their_image, "image")
        pixels = 255 * theirs.image_processor.pt_to_numpy(their_image)
        off = abs(picture.image_uint8.numpy() - pixels.round())
        assert off.max() <= 1
        assert off.mean() < 2e-3
        assert torch.equal(generators[0].get_state(), generators[1].get_state())
        return picture

    return same


@pytest.fixture
def float32_draws(monkeypatch) -> None:
    """Let float64 noise be drawn in float32, as here; diffusers draws in the model's dtype."""
    draw = torch.randn

    def randn(*size: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return draw(*size, dtype=torch.float32, **options).to(dtype)

    monkeypatch.setattr(torch, "randn", randn)
