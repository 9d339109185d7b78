"""Text to image: the prompt's tokens, their encoding, noise made into latents, latents decoded.

Source: LDM (Rombach et al., 2022), section 3, and ``scripts/txt2img.py`` of CompVis. Guidance: Ho
and Salimans, "Classifier-Free Diffusion Guidance", 2021, equation 6, whose weight w is s - 1 here.
What surrounds the networks (which draws are made, when guidance is off, how numbers become pixels)
is that of diffusers' ``StableDiffusionPipeline``.

`sd1_impl.image_to_image` and `sd1_impl.inpainting` begin with a picture, and do the rest as here.

Shapes: B prompts, P pictures (B, or n times as many), H W height and width of a picture, h w those
of its latents (an eighth), E width of the text's encoding (768), N calls of the UNet, which are as
many as the run has timesteps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sd1_impl.pipeline_inputs import check_shape, read_texts
from sd1_impl.schedulers import Run, Scheduler
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the UNet is told to draw, and with guidance also what to draw away from.

    Attributes:
        input_ids: ``(B, 77)``, int64.
        negative_input_ids: Of the same shape; None without guidance.
        prompt_embeds: ``(B, 77, E)``, in the UNet's dtype; after `Text2Image.repeat_prompts`
            ``(P, 77, E)``, one for each picture.
        negative_prompt_embeds: Of the same shape; None without guidance.
    """

    input_ids: Tensor
    negative_input_ids: Tensor | None
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None


@dataclass(frozen=True, eq=False)
class Step:
    """What one pass of the denoising loop computed; tensors are ``(P, 4, h, w)``.

    Attributes:
        index: Which call of the UNet this was, from 0.
        timestep: What the UNet was told of the noise level; a float where the scheduler has
            fractions.
        model_input: Latents as the UNet reads them, scaled, without the duplication for guidance;
            ``(P, 9, h, w)`` for an inpainting UNet, with the mask and the masked image.
        noise_pred_uncond: Noise predicted for the negative prompt; None without guidance.
        noise_pred_text: Noise predicted for the prompt.
        noise_pred: The guided noise, which the scheduler reads.
        latents: After the step.
        unblended: As the scheduler left them, where inpainting then put back what is kept; None
            elsewhere, where they are the latents.
    """

    index: int
    timestep: float
    model_input: Tensor
    noise_pred_uncond: Tensor | None
    noise_pred_text: Tensor
    noise_pred: Tensor
    latents: Tensor
    unblended: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """Pictures, and what they were made of.

    Attributes:
        input_ids: ``(B, 77)``, int64: the prompts' tokens.
        negative_input_ids: Of the same shape; None without guidance.
        prompt_embeds: ``(P, 77, E)``: what the UNet read of the prompts, for each picture.
        negative_prompt_embeds: Of the same shape; None without guidance.
        initial_latents: ``(P, 4, h, w)``: what the loop began with, noise or a noisy image.
        latents: ``(P, 4, h, w)``: what the loop ended with.
        decoded: ``(P, 3, H, W)``: the decoder's output, about in [-1, 1], not clamped.
        image: ``(P, 3, H, W)`` in [0, 1], clamped, in the autoencoder's dtype.
        image_uint8: ``(P, H, W, 3)``, uint8, on the CPU: what is saved.
    """

    input_ids: Tensor
    negative_input_ids: Tensor | None
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    initial_latents: Tensor
    latents: Tensor
    decoded: Tensor
    image: Tensor
    image_uint8: Tensor


class Text2Image:
    """Stable Diffusion v1, put together.

    Each method is one term of the algorithm, and nothing else computes it: a subclass, or an
    instance's attribute, replaces that term alone.

    Args:
        tokenizer: Prompts to ids.
        text_encoder: Ids to what the UNet attends to.
        unet: Predicts the noise; its dtype and device are those of the loop.
        vae: Decodes the latents; may have another dtype. `sd1_impl.savings.use_saving` lets it
            take one picture, or one tile, after the other.
        scheduler: The way from noise to latents.

    Raises:
        ValueError: If the parts are not of one model: the widths at which they meet differ.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextEncoder,
        unet: UNet,
        vae: AutoencoderKL,
        scheduler: Scheduler,
    ) -> None:
        width, context = text_encoder.config.hidden_size, unet.config.cross_attention_dim
        if width != context:
            raise ValueError(
                f"the text encoder's hidden_size is {width}, "
                f"but the UNet's cross_attention_dim is {context}: they are not of one model"
            )
        channels, read = vae.config.latent_channels, unet.config.in_channels
        if read not in self.unet_channels(channels):
            inpainting = ": it is made for inpainting (`Inpaint`, with a mask)"
            raise ValueError(
                f"the VAE's latents have {channels} channels, but the UNet reads {read}"
                + (inpainting if read == 2 * channels + 1 else "")
            )
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.unet = unet
        self.vae = vae
        self.scheduler = scheduler

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        height: int = 512,
        width: int = 512,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[Step], None] | None = None,
    ) -> Picture:
        """Draw pictures.

        Args:
            prompt: One text or B of them.
            negative_prompt: What to draw away from: one text for all, or B. Not used without
                guidance.
            num_images_per_prompt: How many pictures n are drawn of each prompt, P = B n; those of a
                prompt follow each other.
            num_inference_steps: Steps, 1 to 999; PNDM from 2, and it calls the UNet once more;
                Heun calls it twice a step, but in the last.
            guidance_scale: How far to go from the negative prompt's prediction (0) past the
                prompt's (1). Guidance is off at 1 and below: the prompt alone decides.
            height: Height H in pixels, a multiple of 8; SD v1 was trained at 512.
            width: Width W, as H.
            latents: ``(P, 4, h, w)``, standard normal, any dtype: what to begin with. If None, they
                are drawn from ``generator``.
            noise: ``(N, P, 4, h, w)``, standard normal, any dtype: what the steps add. Read where
                the scheduler adds noise; if None, it is drawn there from ``generator``.
            generator: A generator on the CPU; if None, torch's default one. Draws are float32, in
                the order of their use, so that a seed means one picture in every dtype.
            callback: Called after every step.

        Returns:
            The pictures, and everything on the way to them.

        Raises:
            TypeError: If a prompt is no text.
            ValueError: If there is no prompt or the numbers of prompts differ; if no picture of
                them is asked for; if the guidance is not finite; if the scheduler has no such run;
                if a size is no multiple of 8, or a shape does not fit.
        """
        prompts, negatives = read_texts(
            prompt, negative_prompt, num_images_per_prompt, guidance_scale
        )
        run = self.scheduler.start(num_inference_steps)
        pictures = num_images_per_prompt * len(prompts)
        shape = (pictures, *self.latents_shape(height, width))
        check_shape("latents", latents, shape)
        check_shape("noise", noise, (len(run.timesteps), *shape))

        text = self.repeat_prompts(self.encode_prompts(prompts, negatives), num_images_per_prompt)
        first = self.initial_latents(self.given_or_drawn(latents, shape, generator), run)
        last = self.denoise(
            first,
            text,
            run,
            guidance_scale=guidance_scale,
            noise=noise,
            generator=generator,
            callback=callback,
        )
        return self.finish(text, first, last)

    def unet_channels(self, latent_channels: int) -> tuple[int, ...]:
        """Return how many channels the UNet may read: those of the latents."""
        return (latent_channels,)

    def latents_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return ``(4, h, w)`` for a picture of ``height`` by ``width`` pixels.

        Raises:
            ValueError: If one of the two is no multiple of 8.
        """
        factor = self.vae.config.downsampling_factor
        for name, size in (("height", height), ("width", width)):
            if size < factor or size % factor:
                raise ValueError(f"{name} is {size}, expected a multiple of {factor}")
        return self.vae.config.latent_channels, height // factor, width // factor

    def encode_prompts(self, prompts: list[str], negative: list[str] | None) -> Prompts:
        """Tokenize and encode texts; padding is encoded too, as SD v1 was trained."""
        ids, embeds = self.encode(prompts)
        negative_ids, negative_embeds = (None, None) if negative is None else self.encode(negative)
        return Prompts(ids, negative_ids, embeds, negative_embeds)

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the ids of B texts, ``(B, 77)``, and their encoding, ``(B, 77, E)``."""
        input_ids = self.tokenizer(texts).to(parameter(self.text_encoder).device)
        last_hidden_state, _ = self.text_encoder(input_ids)
        return input_ids, last_hidden_state.to(parameter(self.unet))

    def repeat_prompts(self, text: Prompts, count: int) -> Prompts:
        """Repeat each prompt's encoding for ``count`` pictures that follow each other."""
        negative = text.negative_prompt_embeds
        return replace(
            text,
            prompt_embeds=text.prompt_embeds.repeat_interleave(count, dim=0),
            negative_prompt_embeds=(
                None if negative is None else negative.repeat_interleave(count, dim=0)
            ),
        )

    def given_or_drawn(
        self, given: Tensor | None, shape: Sequence[int], generator: torch.Generator | None
    ) -> Tensor:
        """Return the noise that the caller gave, or draw it."""
        return self.draw(shape, generator) if given is None else given

    def draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Draw standard normal noise, on the CPU and in float32 whatever the model is."""
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    def initial_latents(self, noise: Tensor, run: Run) -> Tensor:
        """Scale standard normal noise to the deviation that the run begins with."""
        return noise.to(parameter(self.unet)) * run.init_noise_sigma

    def denoise(
        self,
        latents: Tensor,
        text: Prompts,
        run: Run,
        *,
        guidance_scale: float,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[Step], None] | None = None,
        add_channels: Callable[[Tensor], Tensor] | None = None,
        put_back: Callable[[Tensor, float | None], Tensor] | None = None,
    ) -> Tensor:
        """Take latents along a run, from its first timestep to beyond its last.

        Args:
            latents: ``(P, 4, h, w)``, as noisy as the run's first timestep says.
            text: From `repeat_prompts`.
            run: From the scheduler's ``start``, with a ``begin_index`` to begin later.
            guidance_scale: As `__call__`'s; not used if the text has no negative prompt.
            noise: ``(N, P, 4, h, w)``, or None to draw it, as `__call__`'s.
            generator: What to draw it from.
            callback: Called after every step.
            add_channels: For inpainting: makes of the scaled latents what the UNet reads.
            put_back: For inpainting: given the latents after a step, and the timestep to come or
                None after the last, puts back what is kept.

        Returns:
            ``(P, 4, h, w)``, the denoised latents.
        """
        timesteps = run.timesteps.tolist()
        for index, (t, next_t) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
            model_input = self.scheduler.scale_model_input(latents, t, run)
            if add_channels is not None:
                model_input = add_channels(model_input)
            uncond, conditional = self.predict_noise(model_input, t, text)
            guided = conditional
            if uncond is not None:
                guided = self.guide(uncond, conditional, guidance_scale)
            step_noise = ()
            if self.scheduler.adds_noise(t):
                given = None if noise is None else noise[index]
                step_noise = (self.given_or_drawn(given, latents.shape, generator).to(latents),)
            latents = self.scheduler.step(guided, t, latents, run, *step_noise)
            unblended = None
            if put_back is not None:
                unblended, latents = latents, put_back(latents, next_t)
            if callback is not None:
                noises = (uncond, conditional, guided)
                callback(Step(index, t, model_input, *noises, latents, unblended))
        return latents

    def predict_noise(
        self, model_input: Tensor, t: float, text: Prompts
    ) -> tuple[Tensor | None, Tensor]:
        """Ask the UNet: once, for the negative prompts and the prompts together.

        Args:
            model_input: ``(P, 4, h, w)``, scaled latents, or ``(P, 9, h, w)``.
            t: Timestep.
            text: What is to be drawn.

        Returns:
            The noise predicted for the negative prompts (None if there are none) and that for the
            prompts, each ``(P, 4, h, w)``.
        """
        if text.negative_prompt_embeds is None:
            return None, self.unet(model_input, t, text.prompt_embeds)
        context = torch.cat([text.negative_prompt_embeds, text.prompt_embeds])  # (2 P, 77, E)
        uncond, conditional = self.unet(torch.cat([model_input] * 2), t, context).chunk(2)
        return uncond, conditional

    def guide(self, uncond: Tensor, conditional: Tensor, scale: float) -> Tensor:
        """Go from one prediction towards the other, ``scale`` times their distance."""
        return uncond + scale * (conditional - uncond)

    def finish(self, text: Prompts, first: Tensor, last: Tensor) -> Picture:
        """Make pictures of the last latents, and hand over all they were made of."""
        decoded = self.decode(last)
        image = self.to_image(decoded)
        return Picture(
            **vars(text),
            initial_latents=first,
            latents=last,
            decoded=decoded,
            image=image,
            image_uint8=self.to_uint8(image),
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``(P, 4, h, w)`` latents to ``(P, 3, H, W)``, about in [-1, 1]."""
        return self.vae.decode(latents.to(parameter(self.vae)))

    def to_image(self, decoded: Tensor) -> Tensor:
        """Map [-1, 1] to [0, 1], and what is beyond to its ends; same shape and dtype."""
        return (decoded / 2 + 0.5).clamp(0, 1)

    def to_uint8(self, image: Tensor) -> Tensor:
        """Turn ``(P, 3, H, W)`` in [0, 1] into ``(P, H, W, 3)`` bytes: nearest, ties to even."""
        pixels = image.cpu().to(torch.promote_types(image.dtype, torch.float32))
        return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def parameter(module: nn.Module) -> Tensor:
    """Return a parameter, for its dtype and device."""
    return next(module.parameters())
