"""Variants: an architecture size and a weight regime.

`tiny` is the size alone with `unit` weights; `tiny-lowvar` is the same size in another regime.
`toy` is small and trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from conformance import spec
from conformance.errors import unknown_name
from conformance.file_tensors import toy_tensors
from conformance.mapped import mapped
from conformance.recipe import SEED, TensorRecipe
from conformance.regimes import REGIMES, UNIT, tensor_recipe
from conformance.sampling import INPAINT, PIPELINES, SCHEDULERS, TEXT_TO_IMAGE
from conformance.training import TEXT_TRAINING, TRAINING, VAE_TRAINING

BLOCK_VARIANTS = ("tiny",)

_TRAINED_VARIANTS = {
    TRAINING: ("tiny", "odd"),
    TEXT_TRAINING: ("tiny", "odd"),
    VAE_TRAINING: ("tiny", "tiny-outlier", "odd"),
}

PUBLISHED = "sd1"
"""How the names of sizes begin that were published."""

TOY = "toy"
"""The size, and the only variant of it, whose weights are trained: those of `sd1_weights.toy`."""

TRAINED = "trained"
"""The regime of the toy's weights, beside those of the recipe."""

NO_VARIANT = "-"
"""Stands for the variant where none applies: a tokenizer or scheduler has no weights."""


@dataclass(frozen=True)
class Variant:
    """An architecture size with the regime of its weights.

    Attributes:
        name: `tiny`, `tiny-lowvar`, `sd1-inpaint`, ...
        size: The size's name in `golden/spec/variants.json`.
        regime: One of `REGIMES`, or `TRAINED`.
    """

    name: str
    size: str
    regime: str

    def architecture(self, component: str) -> dict[str, Any]:
        """Return the component's widths, heads and groups, as in `golden/spec/variants.json`.

        Those of a block are the whole UNet's; what is not made for inpainting has the plain size.
        """
        known = spec.architectures(component)
        return known[spec.known_size(known, self.size)]

    def weights(self, component: str, seed: int = SEED) -> Weights:
        """Return the component's weights: drawn when read, never stored."""
        if component == spec.TOKENIZER or component in SCHEDULERS:
            return Weights(component, self, {}, seed)
        if component in spec.ASSEMBLED:
            recipes = self._networks(spec.ASSEMBLED[component])
            return Weights(component, self, recipes, seed)
        folder, start = spec.CHECKPOINT_FOLDERS[component], spec.name_start(component)
        recipes = {
            name: self._drawn(folder, f"{start}{name}", shape)
            for name, shape in spec.parameter_shapes(component, self.size).items()
        }
        return Weights(component, self, recipes, seed)

    def _drawn(self, folder: str, name: str, shape: tuple[int, ...]) -> Drawn:
        """Return what gives one weight."""
        if self.regime == TRAINED:
            return toy_tensors(folder)[name]
        return tensor_recipe(folder, name, shape, self.regime)

    def _networks(self, folders: Iterable[str]) -> dict[str, Drawn]:
        """Return every recipe of folders of a checkpoint; names begin with the folder, `unet/`."""
        return {
            f"{folder}/{name}": self._drawn(folder, name, shape)
            for folder in folders
            for name, shape in spec.checkpoint_shapes(folder, self.size).items()
        }


class Drawn(Protocol):
    """What gives a tensor when it is asked for: a recipe, or a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""

    def draw(self, dtype: type[np.floating[Any]], seed: int = SEED) -> np.ndarray:
        """Return its values."""


class Weights(Mapping[str, np.ndarray]):
    """The weights of one component of one variant: a mapping from name to float32 array.

    Arrays are drawn from the recipe each time they are read, so that 860 million parameters cost
    no memory until a port takes them. Large ones of the published size are mapped from the cache:
    all processes of a machine share them.
    """

    def __init__(
        self, component: str, variant: Variant, recipes: Mapping[str, Drawn], seed: int
    ) -> None:
        """Keep the recipes; nothing is drawn yet."""
        self.component = component
        self.variant = variant
        self.recipes = recipes
        self.seed = seed

    def __getitem__(self, name: str) -> np.ndarray:
        """Draw one tensor, float32."""
        recipe = self.recipes[name]
        if isinstance(recipe, TensorRecipe) and self.variant.size.startswith(PUBLISHED):
            return mapped(recipe, self.seed)
        return recipe.draw(np.float32, self.seed)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the canonical names in the checkpoint's order."""
        return iter(self.recipes)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.recipes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes by name."""
        return {name: tuple(recipe.shape) for name, recipe in self.recipes.items()}

    def part(self, folder: str) -> Weights:
        """Return one folder of a whole checkpoint, its names without the folder.

        Args:
            folder: `text_encoder`, `unet` or `vae`.
        """
        start = f"{folder}/"
        recipes = {n.removeprefix(start): r for n, r in self.recipes.items() if n.startswith(start)}
        return Weights(folder, self.variant, recipes, self.seed)

    def parameter_count(self) -> int:
        """Return the number of parameters."""
        return sum(int(np.prod(recipe.shape)) for recipe in self.recipes.values())

    def export(self, folder: Path) -> Path:
        """Write the weights as one component of a diffusers folder, those of a pipeline as all.

        The halves of the VAE share a folder: either writes both, so that a loader finds all keys.
        A block writes the config of the UNet and its own weights, named relative to it.

        Args:
            folder: Folder to create; its files are replaced.

        Returns:
            `folder`, now with `config.json` and `diffusion_pytorch_model.safetensors`, or
            `model.safetensors` for the text encoder (float32); for a pipeline, or a component of
            training, the folders that it reads with these files.
        """
        from conformance.export import write_component

        if self.component in spec.ASSEMBLED:
            for name in spec.ASSEMBLED[self.component]:
                component = spec.FOLDER_COMPONENTS[name]
                write_component(self.variant.weights(component, self.seed), folder / name)
            return folder
        return write_component(self, folder)


def sizes(component: str = "unet") -> list[str]:
    """Return the names of all sizes."""
    return list(spec.architectures(component))


def variant_names(component: str = "unet") -> list[str]:
    """Return every variant that exists: each size in each regime, inpainting sizes in `unit`.

    The toy has its own weights, and no other task than text to image.

    Args:
        component: Any; the tokenizer and the schedulers have none but `-`, a block is small only.
            The UNet has them all.
    """
    if component == spec.TOKENIZER or component in SCHEDULERS:
        return [NO_VARIANT]
    if component in spec.BLOCKS:
        return list(BLOCK_VARIANTS)
    if component in _TRAINED_VARIANTS:
        return list(_TRAINED_VARIANTS[component])
    if component in PIPELINES:
        own = sizes() if component == TEXT_TO_IMAGE else [s for s in sizes() if s != TOY]
        return [s for s in own if component == INPAINT or not s.endswith(spec.INPAINT_SUFFIX)]
    names = []
    for size in sizes(component):
        if size == TOY:
            names.append(TOY)
            continue
        regimes = REGIMES[:1] if size.endswith(spec.INPAINT_SUFFIX) else REGIMES
        names += [size if regime == UNIT else f"{size}-{regime}" for regime in regimes]
    return names


def parse_variant(name: str) -> Variant:
    """Return the variant of that name.

    Args:
        name: `tiny`, `odd-lowvar`, `sd1-inpaint`, ..., or `-`.

    Returns:
        The variant.

    Raises:
        UsageError: No such variant.
    """
    if name not in [*variant_names(), NO_VARIANT]:
        raise unknown_name("variant", name, variant_names())
    if name == TOY:
        return Variant(TOY, TOY, TRAINED)
    if name in [*sizes(), NO_VARIANT]:
        return Variant(name, name, UNIT)
    size, _, regime = name.rpartition("-")
    return Variant(name, size, regime)
