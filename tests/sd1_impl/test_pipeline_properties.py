"""What holds of every picture: neighbours in a batch do not matter, and guidance of 1 is none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd1_impl import Image2Image, Inpaint, Text2Image, synthetic_pipeline
from sd1_impl.schedulers import SCHEDULERS

PROMPTS = ("a red fox", "", "cathédrale de Reims at dusk")
ROUNDING = 1e-11
FEW = settings(max_examples=5, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def tasks() -> dict[str, Text2Image]:
    """Pipelines in float64, so that nothing but rounding is left between two ways to compute."""
    text = synthetic_pipeline("tiny", dtype=torch.float64)
    nine = synthetic_pipeline("tiny-inpaint", dtype=torch.float64, pipeline=Inpaint)
    parts = (text.tokenizer, text.text_encoder, text.unet, text.vae, text.scheduler)
    return {
        "text": text,
        "image": Image2Image(*parts),
        "inpaint": Inpaint(*parts),
        "inpaint-9": nine,
    }


def data(task: str, seed: int, calls: int) -> dict[str, Tensor]:
    """Return images, masks and noise of a batch of three."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    given = {"latents": normal(3, 4, 8, 8), "noise": normal(calls, 3, 4, 8, 8)}
    if task != "text":
        given |= {"image": pixels(3, 64, 64, 3), "image_noise": normal(3, 4, 8, 8)}
    if task.startswith("inpaint"):
        given["mask"] = pixels(3, 64, 64)
    if task == "inpaint-9":
        given["masked_image_noise"] = normal(3, 4, 8, 8)
    return given


def one_of(given: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Return what belongs to one picture."""
    return {
        name: tensor[:, i : i + 1] if name == "noise" else tensor[i : i + 1]
        for name, tensor in given.items()
    }


@FEW
@given(
    task=st.sampled_from(["text", "image", "inpaint", "inpaint-9"]),
    name=st.sampled_from(sorted(SCHEDULERS)),
    guidance=st.sampled_from([1.0, 7.5]),
    seed=st.integers(0, 2**32 + 1),
    i=st.integers(0, 2),
)
def test_a_picture_does_not_depend_on_its_neighbours(tasks, task, name, guidance, seed, i):
    """Drawn alone or in a batch, whatever the scheduler and the task, it is the same picture."""
    pipeline = tasks[task]
    config, scheduler = SCHEDULERS[name]
    pipeline.scheduler = scheduler(config())
    settings = {"num_inference_steps": 4, "guidance_scale": guidance}
    settings |= {"height": 64, "width": 64} if task == "text" else {"strength": 0.5}
    run = pipeline.scheduler.start(4) if task == "text" else pipeline.start_run(4, 0.5)
    given = data(task, seed, len(run.timesteps))
    together = pipeline(PROMPTS, **settings, **given)
    alone = pipeline(PROMPTS[i], **settings, **one_of(given, i))
    for term in ("initial_latents", "latents", "decoded"):
        own, theirs = getattr(alone, term), getattr(together, term)[i : i + 1]
        assert float((own - theirs).norm() / theirs.norm()) < ROUNDING, term
    assert bool(together.decoded.isfinite().all())


@FEW
@given(
    task=st.sampled_from(["text", "image"]),
    name=st.sampled_from(sorted(SCHEDULERS)),
    seed=st.integers(0, 2**32 + 1),
)
def test_guidance_of_one_is_the_conditional_branch(tasks, task, name, seed):
    """A scale just above 1, which asks both branches, leads where the prompt alone leads."""
    pipeline = tasks[task]
    config, scheduler = SCHEDULERS[name]
    pipeline.scheduler = scheduler(config())
    settings = {"num_inference_steps": 2}
    settings |= {"height": 64, "width": 64} if task == "text" else {"strength": 0.5}
    run = pipeline.scheduler.start(2) if task == "text" else pipeline.start_run(2, 0.5)
    given = one_of(data(task, seed, len(run.timesteps)), 0)
    off = pipeline("a red fox", guidance_scale=1.0, **settings, **given)
    on = pipeline(
        "a red fox", negative_prompt="wood", guidance_scale=1 + 1e-13, **settings, **given
    )
    assert off.negative_prompt_embeds is None
    assert on.negative_prompt_embeds is not None
    assert float((on.latents - off.latents).norm() / off.latents.norm()) < ROUNDING
