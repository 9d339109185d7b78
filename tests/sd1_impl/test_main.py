"""The command ``python -m sd1_impl``, and the example: pictures, seeds, mistakes."""

import inspect
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sd1_impl.__main__ as command
from sd1_impl import (
    SD_V1_EULER,
    SD_V1_PNDM,
    DDPMScheduler,
    Image2Image,
    Inpaint,
    PNDMScheduler,
    Text2Image,
    Tiling,
    load_pipeline,
    synthetic_pipeline,
    use_kernel,
)
from sd1_impl.attention_kernels import KERNELS, fused
from sd1_impl.packed import can_pack, pack
from sd1_impl.toy.reading import read

Image = pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["--steps", "2", "--size", "64x64"]
EDIT = ["--image", "image.png", "--mask", "mask.png"]


def packed(pipeline: Text2Image) -> Text2Image:
    """Return a pipeline as the command draws with it: its weights are packed, if they can be."""
    for network in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        if can_pack(torch.float32, torch.device("cpu")):
            pack(network)
    return pipeline


@pytest.fixture(scope="module")
def small() -> Text2Image:
    """The small pipeline with random weights, as the command draws with it."""
    return packed(synthetic_pipeline("tiny"))


@pytest.fixture
def draw(tmp_path: Path, small, monkeypatch):
    """Run the command quickly, with weights that are there already; return the picture."""

    def pipeline(*_: object, pipeline: type, **__: object) -> Text2Image:
        return pipeline(small.tokenizer, small.text_encoder, small.unet, small.vae, small.scheduler)

    monkeypatch.setattr(command, "synthetic_pipeline", pipeline)

    def run(*arguments: str) -> np.ndarray:
        out = tmp_path / "picture.png"
        assert command.main([*QUICK, "--out", str(out), *arguments]) == 0
        with Image.open(out) as image:
            return np.asarray(image)

    return run


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Save image.png and mask.png in the working folder; return their pixels."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (64, 72, 3), dtype=np.uint8)
    mask = np.zeros((64, 72), np.uint8)
    mask[:40, :32] = 255
    Image.fromarray(image).save("image.png")
    Image.fromarray(mask).save("mask.png")
    return image, mask


def test_it_draws_a_png_and_says_how(tmp_path: Path):
    """A process of its own, off a terminal: what was used, where the picture is, no bar."""
    done = subprocess.run(
        [sys.executable, "-m", "sd1_impl", "a cat", "--steps", "2", "--size", "72x64"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
        check=True,
        timeout=120,
    )
    weights, how, where = done.stdout.splitlines()
    assert weights.startswith("weights: random, of size tiny: the picture will mean nothing")
    assert how == (
        "PNDMScheduler, 2 steps (3 calls of the UNet), guidance 7.5, seed 0, 72x64, float32 on cpu"
    )
    assert re.fullmatch(r"picture\.png, after \d+\.\d s", where)
    assert done.stderr.splitlines() == [f"step {i} of 3" for i in (1, 2, 3)]
    with Image.open(tmp_path / "picture.png") as image:
        assert (image.format, image.size, image.mode) == ("PNG", (72, 64), "RGB")
        assert np.asarray(image).std() > 10


def test_every_option_reaches_the_picture(draw):
    """The same is drawn again; another seed, text, guidance, scheduler or dtype draws another."""
    first = draw("a cat")
    assert np.array_equal(draw("a cat"), first)
    for arguments in (
        ["a dog"],
        ["a cat", "--seed", "1"],
        ["a cat", "--negative-prompt", "blurry"],
        ["a cat", "--guidance", "1"],
        ["a cat", "--steps", "3"],
        ["a cat", "--scheduler", "ddim"],
        ["a cat", "--scheduler", "ddpm"],
        ["a cat", "--scheduler", "euler"],
        ["a cat", "--scheduler", "heun"],
    ):
        assert not np.array_equal(draw(*arguments), first), arguments


def test_it_draws_what_the_library_draws(draw, small):
    """With the options' values, and the seed's generator."""
    wanted = small(
        "a cat",
        negative_prompt="blurry",
        num_inference_steps=2,
        guidance_scale=3,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(5),
    )
    got = draw("a cat", "--negative-prompt", "blurry", "--guidance", "3", "--seed", "5")
    assert np.array_equal(got, wanted.image_uint8[0].numpy())


@pytest.mark.parametrize("strength", [None, "0.5"], ids=["default", "half"])
@pytest.mark.parametrize("kind", [Image2Image, Inpaint])
def test_it_begins_with_an_image(draw, small, pictures, capsys, kind: type, strength: str | None):
    """And draws what the library does, at its default strengths; as large as the image."""
    arguments = ["a cat", "--image", "image.png", "--size", "72x64", "--steps", "4"]
    arguments += ["--mask", "mask.png"] if kind is Inpaint else []
    got = draw(*arguments, *([] if strength is None else ["--strength", strength]))
    inputs = {"image": torch.from_numpy(pictures[0])[None]}
    if kind is Inpaint:
        inputs["mask"] = torch.from_numpy(pictures[1])[None]
    if strength is not None:
        inputs["strength"] = float(strength)
    ours = kind(small.tokenizer, small.text_encoder, small.unet, small.vae, small.scheduler)
    seeded = torch.Generator().manual_seed(0)
    wanted = ours("a cat", num_inference_steps=4, generator=seeded, **inputs)
    assert np.array_equal(got, wanted.image_uint8[0].numpy())
    value = strength or f"{inspect.signature(kind.__call__).parameters['strength'].default:g}"
    calls = {"0.8": 4, "1": 5, "0.5": 3}[value]
    said = capsys.readouterr().out
    assert f"4 steps ({calls} calls of the UNet), strength {value}, guidance 7.5, seed" in said
    assert ", 72x64, " in said


@pytest.mark.usefixtures("pictures")
def test_an_image_has_its_own_size_or_the_one_asked_for(draw, monkeypatch):
    """Its own by default; resized, a mask stays black and white."""
    seen = {}
    plain = Inpaint.__call__

    def call(self: Inpaint, *args: object, **inputs: object) -> object:
        seen.update(inputs)
        return plain(self, *args, **inputs)

    monkeypatch.setattr(Inpaint, "__call__", call)
    monkeypatch.setattr(sys.modules[__name__], "QUICK", ["--steps", "2"])
    assert draw(*EDIT).shape == (64, 72, 3)
    assert draw(*EDIT, "--size", "88x80").shape == (80, 88, 3)
    assert seen["image"].shape == (1, 80, 88, 3)
    assert seen["mask"].unique().tolist() == [0, 255]


def test_other_formats_are_read(draw, pictures):
    """Transparency is dropped, colour becomes grey, and a turned photograph upright."""
    image, _ = pictures
    wanted = draw(*EDIT, "--size", "72x64")
    turned = Image.fromarray(np.rot90(image)).convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the left: to be shown turned to the right
    turned.save("turned.png", exif=exif)
    Image.open("mask.png").convert("RGB").save("mask.png")
    got = draw("--image", "turned.png", "--mask", "mask.png", "--size", "72x64")
    assert np.array_equal(got, wanted)


@pytest.mark.usefixtures("pictures")
def test_inpainting_weights_want_a_mask(capsys):
    """With one they are used; without, one line says so."""
    arguments = [*QUICK, "--synthetic", "tiny-inpaint"]
    assert command.main([*arguments, *EDIT, "--out", "out.png"]) == 0
    capsys.readouterr()
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the UNet reads 9: it is made for inpainting (`Inpaint`, with a mask)" in line


def test_trained_weights_are_used(draw, weights_folder: Path, capsys):
    """They are named, and nothing is said of random ones."""
    got = draw("a cat", "--weights", str(weights_folder))
    said = capsys.readouterr().out
    assert said.startswith(f"weights: {weights_folder}\n")
    assert "nothing" not in said
    wanted = packed(load_pipeline(weights_folder))(
        "a cat",
        num_inference_steps=2,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
    )
    assert np.array_equal(got, wanted.image_uint8[0].numpy())


def test_another_scheduler_keeps_the_noise_schedule():
    """What the training was is the weights' affair, not the algorithm's."""
    config = replace(SD_V1_PNDM, beta_end=0.02, steps_offset=3, prediction_type="v_prediction")
    other = command._scheduler("ddpm", PNDMScheduler(config))
    assert isinstance(other, DDPMScheduler)
    for name, value in vars(config).items():
        assert getattr(other.config, name, value) == value
    assert other.config.clip_sample is False


def test_another_scheduler_has_its_own_spacing():
    """As in diffusers, what is only the other's default is left out, and what is chosen is kept."""
    assert command._scheduler("euler", PNDMScheduler(SD_V1_PNDM)).config == SD_V1_EULER
    trailing = PNDMScheduler(replace(SD_V1_PNDM, timestep_spacing="trailing"))
    assert command._scheduler("euler", trailing).config.timestep_spacing == "trailing"


@pytest.fixture
def networks(small) -> Iterator[list[torch.nn.Module]]:
    """The small pipeline's networks, afterwards with their own attention and nothing in tiles."""
    networks = [small.text_encoder, small.unet, small.vae]
    yield networks
    for network in networks:
        use_kernel(network, "fused")
    vars(small.vae).pop("tiling", None)


def test_attention_is_the_one_asked_for(draw, networks):
    """In all three networks; the picture is the same, but for a rounding here and there."""
    wanted = draw("a cat").astype(int)
    for name, kernel in KERNELS.items():
        assert np.abs(draw("a cat", "--attention", name) - wanted).max() <= 1
        modules = [module for network in networks for module in network.modules()]
        assert {vars(m)["attend"] for m in modules if hasattr(m, "attend")} == {kernel}
    draw("a cat")
    assert {m.attend for m in modules if hasattr(m, "attend")} == {fused}


def test_tiles(draw, networks):
    """A picture larger than a tile is decoded in tiles: hardly another one."""
    plain, tiled = (draw("a cat", "--size", "520x16", *more) for more in ([], ["--tiled"]))
    assert networks[-1].tiling == Tiling()
    assert 0 < np.abs(plain.astype(int) - tiled).mean() < 32


@pytest.mark.parametrize(
    ("arguments", "size"),
    [([], "256x256"), (["--synthetic", "sd1"], "512x512"), (["--weights", "."], "512x512")],
    ids=["tiny", "sd1", "trained"],
)
def test_default_sizes(small, monkeypatch, capsys, tmp_path: Path, arguments: list, size: str):
    """Those of SD v1's training; but of small random weights where it takes seconds."""
    monkeypatch.chdir(tmp_path)
    pipeline = copy(small)
    pipeline.tokenizer = _interrupt  # before the work
    for name in ("synthetic_pipeline", "load_pipeline"):
        monkeypatch.setattr(command, name, lambda *_, **__: pipeline)
    monkeypatch.setattr(command, "_warn_of_long_texts", lambda *_: None)
    assert command.main(arguments) == 130
    assert f", {size}, " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "size": (["--size", "512"], "'512' is not WIDTHxHEIGHT, such as 512x512"),
    "multiple": (["--size", "60x64"], "width is 60, expected a multiple of 8"),
    "steps": (["--steps", "1"], "num_inference_steps is 1, expected 2 or more"),
    "seed": (["--seed", "-1"], "argument --seed: '-1' is not a number from 0"),
    "device": (["--device", "tpu"], "argument --device: 'tpu' is not there"),
    "attention": (["--attention", "flash"], "invalid choice: 'flash'"),
    "dtype": (["--dtype", "int8"], "invalid choice: 'int8'"),
    "folder": (["--weights", "nowhere"], "argument --weights: nowhere is missing: a *.saf"),
    "both": (["--weights", ".", "--synthetic", "tiny"], "not allowed with argument --weights"),
    "ending": (["--out", "picture"], "--out picture has no ending of a picture's, such as .png"),
    "no-folder": (["--out", "no/p.png"], "--out no/p.png cannot be written: its folder has to"),
    "no-image": (["--mask", "mask.png"], "--mask needs --image, a picture to begin with"),
    "strength-alone": (["--strength", "0.5"], "--strength needs --image, a picture to begin with"),
    "no-file": (["--image", "nowhere.png"], "No such file or directory: "),
    "no-picture": (["--image", __file__], "cannot identify image file"),
    "odd-size": (["--image", "odd.png"], "image is 64 high and 70 wide, expected multiples of 8"),
    "other-size": (
        ["--image", "image.png", "--mask", "odd.png"],
        "mask has shape (1, 64, 70), expected (masks, height, width), with the image's height and",
    ),
    "strength": (["--image", "image.png", "--strength", "0"], "strength is 0.0, expected more"),
    "no-step": (["--image", "image.png", "--strength", "0.01"], "strength 0.01 leaves none of 50"),
    "unknown": (["--step", "3", "--foo"], "unrecognized arguments: --foo"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(draw, tmp_path: Path, capsys, monkeypatch, arguments, message):
    """Exit code 2, no traceback, and an earlier picture stays."""
    monkeypatch.chdir(tmp_path)
    for name, width in (("image.png", 72), ("odd.png", 70)):
        Image.new("RGB", (width, 64)).save(name)
    before = draw("a cat")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        sys.exit(command.main(arguments))
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sd1_impl: ")
    assert message in line
    with Image.open("picture.png") as image:
        assert np.array_equal(np.asarray(image), before)


def test_an_interruption_is_one_line(monkeypatch, capsys):
    """And exit code 130."""
    monkeypatch.setattr(command, "synthetic_pipeline", _interrupt)
    assert command.main(QUICK) == 130
    assert capsys.readouterr().err == "sd1_impl: interrupted, nothing was saved\n"


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_long_prompt_is_told(draw, capsys):
    """What of it nobody reads."""
    draw("cat " * 74 + "sees dogs")
    said = capsys.readouterr().out
    assert "a prompt of 76 tokens is cut after 75: without 'dogs'\n" in said


def test_an_overflow_is_no_picture(draw, tmp_path: Path, monkeypatch, capsys):
    """A picture that is black for another reason than art replaces no earlier one."""
    draw("a cat")
    before = (tmp_path / "picture.png").read_bytes()
    decode = command.Text2Image.decode
    monkeypatch.setattr(command.Text2Image, "decode", lambda *args: decode(*args) * torch.nan)
    assert command.main([*QUICK, "--out", str(tmp_path / "picture.png"), "a dog"]) == 2
    assert "the picture is not finite: float32 is too narrow" in capsys.readouterr().err
    assert (tmp_path / "picture.png").read_bytes() == before


def test_a_terminal_sees_a_bar(draw, monkeypatch, capsys):
    """One line that is drawn over."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    draw("a cat")
    assert "3/3" in capsys.readouterr().err


def test_the_example_draws(tmp_path: Path, monkeypatch, capsys):
    """As it stands, without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["txt2img.py"])
    runpy.run_path(str(EXAMPLES / "txt2img.py"))
    *steps, saved = capsys.readouterr().out.splitlines()
    assert len(steps) == 26
    assert saved == "saved picture.png"
    with Image.open("picture.png") as image:
        assert image.size == (128, 128)


def test_the_toy_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--weights toy` has its own size and guidance, and draws what is asked for."""
    out = tmp_path / "picture.png"
    prompt = "a large red square in the middle"
    assert command.main([prompt, "--weights", "toy", "--steps", "25", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("weights: the toy\n")
    assert "guidance 2, seed 0, 64x64" in said
    pixels = torch.from_numpy(np.array(Image.open(out))).permute(2, 0, 1)
    seen = read(pixels / 127.5 - 1)
    assert seen is not None
    assert (seen.colour, seen.shape, seen.size) == ("red", "square", "large")
