"""Inputs of the toy: trained weights have outliers, and scales, that drawn ones lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conformance.sampling import TEXT_TO_IMAGE
from conformance.scenarios.pictures import PictureScenario
from conformance.scenarios.scenario import BASE, Scenario
from conformance.scenarios.text import PromptScenario
from conformance.scenarios.unet import UNetScenario
from conformance.scenarios.vae import ImageScenario, LatentsScenario
from conformance.variants import TOY, TRAINED

_HUNTS = "what shows in trained weights alone: outliers, norms that are far from one, dead channels"
_LATENT = 8
"""Sides of its latents: its pictures have 64 pixels each way."""

_GUIDANCE = 2.0
"""It knows one world well: what SD v1 needs to be heard would drown out its colours."""

_CAPTIONS = ("a large red circle in the middle", "a small blue square at the top left")

TOY_SCENARIOS: Mapping[str, Sequence[Scenario]] = {
    "text_encoder": (
        PromptScenario(BASE, _HUNTS, regimes=(TRAINED,), sizes=(TOY,), entry="captions"),
    ),
    "unet": tuple(
        UNetScenario(
            name,
            _HUNTS,
            (timestep,),
            height=_LATENT,
            width=_LATENT,
            regimes=(TRAINED,),
            sizes=(TOY,),
        )
        for name, timestep in ((BASE, 10), ("t500", 500))
    ),
    "vae_encoder": (ImageScenario(BASE, _HUNTS, 64, 64, regimes=(TRAINED,), sizes=(TOY,)),),
    "vae_decoder": (
        LatentsScenario(BASE, _HUNTS, _LATENT, _LATENT, batch=1, regimes=(TRAINED,), sizes=(TOY,)),
    ),
    TEXT_TO_IMAGE: (
        PictureScenario(
            BASE,
            "a picture that shows something: what an error does to it",
            prompts=_CAPTIONS,
            negative_prompts=("", ""),
            algorithm="ddim",
            steps=10,
            guidance_scale=_GUIDANCE,
            height=_LATENT,
            width=_LATENT,
            regimes=(TRAINED,),
            sizes=(TOY,),
        ),
    ),
}
"""By component; what is not here the toy is not judged on."""
