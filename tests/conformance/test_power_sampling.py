"""Proof of power: wrong choices in schedulers and pipeline are caught, at their step and term.

Each is made in `sd1_impl` by patching it; the verdict comes from the ordinary run of one case.
"""

from __future__ import annotations

import numpy as np
import pytest

from conformance.case import find_case
from conformance.execution import Execution
from conformance.port import resolve
from conformance.result import Result
from conformance.runner import Runner
from conformance.tolerance import LIMIT

torch = pytest.importorskip("torch")

from conformance.adapters import sd1_impl_sampling as adapter
from conformance.adapters.torch_sampling import PipelineComponent
from sd1_impl import pipeline
from sd1_impl.image_to_image import Image2Image
from sd1_impl.inpainting import Inpaint
from sd1_impl.schedulers import ddim, ddpm, noise_schedule, pndm

Schedule, Text2Image = noise_schedule.NoiseSchedule, pipeline.Text2Image


@pytest.fixture
def judge_patched(monkeypatch):
    """Return a function that patches `sd1_impl`, then runs one case."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)

    def run(spoil, case_id: str, dtype: str) -> Result:
        spoil(monkeypatch)
        case = find_case(case_id)
        return Runner(resolve("sd1_impl")).run(case, Execution(dtype=dtype).for_case(case))

    return run


def configured(**changes):
    """Return what builds every scheduler with other settings than asked for."""

    def spoil(patch):
        make = adapter.make_scheduler

        def wrong(name, config):
            return make(name, config | {k: v for k, v in changes.items() if k in config})

        patch.setattr(adapter, "make_scheduler", wrong)

    return spoil


def method(owner, name, make):
    """Return what replaces a method by `make(the right one)`."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def half_table(patch):
    """Hold alphas_cumprod in half precision, as a model that is cast whole does."""
    plain = Schedule.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.alphas_cumprod = self.alphas_cumprod.astype(np.float16).astype(np.float64)

    patch.setattr(Schedule, "__init__", init)


def final_one_in_steps(_plain):
    """Step to a clean sample, whatever `final_alpha_cumprod` says."""
    return lambda self, t: float(self.alphas_cumprod[t]) if t >= 0 else 1.0


def previous_is_next(plain):
    """Read the table one place too early."""
    return lambda self, t: plain(self, max(t - 1, 0) if t >= 0 else t)


def range_timesteps(_plain):
    """Count with a stride: one step too many where it does not divide 1000."""

    def timesteps(self, count):
        total, offset = self.config.num_train_timesteps, self.config.steps_offset
        return np.arange(0, total, total // count)[::-1].astype(np.int64) + offset

    return timesteps


def once(plain):
    """Do not take the second timestep twice."""
    return lambda self, count: np.delete(plain(self, count), 1)


def reversed_orders(patch):
    """Give the oldest prediction the newest one's share, in the fourth order."""
    rows = pndm.COEFFICIENTS
    patch.setattr(pndm, "COEFFICIENTS", (*rows[:3], rows[3][::-1]))


def noise_from_variance(_plain):
    """Scale the noise by the variance instead of its root."""
    return lambda self, t, prev: (
        (1 - self.alpha_cumprod(prev))
        / (1 - self.alpha_cumprod(t))
        * (1 - self.alpha_cumprod(t) / self.alpha_cumprod(prev))
    )


ONE, ENTRY = "final_alpha_cumprod", "entry 0 is 1, expected 0.99"
SCHEDULERS = {
    "final-alpha-one": (
        configured(set_alpha_to_one=True), "scheduler/ddim/-/base", ONE, ENTRY,
    ),
    "final-alpha-one-pndm": (
        configured(set_alpha_to_one=True), "scheduler/pndm/-/base", ONE, ENTRY,
    ),
    "final-alpha-one-in-steps": (
        method(Schedule, "alpha_cumprod", final_one_in_steps),
        "scheduler/ddim/-/base", "samples#49",
        "-0.0413144 times the model output instead of -0.0121421",
    ),
    "steps-offset-0": (
        configured(steps_offset=0), "scheduler/ddim/-/base", "timesteps", "first at place 0",
    ),
    "steps-offset-0-ddpm": (
        configured(steps_offset=0), "scheduler/ddpm/-/base", "timesteps", "50 of 50 differ",
    ),
    "linear-betas": (
        configured(beta_schedule="linear"), "scheduler/ddpm/-/base", "betas", "square roots",
    ),
    "other-range": (
        configured(beta_end=0.0120012), "scheduler/pndm/-/base", "betas", "square roots",
    ),
    "half-table": (half_table, "scheduler/ddim/-/base", "alphas_cumprod", "never in half"),
    "neighbouring-entry": (
        method(Schedule, "alpha_cumprod", previous_is_next), "scheduler/ddim/-/base", "samples#0",
        "step 0, timestep 981: ",
    ),
    "range-steps": (
        method(Schedule, "timesteps", range_timesteps), "scheduler/ddim/-/steps7", "timesteps",
        "shape (8,), expected (7,)",
    ),
    "second-once": (
        method(pndm.PNDMScheduler, "timesteps", once), "scheduler/pndm/-/steps7", "timesteps",
        "shape (7,), expected (8,)",
    ),
    "velocity": (
        configured(prediction_type="v_prediction"), "scheduler/ddim/-/steps7", "samples#0",
        "times the model output instead of",
    ),
    "orders-reversed": (
        reversed_orders, "scheduler/pndm/-/steps7", "samples#4",
        "0.141828 times the model output instead of -0.866724",
    ),
    "clipped": (
        configured(clip_sample=True), "scheduler/ddim/-/steps7", "samples#0",
        "not a linear combination of sample, model output",
    ),
    "eta-ignored": (
        configured(eta=0.0), "scheduler/ddim/-/eta0.5", "samples#0", "times the noise instead of",
    ),
    "variance-for-deviation": (
        method(ddim.DDIMScheduler, "sigma", noise_from_variance), "scheduler/ddim/-/eta1",
        "samples#0", "times the noise instead of",
    ),
    "large-variance": (
        configured(variance_type="fixed_large"), "scheduler/ddpm/-/steps7", "samples#0",
        "times the noise instead of",
    ),
    "wrong-root": (
        method(ddpm.math, "sqrt", lambda plain: lambda x: plain(x) * (1 + 1e-4)),
        "scheduler/ddpm/-/steps7", "samples#0", "times the sample instead of",
    ),
}  # fmt: skip


def swapped_halves(_plain):
    """Take the prompt's prediction for the negative prompt's, and the reverse."""

    def predict(self, model_input, t, text):
        context = torch.cat([text.negative_prompt_embeds, text.prompt_embeds])
        text_half, uncond = self.unet(torch.cat([model_input] * 2), t, context).chunk(2)
        return uncond, text_half

    return predict


def interleaved(_plain):
    """Pair a batch's predictions as (unconditional, conditional) of each sample in turn."""

    def predict(self, model_input, t, text):
        context = torch.cat([text.negative_prompt_embeds, text.prompt_embeds])
        both = self.unet(torch.cat([model_input] * 2), t, context)
        return both[0::2], both[1::2]

    return predict


def unscaled(plain):
    """Decode latents as the UNet leaves them."""
    return lambda self, latents: plain(self, latents * self.vae.config.scaling_factor)


def uint8(convert):
    """Return another way from image to bytes."""
    return method(
        Text2Image, "to_uint8", lambda _: lambda _self, x: convert(255 * x).permute(0, 2, 3, 1)
    )


def zeros(_plain):
    """Encode the negative prompt as zeros."""

    def encode(self, prompts, negative):
        ids, embeds = self.encode(prompts)
        negative_ids, negative_embeds = self.encode(negative)
        return pipeline.Prompts(ids, negative_ids, embeds, 0 * negative_embeds)

    return encode


def noise_shared(plain):
    """Give every sample of the batch the first one's noise."""

    def step(self, model_output, t, sample, run, noise):
        return plain(self, model_output, t, sample, run, noise[:1].expand_as(noise))

    return step


def noise_of_the_step_before(_plain):
    """Give the picture the noise of the timestep before the run's first, which is one stride up."""

    def noisy_latents(self, image_latents, noise, run):
        before = int(run.timesteps[0]) + run.stride
        return self.scheduler.add_noise(image_latents, noise.to(image_latents), before, run)

    return noisy_latents


def mask_last(_plain):
    """Let the UNet read the masked picture before the mask."""
    return lambda _self, latents, mask, masked: torch.cat([latents, masked, mask], dim=1)


def guided(formula):
    """Return another guidance."""
    return method(Text2Image, "guide", lambda _: lambda _self, u, c, s: formula(u, c, s))


BASE = "pipeline/txt2img/tiny/base"
PIPELINES = {
    "guidance-halves": (
        method(Text2Image, "predict_noise", swapped_halves), BASE, "noise_pred_uncond#0",
        "halves exchanged",
    ),
    "interleaved-halves": (
        method(Text2Image, "predict_noise", interleaved), BASE, "noise_pred_uncond#0", "guidance",
    ),
    "guidance-reversed": (
        guided(lambda u, c, s: c + s * (u - c)), BASE, "noise_pred#0", "uncond + guidance_scale",
    ),
    "guidance-less-one": (
        guided(lambda u, c, s: u + (s - 1) * (c - u)), BASE, "noise_pred#0", "guidance",
    ),
    "latent-scale": (
        method(Text2Image, "decode", unscaled), BASE, "vae.post_quant_conv.input", "0.18215",
    ),
    "truncated": (
        uint8(lambda x: x.to(torch.uint8)), BASE, "image_uint8",
        "levels off: truncated, not rounded to nearest",
    ),
    "not-clamped": (
        method(Text2Image, "to_image", lambda _: lambda _self, x: x / 2 + 0.5), BASE, "image",
        "clamped to 0..1",
    ),
    "negative-zeros": (
        method(Text2Image, "encode_prompts", zeros), BASE, "negative_prompt_embeds", "never zeros",
    ),
    "orders-reversed": (reversed_orders, BASE, "latents#4", "orders of PLMS"),
    "steps-offset-0": (configured(steps_offset=0), BASE, "timestep#0", "steps_offset"),
    "linear-betas": (configured(beta_schedule="linear"), BASE, "latents#0", "coefficients"),
    "final-alpha-one": (
        configured(set_alpha_to_one=True), "pipeline/txt2img/tiny/ddim", "latents#6", "final alpha",
    ),
    "eta-not-handed-on": (
        configured(eta=0.0), "pipeline/txt2img/tiny/eta1", "latents#0", "noise",
    ),
    "noise-shared": (
        method(ddpm.DDPMScheduler, "step", noise_shared), "pipeline/txt2img/tiny/ddpm", "latents#0",
        "noise",
    ),
    "t-plus-one": (
        method(Image2Image, "noisy_latents", noise_of_the_step_before),
        "pipeline/img2img/tiny/base", "initial_latents", "run's first timestep",
    ),
    "channel-order": (
        method(Inpaint, "unet_input", mask_last), "pipeline/inpaint/tiny-inpaint/base",
        "model_input#0", "then the mask, then the masked picture",
    ),
}  # fmt: skip


CHOICES = SCHEDULERS | {f"picture-{name}": choice for name, choice in PIPELINES.items()}
WRONG = [(name, "float32") for name in CHOICES]
# In float64 a picture shows what it shows in float32: one will do.
WRONG += [(name, "float64") for name in [*SCHEDULERS, "picture-interleaved-halves"]]


@pytest.mark.parametrize(("name", "dtype"), WRONG)
def test_wrong_choice(judge_patched, name: str, dtype: str):
    """The first wrong table, step or term is named, and in a scheduler the wrong coefficient."""
    spoil, case_id, probe, words = CHOICES[name]
    result = judge_patched(spoil, case_id, dtype)
    assert result.verdict == "fail", result.message
    first = result.first_divergence
    assert first["probe"] == probe
    assert words in first["hint"]
    assert not first["ratio"] <= 2 * LIMIT


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (lambda x: (x + 0.5).to(torch.uint8), None),
        (lambda x: x.round().to(torch.uint8), None),
        (lambda x: x.to(torch.uint8), "truncated"),
        (lambda x: x.ceil().to(torch.uint8), "rounded up, not rounded to nearest"),
        (lambda x: (x / 255 * 256).floor().clamp(max=255).to(torch.uint8), "levels off"),
        (lambda x: x.flip(1).round().to(torch.uint8), "another scale"),
        (lambda x: x.transpose(2, 3).round().to(torch.uint8), "another scale"),
    ],
    ids=["half-up", "half-even", "truncated", "ceiling", "times-256", "bgr", "transposed"],
)
def test_ways_to_round(judge_patched, convert, words: str | None):
    """Half up is no other rounding than half to even unless a pixel is exactly between."""
    result = judge_patched(uint8(convert), BASE, "float32")
    record = next(r for r in result.records if r.name == "image_uint8")
    if words is None:
        assert record.verdict == "pass"
        assert "identical to the reference's picture" in record.note or "PSNR" in record.note
    else:
        assert record.verdict == "fail"
        assert words in record.note


def test_an_image_of_another_shape_is_a_wrong_number(judge_patched):
    """Its pixels are not judged by it; nothing breaks."""
    spoil = method(
        Text2Image, "to_image", lambda plain: lambda self, x: plain(self, x).permute(0, 2, 3, 1)
    )
    right = Text2Image.to_uint8

    def both(patch):
        spoil(patch)
        patch.setattr(Text2Image, "to_uint8", lambda self, x: right(self, x.permute(0, 3, 1, 2)))

    result = judge_patched(both, "pipeline/txt2img/tiny/ddim2", "float32")
    assert (result.verdict, result.first_divergence["probe"]) == ("fail", "image")
    assert "shape (1, 64, 64, 3), expected (1, 3, 64, 64)" in result.first_divergence["hint"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_integers_are_exact_in_half_precision(judge_patched, monkeypatch, dtype: str):
    """One timestep, or one token, off by one is caught although it is within a half ulp."""
    plain = PipelineComponent.__init__
    names = {"timestep#0", "input_ids"}

    def init(self, draw, *args):
        def off_by_one(inputs, see):
            draw(inputs, lambda n, t: see(n, t + 1 if n in names else t))

        plain(self, off_by_one, *args)

    monkeypatch.setattr(PipelineComponent, "__init__", init)
    result = judge_patched(lambda _: None, "pipeline/txt2img/tiny/ddim2", dtype)
    integers = [r for r in result.records if r.name.startswith(("timestep#", "input_ids"))]
    assert {r.name for r in integers if r.verdict == "fail"} == names
    assert {r.name for r in integers if r.verdict == "pass"} == {"timestep#1"}
