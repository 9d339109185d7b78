"""Make the toy: ``python -m sd1_impl.toy`` trains it, judges it and writes its file.

Interrupted, it goes on where it stopped when it is started again; ``--judge`` judges what is there.
"""
# ruff: noqa: T201 - a command line prints

import argparse
import sys
from pathlib import Path

import numpy as np

from sd1_impl.checkpoint import load_pipeline
from sd1_impl.scheduler_config import SD_V1_DDPM
from sd1_impl.schedulers import DDPMScheduler
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.toy.captions import CAPTIONS
from sd1_impl.toy.judging import contact_sheet, judge
from sd1_impl.toy.networks import Networks, parameter_count, untrained
from sd1_impl.toy.training import Lesson, train_autoencoder, train_denoiser
from sd1_weights.errors import CheckpointError
from sd1_weights.save import write_toy
from sd1_weights.toy import TOY

EXIT_WRONG, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
SEED = 0
_PICTURES, _LATENTS = 16, 64
"""In a step of the autoencoder, and in one of the UNet and the text encoder."""


def main(argv: list[str] | None = None) -> int:
    """Train, judge, write.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        0, or 1 if too many pictures are wrong, or 2 for what cannot be done, or 130 if interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        if not arguments.judge:
            _train(arguments)
        return _judge(arguments)
    except (CheckpointError, OSError) as error:
        print(f"sd1_impl.toy: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("sd1_impl.toy: interrupted; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sd1_impl.toy", description="Train the toy, judge it, and write its weights."
    )
    parser.add_argument("--judge", action="store_true", help="only judge the weights of --out")
    parser.add_argument(
        "--out", type=Path, default=TOY, metavar="FILE", help=f"default {TOY.name} of sd1_weights"
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="keep the pictures as a PNG")
    parser.add_argument(
        "--progress",
        type=Path,
        default=Path("scratch/toy"),
        metavar="FOLDER",
        help="where an interrupted training goes on from, default scratch/toy",
    )
    parser.add_argument("--autoencoder-steps", type=int, default=2000, metavar="N")
    parser.add_argument("--denoiser-steps", type=int, default=4000, metavar="N")
    parser.add_argument("--beginning-steps", type=int, default=2000, metavar="N")
    return parser


def _train(arguments: argparse.Namespace) -> None:
    """Train both stages and write the file."""
    folder = arguments.progress
    folder.mkdir(parents=True, exist_ok=True)
    ids = CLIPTokenizer()(["", *(caption.text for caption in CAPTIONS)]).unique()
    networks = untrained(ids, SEED)
    count = parameter_count(networks.text_encoder, networks.unet, networks.vae)
    print(f"{count:,} weights and {len(ids)} words; progress is kept in {folder}", flush=True)
    schedule = DDPMScheduler(SD_V1_DDPM)
    posterior = train_autoencoder(networks.vae, arguments.autoencoder_steps, _PICTURES, folder)
    lesson = Lesson(schedule, posterior, networks.vae.config.scaling_factor, _LATENTS)
    steps = arguments.denoiser_steps, arguments.beginning_steps
    train_denoiser(networks.unet, networks.text_encoder, lesson, steps, folder)
    write_toy(arguments.out, _weights(networks), ids.numpy())
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.2f} MiB", flush=True)


def _weights(networks: Networks) -> dict[str, np.ndarray]:
    return {
        f"{name}/{key}": tensor.numpy()
        for name in ("text_encoder", "unet", "vae")
        for key, tensor in getattr(networks, name).state_dict().items()
    }


def _judge(arguments: argparse.Namespace) -> int:
    judgement = judge(load_pipeline(arguments.out))
    print(judgement.text)
    if arguments.sheet is not None:
        from PIL import Image

        Image.fromarray(contact_sheet(judgement.pictures).numpy()).save(arguments.sheet)
        print(arguments.sheet)
    return 0 if judgement.passes else EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main())
