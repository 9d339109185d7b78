"""Pipelines: prompts to pictures, from noise, from a picture, or within a part of one.

Source: LDM (Rombach et al., 2022); for guidance, "Classifier-Free Diffusion Guidance" (Ho and
Salimans, 2021), equation 6, whose weight w is here the scale less one; for beginning with a
picture, "SDEdit" (Meng et al., 2022); for keeping what is known around a hole, "RePaint" (Lugmayr
et al., 2022), equation 8, without its resampling. The UNet of 9 channels is that of LDM's section
4.5: it reads the hole and what is around it.

Shapes: B prompts, n pictures of each, next to each other; pictures are 8 times as high and wide as
their latents (h, w). One picture serves all prompts, or each has its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.module import Network, See
from sd1_numpy.schedulers import SCHEDULERS, Scheduler, UnsupportedError, scheduler_of
from sd1_numpy.tokenizer import Tokenizer

FACTOR = 8
"""Pixels of a picture for each place of its latents."""

WHITE = 128
"""Greys of a mask are white from here on: what is drawn anew."""


@dataclass(frozen=True)
class Pipeline:
    """The parts of Stable Diffusion, and what is done with them.

    A method for each task prepares what the loop begins with; `draw` is what they share, and its
    arguments are theirs too.

    Attributes:
        tokenizer: Of the prompts.
        text_encoder: Turns their ids into what the UNet attends to.
        unet: Says what of latents is noise.
        vae_encoder: Turns a picture into latents.
        vae_decoder: Turns latents into a picture.
    """

    tokenizer: Tokenizer
    text_encoder: Network
    unet: Network
    vae_encoder: Network
    vae_decoder: Network

    def txt2img(
        self, see: See, latents: Array, config: Mapping[str, Any], **others: Any
    ) -> dict[str, Array]:
        """Draw pictures of prompts.

        Args:
            see: Is shown every term; gives back what goes on.
            latents: Of a standard normal, (B n, 4, h, w).
            config: `scheduler`, its name, and its settings.
            others: Of `draw`.

        Returns:
            See `draw`.
        """
        scheduler = begin(config)
        return self.draw(see, scheduler, latents * scheduler.init_noise_sigma, **others)

    def img2img(
        self,
        see: See,
        latents: Array,
        config: Mapping[str, Any],
        image: Array,
        image_noise: Array,
        strength: float,
        **others: Any,
    ) -> dict[str, Array]:
        """Draw pictures of prompts that resemble a picture.

        Args:
            see: Is shown every term; gives back what goes on.
            latents: Of a standard normal, (B n, 4, h, w).
            config: `scheduler`, its name, and its settings.
            image: RGB, uint8, (B or 1, 8 h, 8 w, 3).
            image_noise: Of the posterior of its latents, standard normal, (B or 1, 4, h, w).
            strength: Share of the steps that are taken.
            others: Of `draw`.

        Returns:
            See `draw`.
        """
        check_sizes(latents, image=image)
        scheduler = begin(config, strength)
        known = self.latents_of(see, "image", signed(see, image, latents), image_noise)
        return self.draw(see, scheduler, scheduler.mix(0, known, latents), **others)

    def inpaint(
        self,
        see: See,
        latents: Array,
        config: Mapping[str, Any],
        image: Array,
        mask: Array,
        strength: float,
        image_noise: Array | None = None,
        masked_image_noise: Array | None = None,
        **others: Any,
    ) -> dict[str, Array]:
        """Draw a part of a picture anew.

        Args:
            see: Is shown every term; gives back what goes on.
            latents: Of a standard normal, (B n, 4, h, w).
            config: `scheduler`, its name, and its settings.
            image: RGB, uint8, (B or 1, 8 h, 8 w, 3).
            mask: White is drawn anew, uint8, (B or 1, 8 h, 8 w).
            strength: Share of the steps that are taken; at 1 the run begins with noise alone.
            image_noise: Of the posterior of the picture's latents, standard normal,
                (B or 1, 4, h, w); None where a UNet of 9 channels begins with noise alone.
            masked_image_noise: The same of the masked picture; None with a UNet of 4 channels.
            others: Of `draw`.

        Returns:
            See `draw`.
        """
        check_sizes(latents, image=image, mask=mask)
        scheduler = begin(config, strength)
        picture = signed(see, image, latents)
        hole = (mask >= WHITE).astype(latents.dtype)[:, None]
        small = see("mask", hole[:, :, ::FACTOR, ::FACTOR])
        reads_mask = self.unet.sizes["in_channels"] > latents.shape[1]
        known = None
        if strength < 1 or not reads_mask:
            known = self.latents_of(see, "image", picture, image_noise)
        if strength < 1:
            initial = scheduler.mix(0, known, latents)
        else:
            initial = latents * scheduler.init_noise_sigma

        if reads_mask:
            masked = see("masked_image", picture * (1 - hole))
            masked = self.latents_of(see, "masked_image", masked, masked_image_noise)
            return self.draw(see, scheduler, initial, beside=(small, masked), **others)

        def around(k: int, x: Array) -> Array:
            """Put what is known back around the hole, as noisy as the next call's sample."""
            x = see(f"unblended#{k}", x)
            last = k == len(scheduler.timesteps) - 1
            noisy = known if last else scheduler.mix(k + 1, known, latents)
            return (1 - small) * noisy + small * x

        return self.draw(see, scheduler, initial, after=around, **others)

    def draw(
        self,
        see: See,
        scheduler: Scheduler,
        initial: Array,
        prompt: Array,
        negative_prompt: Array,
        guidance_scale: float,
        noise: Array | None = None,
        num_images_per_prompt: int = 1,
        beside: tuple[Array, ...] = (),
        after: Callable[[int, Array], Array] = lambda _k, x: x,
    ) -> dict[str, Array]:
        """Lead latents along a run of a scheduler, and decode them.

        Args:
            see: Is shown every term; gives back what goes on.
            scheduler: Its run.
            initial: Latents as noisy as its first call's sample, (B n, 4, h, w).
            prompt: Strings, (B,).
            negative_prompt: What to draw away from, (B,); not read without guidance.
            guidance_scale: Up to 1 there is no guidance.
            noise: Of each call, (N, B n, 4, h, w), where the scheduler adds some.
            num_images_per_prompt: n.
            beside: What else the UNet reads in every call, (B n or 1, any, h, w).
            after: Changes the latents that a step made, given its number.

        Returns:
            `latents#0` ... after each step, `image` (B n, 3, 8 h, 8 w) in 0..1, `image_uint8`
            (B n, 8 h, 8 w, 3).
        """
        given = initial.shape[1] + sum(x.shape[1] for x in beside)
        if given != self.unet.sizes["in_channels"]:
            raise ValueError(
                f"the UNet reads {self.unet.sizes['in_channels']} channels, not {given}"
            )
        text = self.encode(see, "", prompt, num_images_per_prompt)
        guided = guidance_scale > 1
        negative = None
        if guided:
            negative = self.encode(see, "negative_", negative_prompt, num_images_per_prompt)
        latents = see("initial_latents", initial)
        others = [np.broadcast_to(x, (len(latents), *x.shape[1:])) for x in beside]
        outputs = {}
        for k, t in enumerate(scheduler.timesteps):
            told = see(f"timestep#{k}", np.array(t))
            x = np.concatenate([scheduler.scale(k, latents), *others], axis=1)
            x = see(f"model_input#{k}", x)
            e = self.predict(see, k, told, x, text, negative, guidance_scale)
            latents = scheduler.step(k, e, latents, None if noise is None else noise[k])
            latents = after(k, latents)
            outputs[f"latents#{k}"] = latents
            latents = see(f"latents#{k}", latents)
        decoded = self.vae_decoder(lambda name, x: see(f"vae.{name}", x), latents=latents)
        image = np.clip(see("vae", decoded["image"]) / 2 + 0.5, 0, 1)
        pixels = np.rint(255 * image).astype(np.uint8).transpose(0, 2, 3, 1)
        return {**outputs, "image": image, "image_uint8": pixels}

    def encode(self, see: See, prefix: str, texts: Array, each: int) -> Array:
        """Tokenize and encode texts; return (B n, 77, width)."""
        ids = np.array([self.tokenizer(text) for text in texts.tolist()])
        ids = see(f"{prefix}input_ids", ids)
        embeds = self.text_encoder(input_ids=ids)["last_hidden_state"]
        return see(f"{prefix}prompt_embeds", embeds.repeat(each, axis=0))

    def latents_of(self, see: See, name: str, picture: Array, noise: Array | None) -> Array:
        """Encode a picture in -1..1: a sample of the posterior, scaled."""
        if noise is None:
            raise ValueError(f"{name}_noise is missing: the picture has to be encoded")
        return see(f"{name}_latents", self.vae_encoder(image=picture, noise=noise)["latents"])

    def predict(
        self,
        see: See,
        k: int,
        t: Array,
        x: Array,
        text: Array,
        negative: Array | None,
        scale: float,
    ) -> Array:
        """Return the noise of the k-th call: the prompt's, moved away from the negative one's."""
        if negative is None:
            said = self.unet(sample=x, timestep=t, encoder_hidden_states=text)["sample"]
            return see(f"noise_pred#{k}", see(f"noise_pred_text#{k}", said))
        both = self.unet(
            sample=np.concatenate([x, x]),
            timestep=t,
            encoder_hidden_states=np.concatenate([negative, text]),
        )
        away, towards = np.split(both["sample"], 2)
        away = see(f"noise_pred_uncond#{k}", away)
        towards = see(f"noise_pred_text#{k}", towards)
        return see(f"noise_pred#{k}", away + scale * (towards - away))


def begin(config: Mapping[str, Any], strength: float | None = None) -> Scheduler:
    """Begin the run of a scheduler; strength leaves out its first steps.

    Args:
        config: `scheduler`, its name, and its settings.
        strength: Share of the steps that are taken, rounded down; None without a picture.

    Raises:
        UnsupportedError: The scheduler or a setting is not known.
        ValueError: There is no such run.
    """
    settings = dict(config)
    name = settings.pop("scheduler")
    if strength is None or name not in SCHEDULERS:
        return scheduler_of(name, settings)
    steps = settings["num_inference_steps"]
    taken = int(steps * strength)
    if not (0 <= strength <= 1 and taken):
        raise ValueError(f"strength is {strength}, expected 1 / {steps} to 1: no step, or too many")
    if settings["begin_index"]:
        raise UnsupportedError("begin_index with a picture: strength says where a run begins")
    left_out = SCHEDULERS[name].calls_per_step * (steps - taken)
    return scheduler_of(name, settings | {"begin_index": left_out})


def check_sizes(latents: Array, **pictures: Array) -> None:
    """Refuse pictures that are not as many or as large as the latents need."""
    height, width = (FACTOR * side for side in latents.shape[2:])
    for name, picture in pictures.items():
        if picture.shape[1:3] != (height, width) or len(picture) not in {1, len(latents)}:
            raise ValueError(
                f"{name} has shape {picture.shape}: latents of shape {latents.shape} need 1 or "
                f"{len(latents)} of {height} x {width}"
            )


def signed(see: See, image: Array, like: Array) -> Array:
    """Bring a picture's bytes to -1..1, its colours to the second axis; of that dtype."""
    picture = (image.transpose(0, 3, 1, 2) / 127.5 - 1).astype(like.dtype)
    return see("init_image", picture)
