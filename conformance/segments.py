"""Splice mode for ports that lack probes: what lies between two probes is judged as it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from conformance import spec
from conformance.case import Case
from conformance.contract import call
from conformance.golden import SPLICE, Golden

if TYPE_CHECKING:
    from conformance.port import Arrays, Component


def spliced(case: Case, recorded: Golden, handed_out: Collection[str]) -> Golden:
    """Return the golden by which splice mode judges a port that hands out these probes.

    Noise of splice mode is that of one layer between two probes. Where a probe is missing its layer
    keeps the error that it was given, so that the next ones are judged by the noise of the trace:
    the probe after it, those of the same named block, and all that follow once a block itself is
    missing, which may be a skip connection.

    Args:
        case: The case.
        recorded: Its golden.
        handed_out: Probes that the port has.

    Returns:
        The golden in splice mode; as recorded where no probe is missing.
    """
    golden = recorded.in_mode(SPLICE)
    missing = [name not in handed_out for name in golden.probes]
    if not case.is_network or not any(missing):
        return golden
    blocks = spec.block_names(case.component)
    incomplete: set[str] = set()
    open_ended = False
    longer = np.zeros(len(golden.probes), bool)
    for i, name in enumerate(golden.probes):
        own = spec.block_around(case.component, name)
        longer[i] = open_ended or own in incomplete or (i > 0 and missing[i - 1])
        if missing[i]:
            incomplete.add(own)
            open_ended = open_ended or name in blocks
    noise = {
        a: np.where(longer, np.maximum(n, recorded.noise[a]), n) for a, n in golden.noise.items()
    }
    outputs = golden.output_noise
    if open_ended or missing[-1]:
        outputs = {
            a: {n: np.maximum(u, recorded.output_noise[a][n]) for n, u in units.items()}
            for a, units in outputs.items()
        }
    return replace(golden, noise=noise, output_noise=outputs)


def ignores_values(
    component: Component, inputs: Arrays, asked: Collection[str], values: Arrays, outputs: Arrays
) -> bool:
    """Say whether a port hands out probes but does not overwrite them: other values change nothing.

    Args:
        component: Loaded.
        inputs: Of the case.
        asked: Probes.
        values: What was put in.
        outputs: What came of it.
    """
    other = {n: _OTHER * array if array.dtype.kind == "f" else array for n, array in values.items()}
    again, _ = call(component, inputs, asked, other)
    return again.keys() == outputs.keys() and all(
        np.array_equal(array, again[name], equal_nan=array.dtype.kind == "f")
        for name, array in outputs.items()
    )


_OTHER = 1.5
"""Times a value is another value, of the same size."""
