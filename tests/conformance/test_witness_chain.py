"""Published slices at small size: what diffusers computes as its tests do, sd1_impl passes by.

The calls below are those of the published tests, with synthetic weights and other shapes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from conformance import witness
from conformance.adapters import sd1_impl
from conformance.adapters.diffusers_networks import build_unet, build_vae
from conformance.adapters.diffusers_pipelines import Networks, _assemble
from conformance.adapters.torch_module import assign_weights
from conformance.sampling import TEXT_TO_IMAGE
from conformance.variants import parse_variant
from conformance.witness import Witness
from conformance.witness_rows import Row, Stage, read_inputs, rows

TINY = parse_variant("tiny")
ROWS = {row.name: row for row in rows("v1-4")}
CONFIGS = Path(__file__).parents[1] / "sd1_impl" / "published_configs.json"
LATENTS, IMAGE = (2, 4, 8, 8), (2, 3, 64, 64)


def bring(row: Row, folder: Path) -> dict[str, torch.Tensor]:
    """Write the noise files of a row, and return what is in them."""
    drawn = {}
    for name, shape in row.files.items():
        noise = np.random.default_rng(row.seed).standard_normal(shape).astype(np.float32)
        np.save(folder / row.file_names[name], noise)
        drawn[name] = torch.from_numpy(noise)
    return drawn


def expecting(row: Row, answer: torch.Tensor) -> Row:
    """Let a row expect its slice of an answer; nothing in it is near zero by chance."""
    values = answer.numpy()[row.where].ravel()
    assert np.abs(values).max() > 100 * row.atol
    return replace(row, values=tuple(values.tolist()))


def verdict(row: Row, folder: Path) -> tuple[str, float]:
    """Run a row on sd1_impl."""
    line = Witness(sd1_impl.port(), TINY, TINY.weights, folder).line(row)
    return line["verdict"], line["ratio"]


def vae() -> torch.nn.Module:
    """Return diffusers' VAE."""
    weights = TINY.weights(TEXT_TO_IMAGE).part("vae")
    return assign_weights(build_vae(TINY), weights, torch.float32, "cpu").eval()


@torch.no_grad()
def test_unet_at_timestep_1000(tmp_path: Path) -> None:
    """The UNet is asked as the published test asks it, at a timestep past the trained ones."""
    tokens = (2, 77, TINY.architecture("unet")["cross_attention_dim"])
    files = {"sample": LATENTS, "encoder_hidden_states": tokens}
    row = replace(ROWS["s9-t1000"], stages=(Stage("unet", "sample", LATENTS),), files=files)
    drawn = bring(row, tmp_path)
    unet = assign_weights(build_unet(TINY), TINY.weights("unet"), torch.float32, "cpu").eval()
    timestep = torch.tensor([1000], dtype=torch.long)
    answer = unet(drawn["sample"], timestep, drawn["encoder_hidden_states"]).sample
    assert verdict(expecting(row, answer), tmp_path) == ("pass", pytest.approx(0, abs=0.1))


@pytest.fixture(params=["mode-s33", "decode-s13"])
@torch.no_grad()
def decoded(request: pytest.FixtureRequest, tmp_path: Path) -> Row:
    """Return a row of the VAE, expecting what diffusers makes of its noise."""
    row = ROWS[request.param]
    stages = (Stage("vae_decoder", "image", IMAGE),)
    if "image" in row.files:
        stages = (Stage("vae_encoder", "mean", LATENTS), *stages)
        row = replace(row, files={"image": IMAGE}, zeros={"noise": LATENTS}, stages=stages)
        answer = vae()(bring(row, tmp_path)["image"]).sample
    else:
        row = replace(row, files={"latents": LATENTS}, stages=stages)
        answer = vae().decode(bring(row, tmp_path)["latents"]).sample
    return expecting(row, answer)


def test_latents_are_scaled_for_the_decoder(decoded: Row, tmp_path: Path, monkeypatch) -> None:
    """Unscaled latents, of a file or of the encoder, cross the border times 0.18215."""
    assert verdict(decoded, tmp_path) == ("pass", pytest.approx(0, abs=0.1))
    monkeypatch.setattr(witness, "LATENT_SCALE", 1.0)
    assert verdict(decoded, tmp_path)[0] == "fail"


def scheduler(name: str) -> object:
    """Return a scheduler made as the published tests make it, from the config of the model."""
    published = json.loads(CONFIGS.read_text("utf-8"))["scheduler/scheduler_config.json"]
    pndm = diffusers.PNDMScheduler.from_config(published)
    return {
        "pndm": lambda: pndm,
        "ddim": lambda: diffusers.DDIMScheduler.from_config(pndm.config),
        "lms": lambda: diffusers.LMSDiscreteScheduler.from_config(pndm.config),
        "dpmpp-2m": lambda: diffusers.DPMSolverMultistepScheduler.from_config(
            pndm.config, final_sigmas_type="sigma_min"
        ),
    }[name]()


@pytest.mark.parametrize("name", ["pndm", "ddim", "lms", "dpmpp-2m"])
def test_pipelines_have_the_published_settings(name: str, tmp_path: Path) -> None:
    """Settings, prompt, latents and place of the slice are those of diffusers' own pipeline."""
    stages = (Stage(TEXT_TO_IMAGE, "image", (1, 3, 64, 64)),)
    row = replace(ROWS[name], stages=stages, drawn={"latents": (1, 4, 8, 8)}, atol=1e-4)
    networks = Networks(TINY, TINY.weights(TEXT_TO_IMAGE), torch.float32, "cpu")
    pipe = _assemble(TEXT_TO_IMAGE, networks, scheduler(name))
    image = pipe(
        "a photograph of an astronaut riding a horse",
        latents=torch.from_numpy(read_inputs(row, tmp_path)["latents"]),
        num_inference_steps=3,
        guidance_scale=7.5,
        height=64,
        width=64,
        output_type="np",
    ).images
    expected = replace(row, values=tuple(image[0, -3:, -3:, -1].ravel().tolist()))
    assert max(expected.values) - min(expected.values) > 100 * row.atol
    assert verdict(expected, tmp_path) == ("pass", pytest.approx(0, abs=1))
