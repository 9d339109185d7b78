"""Where goldens are read from: `golden/`, or what was recorded of the user's own weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from conformance.case import Case
from conformance.checkpoints import FileVariant
from conformance.errors import GoldenError
from conformance.golden import Golden
from conformance.manifest import golden_path, manifest, manifest_path
from conformance.recipe import SEED, digest


def golden_digest(case: Case) -> str:
    """Return the SHA-256 of the file of a case's golden."""
    if isinstance(case.variant, FileVariant):
        return hashlib.sha256(_weights_file(case, case.variant).read_bytes()).hexdigest()
    recorded: str = manifest()["goldens"][case.id]["sha256"]
    return recorded


def _weights_file(case: Case, variant: FileVariant) -> Path:
    return variant.goldens / f"{case.id}.safetensors"


def golden_of_weights(case: Case, variant: FileVariant) -> Golden:
    """Read the golden that was recorded of the user's own weights.

    Raises:
        GoldenError: There is none, or it is damaged.
    """
    path = _weights_file(case, variant)
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{case.id}: no golden of these weights at {path}: `run --weights` records it"
        raise GoldenError(message) from error
    return Golden.from_bytes(data, str(path))


def load_golden(case: Case) -> Golden:
    """Read the golden of a case and check every digest that protects it.

    Args:
        case: The case.

    Returns:
        The golden.

    Raises:
        GoldenError: No golden, or file or inputs do not have the digest that the manifest records.
    """
    if isinstance(case.variant, FileVariant):
        return golden_of_weights(case, case.variant)
    path = golden_path(case.id)
    entry = manifest()["goldens"].get(case.id)
    if entry is None:
        message = f"{case.id} has no golden in {manifest_path()}: record it with golden record"
        raise GoldenError(message)
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"golden of {case.id}: cannot read {path}: {error.strerror}"
        raise GoldenError(message) from error
    found = hashlib.sha256(data).hexdigest()
    if found != entry["sha256"]:
        message = (
            f"{path} is damaged: sha256 expected {entry['sha256']}, found {found}; "
            "restore it from the repository"
        )
        raise GoldenError(message)
    golden = Golden.from_bytes(data, str(path))
    if golden.case != case.id:
        message = f"{path} is the golden of {golden.case}: restore it from the repository"
        raise GoldenError(message)
    return golden


def check_inputs(golden: Golden, digests: dict[str, str]) -> None:
    """Compare input digests, so that a changed recipe is not mistaken for a wrong port.

    Raises:
        GoldenError: An input differs from the one that the oracle was given.
    """
    recorded = {name: facts["sha256"] for name, facts in golden.inputs.items()}
    for name in {**recorded, **digests}:
        if digests.get(name) != recorded.get(name):
            message = (
                f"{golden.case}: input {name} is not the one recorded: sha256 expected "
                f"{recorded.get(name)}, found {digests.get(name)}; the recipe has changed"
            )
            raise GoldenError(message)


def drawn_inputs(case: Case, golden: Golden) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Draw the inputs of a case and check that the oracle was given the same.

    Args:
        case: The case.
        golden: Its golden.

    Returns:
        Inputs and their digests, by name.

    Raises:
        GoldenError: An input differs; on another seed than the goldens' nothing is compared.
    """
    inputs = case.inputs()
    digests = {name: digest(array) for name, array in inputs.items()}
    if case.seed == SEED:
        check_inputs(golden, digests)
    return inputs, digests
