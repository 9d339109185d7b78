"""Image to image: the run begins late, with a picture's latents made as noisy as it is there.

Source: SDEdit (Meng et al., "Guided Image Synthesis and Editing with Stochastic Differential
Equations", 2021), algorithm 1; ``scripts/img2img.py`` of CompVis. What surrounds the networks is
that of diffusers' ``StableDiffusionImg2ImgPipeline``.

Shapes: as in `sd1_impl.pipeline`; I images, one for all pictures or one for each prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sd1_impl.pipeline import Picture, Step, Text2Image, parameter
from sd1_impl.pipeline_inputs import (
    check_count,
    check_image,
    check_shape,
    count_steps,
    read_texts,
)
from sd1_impl.schedulers import Run


@dataclass(frozen=True, eq=False, kw_only=True)
class EditedPicture(Picture):
    """Pictures made of an image.

    Attributes:
        init_image: ``(I, 3, H, W)``, the image in [-1, 1], in the autoencoder's dtype.
        image_latents: ``(I, 4, h, w)``, its latents; None where inpainting begins with pure noise
            and does not need them.
    """

    init_image: Tensor
    image_latents: Tensor | None


class Image2Image(Text2Image):
    """Stable Diffusion v1, beginning with an image: as `Text2Image`, and each method is one term.

    Args:
        tokenizer: As `Text2Image`'s, like all parts.
        text_encoder: Ids to what the UNet attends to.
        unet: Predicts the noise.
        vae: Encodes the image and decodes the latents.
        scheduler: The way from noise to latents.

    Raises:
        ValueError: If the parts are not of one model.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Tensor,
        strength: float = 0.8,
        negative_prompt: str | Sequence[str] = "",
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        image_noise: Tensor | None = None,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[Step], None] | None = None,
    ) -> EditedPicture:
        """Draw pictures that begin with an image.

        Args:
            prompt: As `Text2Image`'s, like all that is not said here.
            image: ``(I, H, W, 3)``, uint8, RGB: one for all prompts, or one for each. H and W are
                multiples of 8, and the pictures' own.
            strength: How much of the image is given up: that part of the run's steps is taken,
                above 0, to 1, where still the image is mixed in.
            negative_prompt: What to draw away from.
            num_images_per_prompt: Pictures n of each prompt; more than one, of one image.
            num_inference_steps: Steps of the whole run, of which ``int(steps * strength)`` are
                taken, and N counts their calls.
            guidance_scale: How far to go towards the prompt.
            image_noise: ``(I, 4, h, w)``, standard normal: the place of the image's latents in
                their distribution. Drawn from ``generator`` if None, before all others.
            latents: ``(P, 4, h, w)``, standard normal: the noise that is added to the image's
                latents.
            noise: ``(N, P, 4, h, w)``, standard normal: what the steps add.
            generator: Where noise is drawn from, in the order of these three.
            callback: Called after every step.

        Returns:
            The pictures, and everything on the way to them.

        Raises:
            TypeError: If a prompt is no text, or if the image is not of bytes.
            ValueError: If an argument is not as said; if no step is left.
        """
        prompts, negatives = read_texts(
            prompt, negative_prompt, num_images_per_prompt, guidance_scale
        )
        check_image(image, self.vae.config.downsampling_factor)
        check_count("image", image, len(prompts), num_images_per_prompt)
        run = self.start_run(num_inference_steps, strength)
        one = self.latents_shape(*image.shape[1:3])
        images, pictures = len(image), num_images_per_prompt * len(prompts)
        check_shape("image_noise", image_noise, (images, *one))
        check_shape("latents", latents, (pictures, *one))
        check_shape("noise", noise, (len(run.timesteps), pictures, *one))

        image_noise = self.given_or_drawn(image_noise, (images, *one), generator)
        latents = self.given_or_drawn(latents, (pictures, *one), generator)
        text = self.repeat_prompts(self.encode_prompts(prompts, negatives), num_images_per_prompt)
        init_image = self.normalize(image)
        image_latents = self.encode_image(init_image, image_noise)
        first = self.noisy_latents(self.to_batch(image_latents, pictures), latents, run)
        last = self.denoise(
            first,
            text,
            run,
            guidance_scale=guidance_scale,
            noise=noise,
            generator=generator,
            callback=callback,
        )
        picture = self.finish(text, first, last)
        return EditedPicture(**vars(picture), init_image=init_image, image_latents=image_latents)

    def start_run(self, num_inference_steps: int, strength: float) -> Run:
        """Begin a run late: of its steps the last remain, as many as the strength says.

        Raises:
            ValueError: If there is no such strength, or if none of the steps remains.
        """
        left_out = num_inference_steps - count_steps(num_inference_steps, strength)
        begin_index = self.scheduler.order * left_out  # which counts calls
        return self.scheduler.start(num_inference_steps, begin_index=begin_index)

    def normalize(self, image: Tensor) -> Tensor:
        """Turn ``(I, H, W, 3)`` bytes into ``(I, 3, H, W)`` in [-1, 1], the autoencoder's."""
        like = parameter(self.vae)
        wide = torch.promote_types(like.dtype, torch.float32)
        pixels = image.permute(0, 3, 1, 2).to(like.device, wide) / 255
        return (pixels * 2 - 1).to(like.dtype).contiguous()

    def encode_image(self, init_image: Tensor, noise: Tensor) -> Tensor:
        """Encode the image to begin with: ``(I, 4, h, w)``, scaled, in the UNet's dtype."""
        return self.encode_pixels(init_image, noise)

    def encode_pixels(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Draw latents of ``(I, 3, H, W)`` pixels in [-1, 1]: at ``noise`` in their distribution.

        Args:
            pixels: In the autoencoder's dtype.
            noise: ``(I, 4, h, w)``, standard normal, any dtype.

        Returns:
            ``(I, 4, h, w)``, scaled, in the UNet's dtype.
        """
        latents = self.vae.sample_latents(self.vae.encode(pixels), noise.to(pixels))
        return latents.to(parameter(self.unet))

    def to_batch(self, tensor: Tensor, pictures: int) -> Tensor:
        """Give every picture its own: ``(I, ...)`` to ``(P, ...)``, one for all or one each."""
        return tensor.repeat(pictures // len(tensor), *[1] * (tensor.ndim - 1))

    def noisy_latents(self, image_latents: Tensor, noise: Tensor, run: Run) -> Tensor:
        """Make an image's latents, ``(P, 4, h, w)``, as noisy as the run's first timestep says."""
        t = run.timesteps[0].item()
        return self.scheduler.add_noise(image_latents, noise.to(image_latents), t, run)
