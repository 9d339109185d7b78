"""Splice mode for ports that lack probes: what lies between two probes is judged as it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from conformance import spec
from conformance.case import Case
from conformance.golden import SPLICE, Golden

if TYPE_CHECKING:
    from conformance.port import Arrays


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


def ignores_values(golden: Golden, probes: Arrays, values: Arrays) -> bool:
    """Say whether a port hands out probes but does not overwrite them.

    Some probes are the same tensor as the one before (a block is what its last layer returns). If
    that one was overwritten the block shows the new value. A block that still shows the layer's own
    value, which differs, was made from it.

    Args:
        golden: The case's golden.
        probes: What the port handed out in splice mode.
        values: What it was to put in.
    """
    own = [name for name in golden.probes if name in probes]
    for layer, block in pairwise(own):
        same = values[layer].shape == values[block].shape and layer.startswith(f"{block}.")
        if not same or not np.array_equal(values[layer], values[block]):
            continue
        put_in = values[layer].astype(probes[layer].dtype)
        if probes[layer].shape != put_in.shape or np.array_equal(probes[layer], put_in):
            continue
        if np.array_equal(probes[block], probes[layer]):
            return True
    return False
