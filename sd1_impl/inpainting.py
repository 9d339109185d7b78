"""Inpainting: what a mask marks is drawn anew, the rest of the image is kept.

There are two ways, and the UNet decides. One that was trained for it reads nine channels: the noisy
latents, the mask, and the latents of the image without what is to be drawn (LDM, Rombach et al.,
2022, section 4.5; ``scripts/inpaint_st.py`` of Runway). With any other, the loop itself puts back
after every step what is kept, as noisy as it is by then (SDEdit, Meng et al., 2021, algorithm 2).
What surrounds the networks is that of diffusers' ``StableDiffusionInpaintPipeline``.

Shapes: as in `sd1_impl.image_to_image`; M masks, one for all pictures or one for each prompt, and
as many masked images as there are images or masks, whichever are more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sd1_impl.image_to_image import EditedPicture, Image2Image
from sd1_impl.pipeline import Step, parameter
from sd1_impl.pipeline_inputs import (
    check_absent,
    check_count,
    check_image,
    check_mask,
    check_shape,
    read_texts,
)
from sd1_impl.schedulers import Run

WHITE = 128
"""The darkest grey that counts as white: half of 255, rounded up."""


@dataclass(frozen=True, eq=False, kw_only=True)
class InpaintedPicture(EditedPicture):
    """Pictures that keep a part of the image.

    Attributes:
        mask: ``(M, 1, h, w)``, in the UNet's dtype: 1 where latents are drawn anew, else 0.
        masked_image: ``(max(I, M), 3, H, W)``, in [-1, 1]: the image, but 0 where it is drawn anew.
            None if the UNet has no channels for it.
        masked_image_latents: ``(max(I, M), 4, h, w)``, its latents; or None, likewise.
    """

    mask: Tensor
    masked_image: Tensor | None
    masked_image_latents: Tensor | None


class Inpaint(Image2Image):
    """Stable Diffusion v1, drawing a part of an image: as `Text2Image`, each method is one term.

    Args:
        tokenizer: As `Text2Image`'s, like all parts.
        text_encoder: Ids to what the UNet attends to.
        unet: Predicts the noise; of 4 channels, or of 9, made for inpainting.
        vae: Encodes the image and decodes the latents.
        scheduler: The way from noise to latents.

    Raises:
        ValueError: If the parts are not of one model.
    """

    def unet_channels(self, latent_channels: int) -> tuple[int, ...]:
        """Return how many channels the UNet may read: latents, or those, a mask and latents."""
        return latent_channels, 2 * latent_channels + 1

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Tensor,
        mask: Tensor,
        strength: float = 1.0,
        negative_prompt: str | Sequence[str] = "",
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        image_noise: Tensor | None = None,
        latents: Tensor | None = None,
        masked_image_noise: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[Step], None] | None = None,
    ) -> InpaintedPicture:
        """Draw a part of an image anew.

        Args:
            prompt: As `Image2Image`'s, like all that is not said here.
            image: ``(I, H, W, 3)``, uint8, RGB.
            mask: ``(M, H, W)``, uint8, of the image's size: white (128 to 255) is drawn anew, black
                is kept. A latent is drawn anew if the top left one of its 8x8 pixels is.
            strength: As `Image2Image`'s, but at 1 the run begins with noise alone.
            negative_prompt: What to draw away from.
            num_images_per_prompt: Pictures n of each prompt; more than one, of one image and mask.
            num_inference_steps: Steps of the whole run.
            guidance_scale: How far to go towards the prompt.
            image_noise: ``(I, 4, h, w)``, standard normal. Not to be given where the image's
                latents are not needed: to a UNet of 9 channels at strength 1.
            latents: ``(P, 4, h, w)``, standard normal: the noise to begin with, below strength 1
                added to the image's latents; and that of what is put back.
            masked_image_noise: ``(max(I, M), 4, h, w)``, standard normal: the place of the masked
                image's latents in their distribution. Not to be given to a UNet of 4 channels.
            noise: ``(N, P, 4, h, w)``, standard normal: what the steps add.
            generator: Where noise is drawn from, in the order of these four.
            callback: Called after every step.

        Returns:
            The pictures, and everything on the way to them.

        Raises:
            TypeError: If a prompt is no text, or if image or mask are not of bytes.
            ValueError: If an argument is not as said; if no step is left.
        """
        prompts, negatives = read_texts(
            prompt, negative_prompt, num_images_per_prompt, guidance_scale
        )
        check_image(image, self.vae.config.downsampling_factor)
        check_mask(mask, image)
        for name, given in (("image", image), ("mask", mask)):
            check_count(name, given, len(prompts), num_images_per_prompt)
        run = self.start_run(num_inference_steps, strength)
        one = self.latents_shape(*image.shape[1:3])
        pictures = num_images_per_prompt * len(prompts)
        images, masked_images = len(image), max(len(image), len(mask))
        check_shape("image_noise", image_noise, (images, *one))
        check_shape("latents", latents, (pictures, *one))
        check_shape("masked_image_noise", masked_image_noise, (masked_images, *one))
        check_shape("noise", noise, (len(run.timesteps), pictures, *one))

        reads_mask = self.unet.config.in_channels > one[0]
        begins_pure = strength == 1
        needs_image = not (reads_mask and begins_pure)
        if not needs_image:
            why = "a UNet of 9 channels at strength 1 needs no latents of the image"
            check_absent("image_noise", image_noise, why)
        if not reads_mask:
            why = "a UNet of 4 channels reads no masked image"
            check_absent("masked_image_noise", masked_image_noise, why)

        if needs_image:
            image_noise = self.given_or_drawn(image_noise, (images, *one), generator)
        latents = self.given_or_drawn(latents, (pictures, *one), generator)
        # Drawn for every UNet, as in diffusers: what a seed means for the steps depends on it.
        masked_image_noise = self.given_or_drawn(
            masked_image_noise, (masked_images, *one), generator
        )

        text = self.repeat_prompts(self.encode_prompts(prompts, negatives), num_images_per_prompt)
        init_image = self.normalize(image)
        image_latents = each_image = None
        if needs_image:
            image_latents = self.encode_image(init_image, image_noise)
            each_image = self.to_batch(image_latents, pictures)
        redrawn = self.binarize(mask)
        latent_mask = self.latent_mask(redrawn)
        each_mask = self.to_batch(latent_mask, pictures)
        masked_image = masked_image_latents = each_masked_image = None
        if reads_mask:
            masked_image = self.mask_image(init_image, redrawn)
            masked_image_latents = self.encode_masked_image(masked_image, masked_image_noise)
            each_masked_image = self.to_batch(masked_image_latents, pictures)

        def add_channels(model_input: Tensor) -> Tensor:
            return self.unet_input(model_input, each_mask, each_masked_image)

        def put_back(stepped: Tensor, next_t: float | None) -> Tensor:
            known = self.known_latents(each_image, latents, next_t, run)
            return self.blend(stepped, known, each_mask)

        first = (
            self.initial_latents(latents, run)
            if begins_pure
            else self.noisy_latents(each_image, latents, run)
        )
        last = self.denoise(
            first,
            text,
            run,
            guidance_scale=guidance_scale,
            noise=noise,
            generator=generator,
            callback=callback,
            add_channels=add_channels if reads_mask else None,
            put_back=None if reads_mask else put_back,
        )
        return InpaintedPicture(
            **vars(self.finish(text, first, last)),
            init_image=init_image,
            image_latents=image_latents,
            mask=latent_mask,
            masked_image=masked_image,
            masked_image_latents=masked_image_latents,
        )

    def binarize(self, mask: Tensor) -> Tensor:
        """Turn ``(M, H, W)`` bytes into ``(M, 1, H, W)`` truths: True where all is drawn anew."""
        return (mask >= WHITE).unsqueeze(1)

    def latent_mask(self, redrawn: Tensor) -> Tensor:
        """Take the top left of each 8x8 pixels: ``(M, 1, h, w)``, 1 or 0, in the UNet's dtype."""
        factor = self.vae.config.downsampling_factor
        return redrawn[..., ::factor, ::factor].to(parameter(self.unet))

    def mask_image(self, init_image: Tensor, redrawn: Tensor) -> Tensor:
        """Make grey, which is 0, what is drawn anew: ``(max(I, M), 3, H, W)``."""
        return init_image * redrawn.logical_not().to(init_image)

    def encode_masked_image(self, masked_image: Tensor, noise: Tensor) -> Tensor:
        """Encode what the UNet is shown of the image: ``(max(I, M), 4, h, w)``, in its dtype."""
        return self.encode_pixels(masked_image, noise)

    def unet_input(self, model_input: Tensor, mask: Tensor, masked_image_latents: Tensor) -> Tensor:
        """Put together what a UNet made for inpainting reads, ``(P, 9, h, w)``.

        Args:
            model_input: ``(P, 4, h, w)``, the scaled latents.
            mask: ``(P, 1, h, w)``.
            masked_image_latents: ``(P, 4, h, w)``, never noisy and never scaled.
        """
        return torch.cat([model_input, mask, masked_image_latents], dim=1)

    def known_latents(
        self, image_latents: Tensor, noise: Tensor, next_t: float | None, run: Run
    ) -> Tensor:
        """Return the image's latents, as noisy as the next step expects; clean after the last."""
        if next_t is None:
            return image_latents
        return self.scheduler.add_noise(image_latents, noise.to(image_latents), next_t, run)

    def blend(self, latents: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        """Keep what is known where the mask is 0, and the step's latents where it is 1."""
        return (1 - mask) * known + mask * latents
