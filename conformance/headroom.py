"""Headroom: how far the values of a port are from the largest that their dtype holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from conformance.compare import Record
    from conformance.golden import Golden

LARGEST = {
    "bfloat16": float.fromhex("0x1.fep127"),
    "float16": 65504.0,
    "policy:autocast": float.fromhex("0x1.fep127"),
    "policy:fp16-norm32": 65504.0,
    "policy:vae-upcast": 65504.0,
}
"""By arithmetic that has a half type, the largest number of the narrowest range in it."""

SHOWN = 10

NOT_FINITE = "values are not finite"
"""How the note of a record ends that says so."""


def headroom(largest: float, max_abs: float) -> float:
    """Return the doublings that are left before values overflow; minus infinity where they have.

    Args:
        largest: Of the dtype.
        max_abs: Largest magnitude of a tensor, perhaps not finite.
    """
    if not math.isfinite(max_abs):
        return -math.inf
    return math.log2(largest / max_abs) if max_abs > 0 else math.inf


def facts(records: list[Record], golden: Golden, arithmetic: str) -> dict[str, Any]:
    """Return what a report shows of one case, as it stands in results.jsonl.

    Args:
        records: Of the case, in the order of execution.
        golden: Its golden.
        arithmetic: What the port computed in.

    Returns:
        `largest` of the dtype, `probes` with the least headroom (name, the port's max-abs, the
        oracle's or None) and `not_finite`, the first that overflowed; nothing for the float types.
    """
    largest = LARGEST.get(arithmetic)
    seen = [r for r in records if not (math.isnan(r.max_abs) and not r.note.endswith(NOT_FINITE))]
    if largest is None or not seen:
        return {}
    least = sorted(seen, key=lambda r: headroom(largest, r.max_abs))[:SHOWN]
    oracle = dict(zip(golden.probes, golden.max_abs.tolist(), strict=True))
    first = first_not_finite(records)
    return {
        "largest": largest,
        "probes": [[r.name, r.max_abs, _of_oracle(r.name, oracle, golden)] for r in least],
        "not_finite": first.name if first else None,
    }


def _of_oracle(name: str, probes: dict[str, float], golden: Golden) -> float | None:
    if name in probes:
        return probes[name]
    whole = golden.outputs.get(name)
    return float(np.max(np.abs(whole))) if whole is not None and whole.size else None


def first_not_finite(records: list[Record]) -> Record | None:
    """Return the first record whose values are not all finite."""
    return next((r for r in records if r.note.endswith(NOT_FINITE)), None)


def overflow_text(records: list[Record], arithmetic: str) -> str:
    """Say where values first stopped being finite, and how large they were before; may be empty.

    Args:
        records: Of a case, in the order of execution.
        arithmetic: What the port computed in.
    """
    first = first_not_finite(records)
    if first is None:
        return ""
    before = records[: records.index(first)]
    known = [r for r in before if math.isfinite(r.max_abs)]
    text = f"first not finite at {first.name}"
    if not known:
        return text
    largest = max(known, key=lambda r: r.max_abs)
    held = LARGEST.get(arithmetic)
    limit = f", where {arithmetic} ends at {held:.3g}" if held else ""
    return f"{text}: max-abs before it was {largest.max_abs:.3g} at {largest.name}{limit}"
