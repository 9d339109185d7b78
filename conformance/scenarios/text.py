"""Inputs of the tokenizer and of the text encoder: prompts, as text and as ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from conformance import spec
from conformance.recipe import SEED, TensorRecipe
from conformance.regimes import REGIMES
from conformance.scenarios.scenario import BASE, SMALL, Scenario
from conformance.variants import NO_VARIANT, Variant


@dataclass(frozen=True)
class PromptScenario(Scenario):
    """One input of the text encoder; ids and the text that they stand for are in `golden/spec`.

    Attributes:
        entry: Of `golden/spec/prompts.json`, where it is not called as the scenario.
    """

    entry: str = ""

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Return `input_ids`, int64 (batch, 77): they are data, not drawn."""
        ids = spec.golden_prompts()[self.entry or self.name]["input_ids"]
        return {"input_ids": np.array(ids, np.int64)}

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:  # noqa: ARG002
        """Return no recipe: nothing is drawn."""
        return {}


@dataclass(frozen=True)
class TextScenario(Scenario):
    """One input of the tokenizer.

    Attributes:
        texts: One or several texts.
    """

    texts: tuple[str, ...] = ("",)

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Return `text`, an array of strings, shape (batch,)."""
        return {"text": np.array(self.texts)}

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:  # noqa: ARG002
        """Return no recipe: nothing is drawn."""
        return {}


PROMPT_SCENARIOS: tuple[PromptScenario, ...] = (
    PromptScenario(
        BASE,
        "wrong wiring, layer, constant, mask, activation; eps (lowvar), cast (dense), softmax "
        "(sharp), variance (offset)",
        regimes=REGIMES,
    ),
    PromptScenario("empty", "the unconditional prompt replaced by zeros; pooling at position 1"),
    PromptScenario("short", "padding masked out, though SD v1 attends to it", sizes=("tiny",)),
    PromptScenario("tokens75", "a full row: no padding, pooling at the last place", sizes=SMALL),
    PromptScenario("tokens76", "one token too many: EOS lost by truncation", sizes=("tiny",)),
    PromptScenario("tokens77", "two tokens too many", sizes=("tiny",)),
    PromptScenario("long", "a prompt of several rows: chunked or averaged", sizes=("tiny",)),
    PromptScenario(
        "several-eos",
        "pooling at the last EOS or at the largest id, not at the first EOS",
        sizes=SMALL,
    ),
    PromptScenario(
        "repeated",
        "positions not added: one token repeated differs by position alone",
        sizes=("tiny",),
    ),
    PromptScenario("batch3", "prompts of different lengths mixed up in a batch", sizes=("tiny",)),
)


@cache
def text_scenarios() -> tuple[TextScenario, ...]:
    """Return the tokenizer's scenarios, one per entry of `golden/spec/strings.json`."""
    return tuple(
        TextScenario(
            name,
            entry["hunts"],
            (entry["text"],) if isinstance(entry["text"], str) else tuple(entry["text"]),
            sizes=(NO_VARIANT,),
        )
        for name, entry in spec.golden_strings().items()
    )
