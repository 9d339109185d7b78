"""Train the toy: the autoencoder first, then the UNet and the text encoder on its latents.

The losses are those of `sd1_impl.training`. Everything else is the plainest that works: Adam
(Kingma and Ba, 2015) with a rate that rises and then falls as a cosine, gradients cut to length 1,
and of UNet and text encoder the running average of the weights (EMA) is kept, as in SD v1's own
training. Every step draws from a generator of its own, so that a training that was interrupted
goes on as if it had not been.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sd1_impl.schedulers.noise_schedule import NoiseSchedule
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.toy.captions import TRAINED
from sd1_impl.toy.drawing import draw
from sd1_impl.toy.networks import standardise_latents
from sd1_impl.training import DenoisingLoss, autoencoder_loss, denoising_loss
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL, DiagonalGaussian

_WARM_UP = 100
_EMA = 0.998
_KEPT_EVERY, _TOLD_EVERY = 60.0, 10.0
"""Seconds."""

_KL_WEIGHT = 1e-6
_DRAWINGS = 24
"""Pictures of each caption that latents are made of."""

_BEGINNING, _WEIGHT = 700, 10.0
"""Timestep above which a picture's place is decided, and what such samples weigh in the end."""

_DROPPED = 0.1
"""Share of prompts that are left empty, for guidance (Ho and Salimans, 2022, algorithm 1)."""


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: Of its file of progress.
        steps: How many.
        rate: The highest learning rate.
        loss: Returns the loss of a batch, drawn from the generator.
    """

    name: str
    steps: int
    rate: float
    loss: Callable[[torch.Generator], Tensor]


def train(stage: Stage, networks: nn.ModuleDict, folder: Path) -> None:
    """Train networks, or go on where an earlier run stopped.

    Args:
        stage: What is trained for.
        networks: Changed; in the end they are the average over the last steps.
        folder: Where progress is kept, about once a minute.
    """
    average = AveragedModel(networks, multi_avg_fn=get_ema_multi_avg_fn(_EMA))
    optimizer = torch.optim.Adam(networks.parameters(), lr=stage.rate, betas=(0.9, 0.99))
    file = folder / f"{stage.name}.pt"
    first = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        first = state["step"]
        networks.load_state_dict(state["networks"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    progress = _Progress(stage, first)
    for step in range(first, stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * _schedule(step, stage.steps)
        loss = stage.loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(networks)
        if progress.tell(step + 1, float(loss.detach())) or step + 1 == stage.steps:
            state = {
                "step": step + 1,
                "networks": networks.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            temporary = file.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(file)
    networks.load_state_dict(average.module.state_dict())


def _schedule(step: int, steps: int) -> float:
    """Return the share of the highest learning rate."""
    warm = min(1.0, (step + 1) / _WARM_UP)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


class _Progress:
    """Says every few seconds how far a training is."""

    def __init__(self, stage: Stage, first: int) -> None:
        self.stage = stage
        self.first = first
        self.started = self.told = self.kept = time.monotonic()
        self.losses: list[float] = []

    def tell(self, done: int, loss: float) -> bool:
        """Print a line if it is time to; say whether it is time to keep what was learnt."""
        self.losses.append(loss)
        now = time.monotonic()
        if now - self.told > _TOLD_EVERY or done == self.stage.steps:
            left = (now - self.started) / (done - self.first) * (self.stage.steps - done)
            mean = sum(self.losses) / len(self.losses)
            line = f"{self.stage.name}: step {done} of {self.stage.steps}, loss {mean:.4f}"
            print(f"{line}, {left / 60:.1f} minutes left", file=sys.stderr, flush=True)  # noqa: T201
            self.told, self.losses = now, []
        if now - self.kept < _KEPT_EVERY:
            return False
        self.kept = now
        return True


def train_autoencoder(vae: AutoencoderKL, steps: int, batch: int, folder: Path) -> DiagonalGaussian:
    """Train the autoencoder, then give its latents mean 0 and standard deviation 1.

    Args:
        vae: Changed.
        steps: How many.
        batch: Pictures in each.
        folder: Where progress is kept.

    Returns:
        What the encoder knows of drawings of every trained caption, caption by caption: latents
        ``(208 * 24, 4, 8, 8)``, not scaled.
    """

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(TRAINED), (batch,), generator=generator).tolist()
        image = draw([TRAINED[i] for i in chosen], generator)
        noise = torch.randn(*_latents_shape(vae, image), generator=generator)
        return autoencoder_loss(vae, image, noise, _KL_WEIGHT).loss

    train(Stage("autoencoder", steps, 2e-3, loss), nn.ModuleDict({"vae": vae}), folder)
    posterior = encode_drawings(vae)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    standardise_latents(vae, posterior.sample(noise))
    return encode_drawings(vae)


@torch.no_grad()
def encode_drawings(vae: AutoencoderKL) -> DiagonalGaussian:
    """Encode drawings of every trained caption, caption by caption."""
    parts = []
    for number, caption in enumerate(TRAINED):
        generator = torch.Generator().manual_seed(number)
        parts.append(vae.encode(draw([caption] * _DRAWINGS, generator)))
    return DiagonalGaussian(
        torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts])
    )


def _latents_shape(vae: AutoencoderKL, image: Tensor) -> tuple[int, int, int, int]:
    factor = vae.config.downsampling_factor
    count, _, height, width = image.shape
    return count, vae.config.latent_channels, height // factor, width // factor


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the UNet and the text encoder learn from.

    Attributes:
        schedule: Of the noise.
        posterior: Of drawings, as `train_autoencoder` returns it.
        scaling_factor: What latents are multiplied by.
        batch: Latents in each step.
    """

    schedule: NoiseSchedule
    posterior: DiagonalGaussian
    scaling_factor: float
    batch: int


def train_denoiser(
    unet: UNet, text_encoder: CLIPTextEncoder, lesson: Lesson, steps: tuple[int, int], folder: Path
) -> None:
    """Train the UNet to find noise in latents, and the text encoder to help it.

    The plain loss says little of how a picture begins: where there is almost only noise, it is
    found whatever the picture is to be, but there its place is decided. So a second training has
    every other sample from those timesteps, and lets them weigh more.

    Args:
        unet: Changed.
        text_encoder: Changed; SD v1's came trained.
        lesson: What they learn from.
        steps: How many of the first training, and of the second.
        folder: Where progress is kept.
    """
    prompts = CLIPTokenizer()([*(caption.text for caption in TRAINED), ""])  # (209, 77)
    empty, posterior = len(TRAINED), lesson.posterior
    levels = lesson.schedule.config.num_train_timesteps

    def denoise(timesteps: Tensor, generator: torch.Generator) -> DenoisingLoss:
        rows = torch.randint(len(posterior.mean), (lesson.batch,), generator=generator)
        part = DiagonalGaussian(posterior.mean[rows], posterior.logvar[rows])
        latents, noise = (
            torch.randn(part.mean.shape, generator=generator) for _ in ("latents", "noise")
        )
        latents = part.sample(latents) * lesson.scaling_factor
        is_dropped = torch.rand(lesson.batch, generator=generator) < _DROPPED
        texts = torch.where(is_dropped, empty, rows // _DRAWINGS)
        distinct, place = texts.unique(return_inverse=True)  # each is encoded once
        states, _ = text_encoder(prompts[distinct])
        return denoising_loss(unet, lesson.schedule, latents, timesteps, noise, states[place])

    def plain(generator: torch.Generator) -> Tensor:
        timesteps = torch.randint(levels, (lesson.batch,), generator=generator)
        return denoise(timesteps, generator).loss

    def weighted(generator: torch.Generator) -> Tensor:
        timesteps = torch.randint(levels, (lesson.batch,), generator=generator)
        timesteps[::2] = _BEGINNING + timesteps[::2] * (levels - _BEGINNING) // levels
        found = denoise(timesteps, generator)
        errors = (found.model_output - found.target).square().mean(dim=(1, 2, 3))  # (B,)
        return torch.where(timesteps >= _BEGINNING, _WEIGHT * errors, errors).mean()

    networks = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    train(Stage("denoiser", steps[0], 2e-3, plain), networks, folder)
    train(Stage("beginning", steps[1], 1e-3, weighted), networks, folder)
