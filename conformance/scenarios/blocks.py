"""Inputs of one block of the UNet alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conformance import spec
from conformance.recipe import TensorRecipe
from conformance.scenarios.scenario import BASE, Scenario, input_recipe
from conformance.variants import BLOCK_VARIANTS, Variant

_BATCH, _SIDE, _TOKENS = 2, 16, 77


@dataclass(frozen=True)
class BlockScenario(Scenario):
    """One input of a block: the arguments of its module, named `0`, `1`, ... in order.

    Attributes:
        component: The block.
    """

    component: str = ""

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:
        """Return the recipe of every argument, by its place."""
        return {
            str(i): input_recipe(self.component, self.name, str(i), shape, variant)
            for i, shape in enumerate(self._shapes(variant))
        }

    def _shapes(self, variant: Variant) -> list[tuple[int, ...]]:
        architecture = variant.architecture(self.component)
        width = architecture["block_out_channels"][0]
        first = next(iter(spec.parameter_shapes(self.component, variant.size).values()))
        entering = first[1] if len(first) > 1 else first[0]  # channels of a layer, or of a norm
        shapes = {
            "map": (_BATCH, entering, _SIDE, _SIDE),
            "time": (_BATCH, 4 * width),
            "sinusoids": (_BATCH, width),
            "text": (_BATCH, _TOKENS, architecture["cross_attention_dim"]),
        }
        return [shapes[argument] for argument in spec.BLOCKS[self.component].arguments]


BLOCK_SCENARIOS: dict[str, Sequence[BlockScenario]] = {
    component: (BlockScenario(BASE, block.hunts, sizes=BLOCK_VARIANTS, component=component),)
    for component, block in spec.BLOCKS.items()
}
