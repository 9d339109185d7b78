"""The toy: its world, its training and what it has learnt."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sd1_impl.checkpoint import load_network, load_pipeline
from sd1_impl.scheduler_config import SD_V1_DDPM
from sd1_impl.schedulers import DDPMScheduler
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.toy.__main__ import main
from sd1_impl.toy.captions import CAPTIONS, COLOURS, HELD_OUT, PLACES, SHAPES, SIZES, TRAINED
from sd1_impl.toy.drawing import PIXELS, draw
from sd1_impl.toy.judging import Judgement, contact_sheet, judge
from sd1_impl.toy.networks import Networks, standardise_latents, untrained
from sd1_impl.toy.reading import read
from sd1_impl.toy.training import Lesson, Stage, train, train_denoiser
from sd1_impl.vae import DiagonalGaussian
from sd1_weights.toy import TOY

MOST_BYTES = 6 * 2**20


@pytest.fixture(scope="module")
def networks() -> Networks:
    """Return networks that no training has touched."""
    return untrained(CLIPTokenizer()(["", *(c.text for c in CAPTIONS)]).unique(), seed=3)


def test_captions() -> None:
    """Held-out captions are not trained on, and leave every word, and most pairs, to be learnt."""
    assert len({caption.text for caption in CAPTIONS}) == 240
    assert (len(HELD_OUT), len(TRAINED)) == (32, 208)
    assert not set(HELD_OUT) & set(TRAINED)
    for field, words in (
        ("colour", COLOURS),
        ("shape", SHAPES),
        ("size", SIZES),
        ("place", PLACES),
    ):
        for part in (HELD_OUT, TRAINED):
            assert {getattr(caption, field) for caption in part} == set(words)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_what_is_drawn_is_read(seed: int | None) -> None:
    """The rule reads every caption off its own drawing."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    pictures = draw(CAPTIONS, generator)
    assert pictures.shape == (len(CAPTIONS), 3, PIXELS, PIXELS)
    assert [read(picture) for picture in pictures] == list(CAPTIONS)


def test_a_noisy_drawing_is_read() -> None:
    """A little noise changes nothing that is read."""
    generator = torch.Generator().manual_seed(0)
    pictures = draw(CAPTIONS, generator)
    pictures += 0.15 * torch.randn(pictures.shape, generator=generator)
    assert [read(picture) for picture in pictures] == list(CAPTIONS)


def test_nothing_is_read_off_an_empty_picture() -> None:
    """A picture of the ground alone shows nothing."""
    assert read(draw(CAPTIONS[:1])[0, :, :1, :1].expand(3, PIXELS, PIXELS)) is None


def test_a_wrong_picture_is_counted_as_wrong() -> None:
    """Drawings of other captions are wrong in what differs, and in nothing else."""
    pictures = draw(HELD_OUT)
    seen = tuple(read(picture) for picture in pictures.flip(1))  # red is blue
    judgement = Judgement(pictures, HELD_OUT, seen)
    assert all(judgement.right("shape", "size", "place"))
    assert not judgement.passes
    assert "shows 'a " in judgement.text


def test_latents_are_standardised(networks: Networks) -> None:
    """Means and deviations of scaled latents are 0 and 1; decoded pictures stay what they were."""
    vae = networks.vae
    image = draw(CAPTIONS[:8])
    with torch.no_grad():
        before = vae.encode(image)
        decoded = vae.decoder(vae.post_quant_conv(before.mean))
        deviation = (0.5 * before.logvar).exp() / before.mean.std(dim=(0, 2, 3), keepdim=True)
        standardise_latents(vae, before.mean)
        after = vae.encode(image)
        again = vae.decode(after.mean * vae.config.scaling_factor)
    scaled = after.mean * vae.config.scaling_factor
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(4))
    torch.testing.assert_close(again, decoded, atol=1e-4, rtol=1e-4)
    own = (0.5 * after.logvar).exp() * vae.config.scaling_factor
    torch.testing.assert_close(own, deviation)


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, then two more of other networks, are four steps."""
    monkeypatch.setattr("sd1_impl.toy.training._KEPT_EVERY", 0.0)
    whole, halves = nn.Linear(3, 3), nn.Linear(3, 3)
    halves.load_state_dict(whole.state_dict())

    def stage(network: nn.Linear, steps: int) -> Stage:
        def loss(generator: torch.Generator) -> torch.Tensor:
            return network(torch.randn(5, 3, generator=generator)).square().mean()

        return Stage("linear", steps, 1e-2, loss)

    first, second = tmp_path / "whole", tmp_path / "halves"
    for folder in (first, second):
        folder.mkdir()
    train(stage(whole, 4), nn.ModuleDict({"own": whole}), first)
    with pytest.raises(KeyboardInterrupt):
        train(_stopped(stage(halves, 4), 2), nn.ModuleDict({"own": halves}), second)
    other = nn.Linear(3, 3)
    train(stage(other, 4), nn.ModuleDict({"own": other}), second)
    assert torch.equal(other.weight, whole.weight)


def _stopped(stage: Stage, after: int) -> Stage:
    """Return a stage that is interrupted after some steps."""
    done = 0

    def loss(generator: torch.Generator) -> torch.Tensor:
        nonlocal done
        if done == after:
            raise KeyboardInterrupt
        done += 1
        return stage.loss(generator)

    return Stage(stage.name, stage.steps, stage.rate, loss)


def test_the_denoiser_learns(networks: Networks, tmp_path: Path) -> None:
    """A few steps change the UNet and the rows of known words, and no other row."""
    table = networks.text_encoder.text_model.embeddings.token_embedding.weight
    zeros = (table == 0).all(dim=1)
    known = table[~zeros].detach().clone()
    shape = (len(TRAINED) * 24, 4, 8, 8)
    posterior = DiagonalGaussian(torch.randn(shape), torch.full(shape, -9.0))
    lesson = Lesson(DDPMScheduler(SD_V1_DDPM), posterior, 0.18215, batch=4)
    train_denoiser(networks.unet, networks.text_encoder, lesson, (2, 2), tmp_path)
    assert networks.unet.conv_out.weight.abs().max() > 0
    assert torch.equal((table == 0).all(dim=1), zeros)
    assert not torch.equal(table[~zeros], known)


def test_the_file_is_small() -> None:
    """The weights take at most 6 MiB of the repository."""
    assert TOY.stat().st_size <= MOST_BYTES


def test_the_toy_draws_what_it_has_never_read() -> None:
    """Colour and shape of at least 28 of 32 held-out prompts are right, from the shipped file."""
    judgement = judge(load_pipeline(TOY))
    assert judgement.passes, judgement.text


def test_latents_of_the_shipped_file() -> None:
    """Its encoder's latents, scaled, have about the mean and deviation that SD v1's have."""
    vae = load_network("vae", TOY)
    with torch.no_grad():
        posterior = vae.encode(draw(CAPTIONS))
    scaled = posterior.mean * 0.18215
    own = (0.5 * posterior.logvar).exp() * 0.18215
    spread = (scaled.var(dim=(0, 2, 3)) + own.square().mean(dim=(0, 2, 3))).sqrt()
    assert scaled.mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert (spread - 1).abs().max() < 0.1


def test_contact_sheet() -> None:
    """Pictures lie row by row."""
    pictures = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 1, 3)
    sheet = contact_sheet(pictures, columns=2, scale=1)
    assert sheet[..., 0].tolist() == [[0, 1], [2, 3]]


def test_judge_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file that is not there is one line, exit 2."""
    assert main(["--judge", "--out", str(tmp_path / "absent.safetensors")]) == 2
    assert "absent.safetensors is missing" in capsys.readouterr().err
