"""Variants: an architecture size and a weight regime.

`tiny` is the size alone with `unit` weights; `tiny-lowvar` is the same size in another regime.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance import spec
from conformance.errors import unknown_name
from conformance.recipe import SEED, Kind, TensorRecipe

UNIT = "unit"
REGIMES = (UNIT, "lowvar", "dense", "sharp", "outlier", "offset")

_LOWVAR_SHIFT = -5
_SHARP_SHIFT = 2
_OUTLIER_SHIFT = 6
_OFFSET_BIAS = 12.0

_FEEDS_A_NORM = re.compile(
    r"conv_in|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|proj_in|proj_out"
    r"|to_out\.0|ff\.net\.2|(down|up)samplers\.0\.conv"
)
"""Layers of the UNet whose output enters the residual stream or a norm."""

_READS_THE_STREAM = re.compile(r"conv_shortcut|proj_out|samplers\.0\.conv")
"""Those of them that read the (already small) stream itself: their weights stay as they are."""

_SHARP_BLOCK = re.compile(
    r"(down_blocks\.[012]|mid_block)\.attentions\.0\.transformer_blocks\.0\.attn[12]\.to_[qk]\.weight"
)
_OFFSET_LAYER = re.compile(r"(conv_in|conv1|proj_in)\.bias")
"""Biases that lift what a norm reads to a mean of about ten deviations."""
_OUTLIER_LAYER = re.compile(r"(conv2|ff\.net\.2)\.weight")


@dataclass(frozen=True)
class Variant:
    """An architecture size with the regime of its weights.

    Attributes:
        name: `tiny`, `tiny-lowvar`, `sd1-inpaint`, ...
        size: The size's name in `golden/spec/variants.json`.
        regime: One of `REGIMES`.
    """

    name: str
    size: str
    regime: str

    def architecture(self, component: str) -> dict[str, Any]:
        """Return the component's widths, heads and groups, as in `golden/spec/variants.json`."""
        return spec.architectures(component)[self.size]

    def weights(self, component: str, seed: int = SEED) -> Weights:
        """Return the component's weights: drawn when read, never stored."""
        shapes = spec.parameter_shapes(component, self.size)
        recipes = {name: self._recipe(component, name, shape) for name, shape in shapes.items()}
        return Weights(component, self, recipes, seed)

    def _recipe(self, component: str, name: str, shape: tuple[int, ...]) -> TensorRecipe:
        kind = _kind(name, shape)
        shift = 0
        row_shifts: tuple[tuple[int, int], ...] = ()
        if self.regime == "lowvar" and _FEEDS_A_NORM.search(name):
            keeps = kind is Kind.WEIGHT and _READS_THE_STREAM.search(name)
            shift = 0 if keeps else _LOWVAR_SHIFT
        elif self.regime == "sharp" and _SHARP_BLOCK.fullmatch(name):
            shift = _SHARP_SHIFT
        elif self.regime == "outlier" and _OUTLIER_LAYER.search(name):
            row_shifts = ((3, _OUTLIER_SHIFT), (shape[0] // 2 + 1, _OUTLIER_SHIFT))
        lifted = self.regime == "offset" and _OFFSET_LAYER.search(name)
        return TensorRecipe(
            f"{component}/{name}",
            shape,
            kind,
            dense=self.regime == "dense",
            shift=shift,
            row_shifts=row_shifts,
            constant=_OFFSET_BIAS if lifted else None,
        )


class Weights(Mapping[str, np.ndarray]):
    """The weights of one component of one variant: a mapping from name to float32 array.

    Arrays are drawn from the recipe each time they are read, so that 860 million parameters cost
    no disk and no memory until a port takes them.
    """

    def __init__(
        self, component: str, variant: Variant, recipes: dict[str, TensorRecipe], seed: int
    ) -> None:
        """Keep the recipes; nothing is drawn yet."""
        self.component = component
        self.variant = variant
        self.recipes = recipes
        self.seed = seed

    def __getitem__(self, name: str) -> np.ndarray:
        """Draw one tensor, float32."""
        return self.recipes[name].draw(np.float32, self.seed)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the canonical names in the checkpoint's order."""
        return iter(self.recipes)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.recipes)

    def parameter_count(self) -> int:
        """Return the number of parameters."""
        return sum(int(np.prod(recipe.shape)) for recipe in self.recipes.values())

    def export(self, folder: Path) -> Path:
        """Write the weights as one component of a diffusers folder.

        Args:
            folder: Folder to create; its files are replaced.

        Returns:
            `folder`, now with `config.json` and `diffusion_pytorch_model.safetensors` (float32).
        """
        from conformance.export import write_component

        return write_component(self, folder)


def _kind(name: str, shape: tuple[int, ...]) -> Kind:
    if len(shape) > 1:
        return Kind.WEIGHT
    return Kind.BIAS if name.endswith(".bias") else Kind.NORM


def sizes(component: str = "unet") -> list[str]:
    """Return the names of all sizes."""
    return list(spec.architectures(component))


def variant_names(component: str = "unet") -> list[str]:
    """Return every variant that exists: each size in each regime, inpainting sizes in `unit`."""
    names = []
    for size in sizes(component):
        regimes = REGIMES[:1] if size.endswith("-inpaint") else REGIMES
        names += [size if regime == UNIT else f"{size}-{regime}" for regime in regimes]
    return names


def parse_variant(name: str) -> Variant:
    """Return the variant of that name.

    Args:
        name: `tiny`, `odd-lowvar`, `sd1-inpaint`, ...

    Returns:
        The variant.

    Raises:
        UsageError: No such variant.
    """
    if name not in variant_names():
        raise unknown_name("variant", name, variant_names())
    if name in sizes():
        return Variant(name, name, UNIT)
    size, _, regime = name.rpartition("-")
    return Variant(name, size, regime)
