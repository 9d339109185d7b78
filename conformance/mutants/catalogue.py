"""All mutants, and the rows that are none here."""

from __future__ import annotations

from fnmatch import fnmatchcase

from conformance.errors import UsageError, unknown_name
from conformance.mutants import (
    checkpoint,
    memory,
    nulls,
    nulls_checkpoint,
    nulls_memory,
    nulls_numerics,
    nulls_runtime,
    nulls_sampling,
    nulls_training,
    numerics,
    pipeline,
    pipeline_edits,
    pipeline_inpainting,
    quiet,
    runtime,
    schedulers,
    schedulers_grid,
    schedulers_sigma,
    schedulers_steps,
    text_encoder,
    tokenizer,
    training,
    training_networks,
    unet_attention,
    unet_body,
    vae,
)
from conformance.mutants.mutant import Mutant, NotRun

_MODULES = (
    tokenizer,
    text_encoder,
    unet_attention,
    unet_body,
    checkpoint,
    vae,
    schedulers,
    schedulers_steps,
    schedulers_grid,
    schedulers_sigma,
    pipeline,
    pipeline_edits,
    pipeline_inpainting,
    quiet,
    numerics,
    runtime,
    training,
    training_networks,
    memory,
    nulls,
    nulls_checkpoint,
    nulls_numerics,
    nulls_sampling,
    nulls_runtime,
    nulls_training,
    nulls_memory,
)

CATALOGUE: tuple[Mutant, ...] = tuple(m for module in _MODULES for m in module.MUTANTS)
"""Every mutant, the null ones last."""

NOT_RUN: tuple[NotRun, ...] = tuple(row for module in _MODULES for row in module.NOT_RUN)
"""Rows that cannot be run here, or not yet, with the reason."""


def find_mutants(names: list[str]) -> list[Mutant]:
    """Return the mutants of these ids or globs, in the order of the catalogue; all for none.

    Raises:
        UsageError: A name fits no mutant.
    """
    reasons = {row.id: row.reason for row in NOT_RUN}
    for name in names:
        if name in reasons:
            message = f"mutant {name} is not run: {reasons[name]}"
            raise UsageError(message)
        if not any(fnmatchcase(m.id, name) for m in CATALOGUE):
            raise unknown_name("mutant", name, [m.id for m in CATALOGUE])
    return [m for m in CATALOGUE if not names or any(fnmatchcase(m.id, n) for n in names)]
