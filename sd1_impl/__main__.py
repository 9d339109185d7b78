"""Draw a picture: ``python -m sd1_impl PROMPT``; ``--help`` says the rest.

With ``--image`` the picture begins with another, with ``--mask`` only a part of it is drawn anew.
"""
# ruff: noqa: T201 - a command line prints

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from sd1_impl.attention_kernels import KERNELS, use_kernel
from sd1_impl.checkpoint import load_pipeline
from sd1_impl.image_to_image import Image2Image
from sd1_impl.inpainting import Inpaint
from sd1_impl.packed import can_pack, pack
from sd1_impl.pipeline import Picture, Step, Text2Image
from sd1_impl.savings import use_saving
from sd1_impl.schedulers import SCHEDULERS, Scheduler
from sd1_impl.synthetic import synthetic_pipeline
from sd1_impl.tokenizer import CONTEXT_LENGTH
from sd1_weights.toy import TOY

PROMPT = "a photograph of an astronaut riding a horse"
DTYPES = ("float32", "bfloat16", "float16", "float64")
SIZE, TINY_SIZE, TOY_SIZE = (512, 512), (256, 256), (64, 64)
STRENGTH, MASKED_STRENGTH = 0.8, 1.0
GUIDANCE, TOY_GUIDANCE = 7.5, 2.0
EXIT_USAGE, EXIT_INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (--help lists the options)\n")


def main(argv: list[str] | None = None) -> int:
    """Draw one picture.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        0, or 2 for what cannot be done as asked, or 130 if interrupted.
    """
    arguments = _parser().parse_args(argv)
    if arguments.guidance is None:
        arguments.guidance = TOY_GUIDANCE if arguments.weights == TOY else GUIDANCE
    try:
        _draw(arguments)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        print(f"sd1_impl: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("sd1_impl: interrupted, nothing was saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sd1_impl",
        description="Draw a picture with Stable Diffusion v1. Without --weights everything runs, "
        "but with random weights: the picture means nothing.",
    )
    parser.add_argument("prompt", nargs="?", default=PROMPT, metavar="PROMPT", help=repr(PROMPT))
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=_weights,
        metavar="PATH",
        help="trained ones: a *.safetensors or *.ckpt of the original code, or a diffusers folder; "
        "toy: small ones that come with this package and draw shapes",
    )
    weights.add_argument(
        "--synthetic",
        choices=("tiny", "sd1", "tiny-inpaint", "sd1-inpaint"),
        help="random weights of this size; default tiny",
    )
    parser.add_argument(
        "--ema", action="store_true", help="the averaged weights of a file that has both"
    )
    parser.add_argument(
        "--files", default="", metavar="NAME", help="of a folder, *.NAME.safetensors: fp16, non_ema"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture to begin with")
    parser.add_argument(
        "--mask", type=Path, metavar="FILE", help="draw only where this picture is white"
    )
    parser.add_argument(
        "--strength",
        type=float,
        help="how much of the image is given up, above 0, to 1; default 0.8, with --mask 1",
    )
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to avoid")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps, default 50")
    parser.add_argument(
        "--guidance", type=float, help="default 7.5, with the toy's weights 2; 1 is off"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the noise, default 0")
    parser.add_argument(
        "--size",
        type=_size,
        help="WIDTHxHEIGHT, default 512x512, with tiny weights 256x256, with the toy's 64x64; an "
        "image is resized to it, default its own size",
    )
    parser.add_argument(
        "--scheduler", choices=SCHEDULERS, help="default the weights' own, which is SD v1's pndm"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument(
        "--attention",
        choices=KERNELS,
        default="fused",
        help="fused: torch's own (default); plain: all scores at once; sliced: a head's at a time",
    )
    parser.add_argument(
        "--tiled",
        action="store_true",
        help="decode, and encode, in tiles of 512x512, which changes a larger picture slightly: "
        "1024x1024 in float32 then takes 0.7 GiB beside the weights, not 2.8",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("picture.png"), help="default picture.png; is overwritten"
    )
    return parser


def _weights(text: str) -> Path:
    path = TOY if text == "toy" else Path(text)
    if not os.path.lexists(path):
        layouts = "a *.safetensors or *.ckpt of the original code, or a diffusers folder"
        raise argparse.ArgumentTypeError(f"{path} is missing: {layouts} is expected, or toy")
    return path


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2**63 - 1")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    sizes = re.fullmatch(r"(\d+)x(\d+)", text)
    if sizes is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 512x512")
    return int(sizes[1]), int(sizes[2])


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} is not there: {reason}") from error


def _say(line: str) -> None:
    print(line, flush=True)  # also in a log, before the work and not after it


def _draw(arguments: argparse.Namespace) -> None:
    """Load, draw, save; and say how."""
    image_module = _image_module(arguments.out)
    started = time.perf_counter()
    task, inputs = _task(arguments)
    pipeline = _pipeline(task, arguments)
    if arguments.scheduler:
        pipeline.scheduler = _scheduler(arguments.scheduler, pipeline.scheduler)
    for network in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        use_kernel(network, arguments.attention)
        if can_pack(getattr(torch, arguments.dtype), arguments.device):
            pack(network)
    if arguments.tiled:
        use_saving(pipeline.vae, "tiled")
    if isinstance(pipeline, Image2Image):
        height, width = inputs["image"].shape[1:3]
        run = pipeline.start_run(arguments.steps, inputs["strength"])
        begins = f"strength {inputs['strength']:g}, "
    else:
        height, width = inputs["height"], inputs["width"]
        run = pipeline.scheduler.start(arguments.steps)
        begins = ""
    calls = len(run.timesteps)
    _say(
        f"{type(pipeline.scheduler).__name__}, {arguments.steps} steps ({calls} calls of the UNet),"
        f" {begins}guidance {arguments.guidance:g}, seed {arguments.seed}, {width}x{height},"
        f" {arguments.dtype} on {arguments.device}"
    )
    _warn_of_long_texts(pipeline, arguments)
    with _progress(calls) as callback:
        picture = pipeline(
            arguments.prompt,
            negative_prompt=arguments.negative_prompt,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            generator=torch.Generator().manual_seed(arguments.seed),
            callback=callback,
            **inputs,
        )
    _refuse_overflow(picture, arguments.dtype)
    image_module.fromarray(picture.image_uint8[0].numpy()).save(arguments.out)
    _say(f"{arguments.out}, after {time.perf_counter() - started:.1f} s")


def _image_module(out: Path) -> Any:
    """Return Pillow's Image; find out now, and not after the work, whether a file can be saved."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("saving a picture needs Pillow: pip install pillow") from error
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {out} has no ending of a picture's, such as .png")
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: its folder has to exist and be writable")
    return Image


def _size_of_weights(arguments: argparse.Namespace) -> tuple[int, int]:
    """Return the size of picture that the weights are made for."""
    if arguments.weights is not None:
        return TOY_SIZE if arguments.weights == TOY else SIZE
    return SIZE if arguments.synthetic in ("sd1", "sd1-inpaint") else TINY_SIZE


def _task(arguments: argparse.Namespace) -> tuple[type[Text2Image], dict[str, Any]]:
    """Return the pipeline that the options ask for, and the arguments that only it has."""
    if arguments.image is None:
        for option in ("mask", "strength"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option} needs --image, a picture to begin with")
        width, height = arguments.size or _size_of_weights(arguments)
        return Text2Image, {"height": height, "width": width}
    strength = STRENGTH if arguments.mask is None else MASKED_STRENGTH
    if arguments.strength is not None:
        strength = arguments.strength
    image = _read_picture(arguments.image, "RGB", arguments.size)
    if arguments.mask is None:
        return Image2Image, {"image": image, "strength": strength}
    mask = _read_picture(arguments.mask, "L", arguments.size)
    return Inpaint, {"image": image, "mask": mask, "strength": strength}


def _read_picture(path: Path, mode: str, size: tuple[int, int] | None) -> torch.Tensor:
    """Return a file's pixels, ``(1, H, W, 3)`` of "RGB" or ``(1, H, W)`` of "L", grey."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file).convert(mode)
    if size is not None:
        # Between black and white a mask has no middle.
        way = Image.Resampling.NEAREST if mode == "L" else Image.Resampling.LANCZOS
        picture = picture.resize(size, way)
    return torch.from_numpy(np.array(picture))[None]


def _pipeline(task: type[Text2Image], arguments: argparse.Namespace) -> Text2Image:
    """Load or make the weights, and say which."""
    where = {"pipeline": task, "dtype": getattr(torch, arguments.dtype), "device": arguments.device}
    if arguments.weights is not None:
        choice = {"ema": arguments.ema, "files": arguments.files}
        pipeline = load_pipeline(arguments.weights, **choice, **where)
        _say(f"weights: {'the toy' if arguments.weights == TOY else arguments.weights}")
        return pipeline
    if arguments.ema or arguments.files:
        raise ValueError("--ema and --files choose among weights: they need --weights")
    size = arguments.synthetic or "tiny"
    _say(
        f"weights: random, of size {size}: the picture will mean nothing. "
        "--weights PATH takes trained ones, --weights toy draws coloured shapes"
    )
    return synthetic_pipeline(size, **where)


def _scheduler(name: str, like: Scheduler) -> Scheduler:
    """Return a scheduler with what another's numbers say of the training.

    A number that is only the other's default is left out, as in diffusers: each has its own
    ``timestep_spacing``.
    """
    config, scheduler = SCHEDULERS[name]
    names = {field.name for field in fields(config)}
    own = {
        field.name: getattr(like.config, field.name)
        for field in fields(like.config)
        if field.name in names and getattr(like.config, field.name) != field.default
    }
    return scheduler(config(**own))


def _warn_of_long_texts(pipeline: Text2Image, arguments: argparse.Namespace) -> None:
    most = CONTEXT_LENGTH - 2
    for text in (arguments.prompt, arguments.negative_prompt):
        ids = pipeline.tokenizer.encode(text)
        if len(ids) > most:
            lost = pipeline.tokenizer.decode(ids[most:])
            _say(f"a prompt of {len(ids)} tokens is cut after {most}: without {lost!r}")


def _refuse_overflow(picture: Picture, dtype: str) -> None:
    if not picture.decoded.isfinite().all():
        raise ValueError(
            f"the picture is not finite: {dtype} is too narrow for these weights, or they are not "
            "finite themselves; nothing was saved"
        )


@contextmanager
def _progress(calls: int) -> Iterator[Any]:
    """Yield a callback that shows how far the loop is: a bar, or off a terminal ten lines."""
    if sys.stderr.isatty():
        with tqdm(total=calls, unit="step") as bar:
            yield lambda _: bar.update()
        return

    def line(step: Step) -> None:
        done = step.index + 1
        if done * 10 // calls > step.index * 10 // calls:
            print(f"step {done} of {calls}", file=sys.stderr, flush=True)

    yield line


if __name__ == "__main__":
    sys.exit(main())
