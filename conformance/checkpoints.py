"""Weights from the user's own files in the place of the recipe's; no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance import spec
from conformance.case import Case
from conformance.errors import UsageError
from conformance.file_tensors import FileTensor
from conformance.progress import Progress
from conformance.recipe import SEED
from conformance.regimes import UNIT
from conformance.sampling import INPAINT, PIPELINES
from conformance.training import TRAININGS
from conformance.variants import NO_VARIANT, Variant, Weights
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import Checkpoint, Network, read_checkpoint
from sd1_weights.sizes import sizes
from sd1_weights.stored import Stored

SHORT = 12
"""Digits of a digest that a person is shown."""


@dataclass(frozen=True)
class FileVariant(Variant):
    """A size whose weights are a file's.

    Attributes:
        path: File or folder.
        ema: Whether the UNet's weights are the averaged ones.
        files: Which files of a folder.
        layout: How they are laid out.
        networks: Those that are there: `unet`, `vae`, `text_encoder`.
        digest: SHA-256 of all names and values, whatever the layout and the dtype of storage.
        goldens: Folder of the goldens that the oracle recorded of these weights.
    """

    path: Path
    ema: bool
    files: str
    layout: str
    networks: tuple[str, ...]
    digest: str
    goldens: Path

    def weights(self, component: str, seed: int = SEED) -> Weights:
        """Return the component's weights: read from the file when they are read."""
        if component in PIPELINES:
            recipes = {
                f"{network}/{name}": FileTensor(tensor)
                for network in spec.FOLDER_COMPONENTS
                if network in self.networks
                for name, tensor in self._tensors(network).items()
            }
            return Weights(component, self, recipes, seed)
        start = spec.name_start(component)
        own = self._tensors(spec.CHECKPOINT_FOLDERS[component])
        shapes = spec.parameter_shapes(component, self.size)
        return Weights(component, self, {n: FileTensor(own[start + n]) for n in shapes}, seed)

    def offers(self, component: str) -> bool:
        """Say whether the file has what a component needs; one without weights needs nothing.

        Training is judged on the recipe's weights alone: its gradients say nothing of a file.
        """
        if component in TRAININGS:
            return False
        if component in PIPELINES:
            inpaints = self.size.endswith(spec.INPAINT_SUFFIX)
            whole = len(self.networks) == len(spec.FOLDER_COMPONENTS)
            return whole and (component == INPAINT or not inpaints)
        return spec.CHECKPOINT_FOLDERS.get(component, self.networks[0]) in self.networks

    @property
    def text(self) -> str:
        """Return what a verdict says of the weights, in words."""
        return f"weights {self.path.name}, sha256 {self.digest[:SHORT]}"

    def of(self, component: str) -> FileVariant:
        """Return the variant of a component: what is not made for inpainting has the plain size."""
        if component in PIPELINES or spec.CHECKPOINT_FOLDERS.get(component) == "unet":
            return self
        plain = self.size.removesuffix(spec.INPAINT_SUFFIX)
        return replace(self, name=plain, size=plain)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of the weights."""
        return {
            "path": str(self.path),
            "layout": self.layout,
            "size": self.size,
            "networks": list(self.networks),
            "ema": self.ema,
            "sha256": self.digest,
        }

    def _tensors(self, network: str) -> dict[str, Stored]:
        return _fitted(_opened(self.path, self.ema, self.files).network(network), self.size)


def file_variant(
    path: Path, cache_root: Path, *, ema: bool = False, files: str = ""
) -> FileVariant:
    """Open weights, look at every value, and find the size that they are of.

    Args:
        path: File or folder, in any layout of `sd1_weights.layouts`.
        cache_root: Folder in which goldens of weights are kept, by digest.
        ema: Take the averaged weights of a single file.
        files: Which files of a folder.

    Returns:
        The variant.

    Raises:
        CheckpointError: The files cannot be used, or are not of one known size.
    """
    _OPEN.pop((path.absolute(), ema, files), None)  # it may have changed
    checkpoint = _opened(path.absolute(), ema, files)
    found = {name: network.size for name, network in checkpoint.networks.items()}
    size = found.get("unet") or next(iter(found.values()))
    for name, own in found.items():
        if own != spec.known_size(sizes(name), size):
            raise CheckpointError(f"{path}: the {name} has size {own}, the UNet {size}")
    for network in checkpoint.networks.values():
        _check_config(network)
    digest = _digest(checkpoint, size)
    return FileVariant(
        name=size,
        size=size,
        regime=UNIT,
        path=path.absolute(),
        ema=ema,
        files=files,
        layout=checkpoint.layout,
        networks=tuple(checkpoint.networks),
        digest=digest,
        goldens=cache_root / digest[:32],
    )


def cases_on(variant: FileVariant, cases: list[Case]) -> list[Case]:
    """Return cases with a file's weights: those of its size and of the networks that it has.

    Args:
        variant: The weights.
        cases: Selected by the names of variants.

    Returns:
        The cases; one without weights as it is.

    Raises:
        UsageError: None is left.
    """
    chosen = []
    for case in cases:
        own = variant.of(case.component)
        if case.variant.name == NO_VARIANT:
            chosen.append(case)
        elif case.variant.name == own.name and own.offers(case.component):
            chosen.append(Case(case.component, own, case.scenario))
    if not any(isinstance(case.variant, FileVariant) for case in chosen):
        message = (
            f"no selected case is judged on {variant.path}: it has "
            f"{', '.join(variant.networks)} of size {variant.size}"
        )
        raise UsageError(message)
    return chosen


_OPEN: dict[tuple[Path, bool, str], Checkpoint] = {}
"""What this process has open."""


def _opened(path: Path, ema: bool, files: str) -> Checkpoint:  # noqa: FBT001 - parts of a key
    """Return files that are open, or open them: a worker is handed no map of its parent's."""
    key = (path, ema, files)
    if key not in _OPEN:
        _OPEN[key] = read_checkpoint(path, ema=ema, files=files)
    return _OPEN[key]


def _fitted(network: Network, size: str) -> dict[str, Stored]:
    tensors = network.fitted(spec.checkpoint_shapes(network.name, size))
    for tensor in tensors.values():
        if tensor.dtype == "F64":
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} is float64: weights are judged in float32, float16 "
                "or bfloat16, `weights convert --dtype float32` rounds them"
            )
    return tensors


def _check_config(network: Network) -> None:
    """Refuse a folder whose config is of another model than its shapes."""
    for name, (own, known) in network.differences().items():
        raise CheckpointError(
            f"{network.config}: {name} is {own!r}, but of size {network.size}, whose shapes the "
            f"weights have, it is {known!r}"
        )


def _digest(checkpoint: Checkpoint, size: str) -> str:
    """Look at every value, and return the digest of names and values."""
    whole = hashlib.sha256()
    for name in sorted(checkpoint.networks):
        tensors = _fitted(checkpoint.networks[name], size)
        for key, tensor in _watched(name, tensors):
            tensor.check_finite()
            whole.update(json.dumps([name, key, *tensor.shape]).encode())
            whole.update(np.ascontiguousarray(tensor.float32()).data)
    return whole.hexdigest()


def _watched(name: str, tensors: dict[str, Stored]) -> Iterator[tuple[str, Stored]]:
    rows = Progress(
        sorted(tensors.items()), desc=f"weights of the {name}", unit="tensor", leave=False
    )
    yield from rows
