"""Scenarios: named inputs, each chosen to expose a class of bugs."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.errors import unknown_name
from conformance.sampling import IMAGE_TO_IMAGE, INPAINT, SCHEDULERS, TEXT_TO_IMAGE
from conformance.scenarios.blocks import BLOCK_SCENARIOS
from conformance.scenarios.edits import IMAGE_TO_IMAGE_SCENARIOS, INPAINT_SCENARIOS
from conformance.scenarios.pictures import PICTURE_SCENARIOS
from conformance.scenarios.scenario import BASE, Scenario
from conformance.scenarios.schedulers import scheduler_scenarios
from conformance.scenarios.text import PROMPT_SCENARIOS, text_scenarios
from conformance.scenarios.toy import TOY_SCENARIOS
from conformance.scenarios.training import TRAINING_SCENARIOS
from conformance.scenarios.unet import UNET_SCENARIOS
from conformance.scenarios.vae import IMAGE_SCENARIOS, LATENTS_SCENARIOS
from conformance.spec import TOKENIZER
from conformance.variants import TOY, Variant

__all__ = ["BASE", "Scenario", "scenarios"]

_KNOWN: dict[str, Sequence[Scenario]] = {
    **BLOCK_SCENARIOS,
    "text_encoder": PROMPT_SCENARIOS,
    "unet": UNET_SCENARIOS,
    "vae_encoder": IMAGE_SCENARIOS,
    "vae_decoder": LATENTS_SCENARIOS,
    **{name: scheduler_scenarios(name.partition("/")[2]) for name in SCHEDULERS},
    TEXT_TO_IMAGE: PICTURE_SCENARIOS,
    IMAGE_TO_IMAGE: IMAGE_TO_IMAGE_SCENARIOS,
    INPAINT: INPAINT_SCENARIOS,
    **TRAINING_SCENARIOS,
}

_INPAINT = "-inpaint"
_INPAINT_SCENARIOS = (BASE, "nonsquare")


def scenarios(component: str, variant: Variant) -> list[Scenario]:
    """Return the scenarios recorded for a component and variant, `base` first.

    Args:
        component: A component.
        variant: A variant.

    Returns:
        The scenarios whose sizes and regimes include the variant's.

    Raises:
        UsageError: No such component.
    """
    if component == TOKENIZER:
        known: Sequence[Scenario] = text_scenarios()
    elif component in _KNOWN:
        known = _KNOWN[component]
    else:
        raise unknown_name("component", component, [TOKENIZER, *_KNOWN])
    if variant.size == TOY:
        return list(TOY_SCENARIOS.get(component, ()))
    if component == INPAINT:
        return [s for s in known if variant.size in s.sizes]
    size = variant.size.removesuffix(_INPAINT)
    chosen = [s for s in known if variant.regime in s.regimes and size in s.sizes]
    if variant.size.endswith(_INPAINT):
        chosen = [s for s in chosen if s.name in _INPAINT_SCENARIOS]
    return chosen
