"""Mutants of inpainting: the mask, the masked picture, and what is put back."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from conformance.mutants.mutant import Mutant, NotRun, Patch, wrapped
from conformance.sampling import INPAINT
from sd1_impl.image_to_image import Image2Image
from sd1_impl.inpainting import WHITE, Inpaint


def _twice_scaled(plain: Any) -> Any:
    return lambda self, image_latents, noise, run: (
        plain(self, image_latents, noise, run) * run.init_noise_sigma
    )


def _first_for_all(plain: Any) -> Any:
    def unet_input(self: Inpaint, model_input: Any, mask: Any, masked: Any) -> Any:
        return plain(self, model_input, mask[:1].expand_as(mask), masked[:1].expand_as(masked))

    return unet_input


def _mask_last(_plain: Any) -> Any:
    return lambda _self, model_input, mask, masked: torch.cat([model_input, masked, mask], dim=1)


def _all_channels_divided(plain: Any) -> Any:
    """Divide the nine channels to variance 1 that the sampler divides the latents to."""

    def denoise(
        self: Inpaint, latents: Any, text: Any, run: Any, *, add_channels: Any, **settings: Any
    ) -> Any:
        timesteps = iter(run.timesteps.tolist())

        def divided(model_input: Any) -> Any:
            others = add_channels(model_input)[:, model_input.shape[1] :]
            others = self.scheduler.scale_model_input(others, next(timesteps), run)
            return torch.cat([model_input, others], dim=1)

        own = None if add_channels is None else divided
        return plain(self, latents, text, run, add_channels=own, **settings)

    return denoise


def _timestep_left(plain: Any) -> Any:
    def known_latents(self: Inpaint, latents: Any, noise: Any, next_t: Any, run: Any) -> Any:
        timesteps = run.timesteps.tolist()
        left = None if next_t is None else timesteps[timesteps.index(next_t) - 1]
        return plain(self, latents, noise, left, run)

    return known_latents


def _noisy_to_the_last(plain: Any) -> Any:
    def known_latents(self: Inpaint, latents: Any, noise: Any, next_t: Any, run: Any) -> Any:
        last = run.timesteps[-1].item() if next_t is None else next_t
        return plain(self, latents, noise, last, run)

    return known_latents


def _picture_at_full_strength(patch: Patch) -> None:
    """Mix the picture in at full strength, where the run is to begin with noise alone."""

    def encode(plain: Any) -> Any:
        def encode_image(self: Inpaint, *args: Any) -> Any:
            vars(self)["kept"] = plain(self, *args)
            return vars(self)["kept"]

        return encode_image

    def begin(_plain: Any) -> Any:
        def initial_latents(self: Inpaint, noise: Any, run: Any) -> Any:
            image_latents = self.to_batch(vars(self)["kept"], len(noise))
            return Image2Image.noisy_latents(self, image_latents, noise, run)

        return initial_latents

    patch.wrap(Inpaint, "encode_image", encode)
    patch.wrap(Inpaint, "initial_latents", begin)


def _black(plain: Any) -> Any:
    return lambda self, image, redrawn: plain(self, image, redrawn) - redrawn.to(image)


def _not_masked(_plain: Any) -> Any:
    return lambda _self, image, redrawn: image.expand(max(len(image), len(redrawn)), -1, -1, -1)


def _inverted(plain: Any) -> Any:
    return lambda self, mask: plain(self, mask).logical_not()


def _averaged(plain: Any) -> Any:
    def latent_mask(self: Inpaint, redrawn: Any) -> Any:
        like = plain(self, redrawn)
        return F.avg_pool2d(redrawn.to(like), self.vae.config.downsampling_factor)

    return latent_mask


def _middle_of_the_square(plain: Any) -> Any:
    def latent_mask(self: Inpaint, redrawn: Any) -> Any:
        half = self.vae.config.downsampling_factor // 2
        return plain(self, redrawn[..., half:, half:])

    return latent_mask


def _darker_half(_plain: Any) -> Any:
    return lambda _self, mask: (mask > WHITE).unsqueeze(1)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="pipe-inpaint-init-sigma",
        component=INPAINT,
        wrong="Noisy latents of the picture are multiplied by the first sigma, as pure noise is",
        cases=("tiny/euler", "tiny-inpaint/euler"),
        seen="diffusers#3532, #3641",
        evidence="R",
        size="catastrophic",
        patch=wrapped(Inpaint, "noisy_latents", _twice_scaled),
    ),
    Mutant(
        id="pipe-inpaint-mask-batch",
        component=INPAINT,
        wrong="Every picture of a batch is paired with the mask and masked picture of the first",
        cases=("tiny-inpaint/base", "tiny-inpaint/batch3"),
        seen="diffusers#959, #1279, #1516; A1111#10644",
        evidence="R",
        size="visible",
        patch=wrapped(Inpaint, "unet_input", _first_for_all),
    ),
    Mutant(
        id="pipe-inpaint-channel-order",
        component=INPAINT,
        wrong="The UNet reads the masked picture before the mask",
        cases=("tiny-inpaint/base", "tiny-inpaint/everywhere"),
        evidence="I",
        size="catastrophic",
        patch=wrapped(Inpaint, "unet_input", _mask_last),
    ),
    Mutant(
        id="pipe-inpaint-channels-divided",
        component=INPAINT,
        wrong="Mask and masked picture are divided to variance 1 with the latents",
        cases=("tiny-inpaint/euler", "tiny-inpaint/lms"),
        seen="diffusers#719, #1331, #9084",
        evidence="R",
        size="visible",
        patch=wrapped(Inpaint, "denoise", _all_channels_divided),
    ),
    Mutant(
        id="pipe-inpaint-timestep-left",
        component=INPAINT,
        wrong="What is known is put back with the noise of the timestep just left",
        cases=("tiny/base", "tiny/ddpm"),
        evidence="I",
        size="visible",
        patch=wrapped(Inpaint, "known_latents", _timestep_left),
    ),
    Mutant(
        id="pipe-inpaint-noisy-end",
        component=INPAINT,
        wrong="What is known is put back with noise after the last step too",
        cases=("tiny/base", "tiny/ddpm"),
        evidence="I",
        patch=wrapped(Inpaint, "known_latents", _noisy_to_the_last),
    ),
    Mutant(
        id="pipe-inpaint-full-strength",
        component=INPAINT,
        wrong="At full strength the picture is still mixed into the noise",
        cases=("tiny/strength1",),
        evidence="I",
        patch=_picture_at_full_strength,
    ),
    Mutant(
        id="pipe-inpaint-masked-black",
        component=INPAINT,
        wrong="The masked picture is black where it is drawn anew, not grey",
        cases=("tiny-inpaint/base", "tiny-inpaint/everywhere"),
        evidence="I",
        size="visible",
        patch=wrapped(Inpaint, "mask_image", _black),
    ),
    Mutant(
        id="pipe-inpaint-not-masked",
        component=INPAINT,
        wrong="The UNet is shown the whole picture for the masked one",
        cases=("tiny-inpaint/base", "tiny-inpaint/everywhere"),
        seen="diffusers#959, #1279, #1516; A1111#10644",
        evidence="R",
        size="visible",
        patch=wrapped(Inpaint, "mask_image", _not_masked),
    ),
    Mutant(
        id="pipe-inpaint-mask-inverted",
        component=INPAINT,
        wrong="What is white in the mask is kept, and what is black is drawn anew",
        cases=("tiny/base", "tiny-inpaint/base"),
        seen="diffusers#959, #1279, #1516; A1111#10644",
        evidence="R",
        size="catastrophic",
        patch=wrapped(Inpaint, "binarize", _inverted),
    ),
    Mutant(
        id="pipe-inpaint-mask-averaged",
        component=INPAINT,
        wrong="The mask is averaged over the 8x8 pixels of a latent",
        cases=("tiny/base", "tiny-inpaint/base"),
        evidence="I",
        size="visible",
        patch=wrapped(Inpaint, "latent_mask", _averaged),
    ),
    Mutant(
        id="pipe-inpaint-mask-middle",
        component=INPAINT,
        wrong="The mask is read in the middle of the 8x8 pixels of a latent, not top left",
        cases=("tiny/base", "tiny-inpaint/base"),
        evidence="I",
        patch=wrapped(Inpaint, "latent_mask", _middle_of_the_square),
    ),
    Mutant(
        id="own-mask-129",
        component=INPAINT,
        wrong="The darkest grey that counts as white is 129",
        cases=("tiny-inpaint/base",),
        patch=wrapped(Inpaint, "binarize", _darker_half),
    ),
)

NOT_RUN: tuple[NotRun, ...] = ()
