"""What the pipelines accept: everything else is refused before anything is computed.

Shapes: as in `sd1_impl.pipeline`; I images, M masks.
"""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor


def read_texts(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str],
    num_images_per_prompt: int,
    guidance_scale: float,
) -> tuple[list[str], list[str] | None]:
    """Return the prompts and as many negative prompts; None of these where guidance is off."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("there is no prompt: the list is empty")
    one_for_all = isinstance(negative_prompt, str)
    negatives = [negative_prompt] * len(prompts) if one_for_all else list(negative_prompt)
    if len(prompts) != len(negatives):
        raise ValueError(
            f"{len(negatives)} negative prompts for {len(prompts)} prompts: "
            "expected as many, or one text for all"
        )
    if not isinstance(num_images_per_prompt, Integral) or num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt is {num_images_per_prompt!r}, expected 1, 2, ...")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale}, expected a finite number")
    return prompts, negatives if guidance_scale > 1 else None


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse data that do not fit."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


def check_absent(name: str, tensor: Tensor | None, why: str) -> None:
    """Refuse data that would not be read."""
    if tensor is not None:
        raise ValueError(f"{name} is given, but {why}: leave it out")


def check_image(image: Tensor, factor: int) -> None:
    """Refuse what is no ``(I, H, W, 3)`` of bytes, H and W multiples of a factor."""
    _check_bytes("image", image)
    if image.ndim != 4 or image.shape[-1] != 3 or len(image) == 0:
        raise ValueError(
            f"image has shape {tuple(image.shape)}, expected (images, height, width, 3), RGB"
        )
    height, width = image.shape[1:3]
    if 0 in (height, width) or height % factor or width % factor:
        raise ValueError(
            f"image is {height} high and {width} wide, expected multiples of {factor}: "
            "crop or resize it"
        )


def check_mask(mask: Tensor, image: Tensor) -> None:
    """Refuse what is no ``(M, H, W)`` of bytes, H and W as the image's."""
    _check_bytes("mask", mask)
    size = tuple(image.shape[1:3])
    if mask.ndim != 3 or len(mask) == 0 or tuple(mask.shape[1:]) != size:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected (masks, height, width), "
            f"with the image's height and width {size}"
        )


def check_count(name: str, tensor: Tensor, prompts: int, num_images_per_prompt: int) -> None:
    """Refuse numbers of images or masks of which not every picture has its own."""
    count = len(tensor)
    if count > 1 and num_images_per_prompt > 1:
        raise ValueError(
            f"{name} has {count} entries, expected one for all "
            f"where num_images_per_prompt is {num_images_per_prompt}"
        )
    if count not in (1, prompts):
        raise ValueError(
            f"{name} has {count} entries for {prompts} prompts: expected one for all, or one each"
        )


def count_steps(num_inference_steps: int, strength: float) -> int:
    """Return how many of the steps a strength leaves; refuse one that leaves none."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}, expected more than 0 and at most 1")
    remaining = int(num_inference_steps * strength)
    if remaining < 1:
        raise ValueError(
            f"strength {strength} leaves none of {num_inference_steps} steps: "
            "expected num_inference_steps times strength to be 1 or more"
        )
    return remaining


def _check_bytes(name: str, tensor: Tensor) -> None:
    """Refuse other dtypes: the range of a float image could only be guessed."""
    kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
    if kind != torch.uint8:
        raise TypeError(f"{name} is {kind}, expected a torch.uint8 tensor of values 0 to 255")
