"""Several pictures of each prompt, in all three pipelines, against diffusers'."""

import pytest
import torch
from torch import Tensor

from sd1_impl import Image2Image, Inpaint, Text2Image
from sd1_impl.schedulers import SCHEDULERS

pytest.importorskip("diffusers")

PROMPTS, NEGATIVES = ["a photograph of an astronaut riding a horse", "a cat"], ["", "blurry"]
GENERATOR = torch.Generator().manual_seed(4)
IMAGE = torch.randint(0, 256, (1, 64, 72, 3), generator=GENERATOR, dtype=torch.uint8)
MASK = torch.randint(0, 256, (1, 64, 72), generator=GENERATOR, dtype=torch.uint8)
EDIT = {"image": IMAGE, "strength": 0.5, "num_inference_steps": 4}
TASKS = {
    "txt2img": (Text2Image, "tiny", {"height": 64, "width": 72, "num_inference_steps": 2}),
    "img2img": (Image2Image, "tiny", EDIT),
    "inpaint-4": (Inpaint, "tiny", {**EDIT, "mask": MASK}),
    "inpaint-9": (Inpaint, "tiny-inpaint", {**EDIT, "mask": MASK}),
}


def algorithm(name: str):
    """Return a scheduler with SD v1's settings."""
    config, scheduler = SCHEDULERS[name]
    return scheduler(config())


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_a_seed_means_what_it_means_in_diffusers(pair, same_pictures, task: tuple, guidance: float):
    """Two pictures of two prompts with noise in every step: tensors, pixels, draws."""
    kind, size, arguments = task
    both = pair(kind, size, scheduler=algorithm("euler_ancestral"))
    settings = {"num_images_per_prompt": 2, "guidance_scale": guidance}
    picture = same_pictures(both, PROMPTS, negative_prompt=NEGATIVES, **settings, **arguments)
    assert picture.input_ids.shape == (2, 77)
    assert picture.prompt_embeds.shape == (4, 77, 64)
    assert picture.image_uint8.shape == (4, 64, 72, 3)


def draw(ours: Text2Image, prompts: list[str], **arguments) -> Tensor:
    """Return the latents of pictures, all of whose noise is given."""
    shape = (arguments.get("num_images_per_prompt", 1) * len(prompts), 4, 8, 9)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if isinstance(ours, Image2Image):
        arguments["image_noise"] = torch.ones(1, 4, 8, 9)
    if ours.unet.config.in_channels == 9:
        arguments["masked_image_noise"] = torch.ones(1, 4, 8, 9)
    return ours(prompts, latents=latents, **arguments).latents


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_pictures_of_a_prompt_follow_each_other(pair, task: tuple):
    """They are those of the prompts written twice: the first, the first, the second, the second."""
    kind, size, arguments = task
    ours, _ = pair(kind, size)
    got = draw(ours, PROMPTS, num_images_per_prompt=2, **arguments)
    wanted = draw(ours, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], **arguments)
    assert torch.allclose(got, wanted, atol=1e-4)
    exchanged = draw(ours, PROMPTS * 2, **arguments)
    assert not torch.allclose(got[1:3], exchanged[1:3], atol=1e-2)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_a_number_that_is_none_is_refused(pair, task: tuple, number: float | str):
    """Before anything is computed."""
    kind, size, arguments = task
    ours, _ = pair(kind, size)
    ours.encode = pytest.fail
    with pytest.raises(ValueError, match=f"num_images_per_prompt is {number!r}, expected 1, 2, "):
        ours(PROMPTS, num_images_per_prompt=number, **arguments)


@pytest.mark.parametrize("name", ["image", "mask"])
def test_several_images_leave_open_whose_they_are(pair, name: str):
    """Diffusers would take them in turn, and so give one to another's prompt."""
    ours, _ = pair(Inpaint, "tiny")
    inputs = {"image": IMAGE, "mask": MASK}
    inputs[name] = torch.cat([inputs[name]] * 2)
    message = f"{name} has 2 entries, expected one for all where num_images_per_prompt is 2"
    with pytest.raises(ValueError, match=message):
        ours(PROMPTS, num_images_per_prompt=2, **inputs)
