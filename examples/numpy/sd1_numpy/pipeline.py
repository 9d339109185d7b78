"""Text to image: prompts to pictures.

Source: LDM (Rombach et al., 2022) and, for guidance, "Classifier-Free Diffusion Guidance" (Ho and
Salimans, 2021), equation 6, whose weight w is here the scale less one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.module import Network, See
from sd1_numpy.schedulers import scheduler_of
from sd1_numpy.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextToImage:
    """A pipeline.

    Attributes:
        tokenizer: Of the prompts.
        text_encoder: Turns their ids into what the UNet attends to.
        unet: Says what of latents is noise.
        vae_decoder: Turns latents into a picture.
    """

    tokenizer: Tokenizer
    text_encoder: Network
    unet: Network
    vae_decoder: Network

    def __call__(
        self,
        see: See,
        prompt: Array,
        negative_prompt: Array,
        latents: Array,
        guidance_scale: float,
        config: Mapping[str, Any],
        noise: Array | None = None,
    ) -> dict[str, Array]:
        """Draw one picture for each prompt.

        Args:
            see: Is shown every term; gives back what goes on.
            prompt: Strings, (B,).
            negative_prompt: What to draw away from, (B,); not read without guidance.
            latents: Of a standard normal, (B, 4, h, w).
            guidance_scale: Up to 1 there is no guidance.
            config: `scheduler`, its name, and its settings.
            noise: Of each step, (N, B, 4, h, w), where the scheduler adds some.

        Returns:
            `latents#0` ... after each step, `image` (B, 3, 8 h, 8 w) in 0..1, `image_uint8`
            (B, 8 h, 8 w, 3).
        """
        settings = dict(config)
        scheduler = scheduler_of(settings.pop("scheduler"), settings)
        text = self.encode(see, "", prompt)
        guided = guidance_scale > 1
        negative = self.encode(see, "negative_", negative_prompt) if guided else None
        latents = see("initial_latents", latents)
        outputs = {}
        for k, t in enumerate(scheduler.timesteps):
            told = see(f"timestep#{k}", np.array(t))
            x = see(f"model_input#{k}", latents)
            e = self.predict(see, k, told, x, text, negative, guidance_scale)
            latents = scheduler.step(k, e, latents, None if noise is None else noise[k])
            outputs[f"latents#{k}"] = latents
            latents = see(f"latents#{k}", latents)
        decoded = self.vae_decoder(lambda name, x: see(f"vae.{name}", x), latents=latents)
        image = np.clip(see("vae", decoded["image"]) / 2 + 0.5, 0, 1)
        pixels = np.rint(255 * image).astype(np.uint8).transpose(0, 2, 3, 1)
        return {**outputs, "image": image, "image_uint8": pixels}

    def encode(self, see: See, prefix: str, texts: Array) -> Array:
        """Tokenize and encode texts; return (B, 77, width)."""
        ids = np.array([self.tokenizer(text) for text in texts.tolist()])
        ids = see(f"{prefix}input_ids", ids)
        return see(f"{prefix}prompt_embeds", self.text_encoder(input_ids=ids)["last_hidden_state"])

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
