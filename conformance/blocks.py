"""Splice mode block by block: one item of the matrix per named block, its probes are records."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from conformance import spec
from conformance.case import Case
from conformance.compare import Record
from conformance.divergence import describe, first_divergence

if TYPE_CHECKING:
    from conformance.result import Result

REST = "outputs"
"""The item of what belongs to no named block: outputs, and layers outside of every block."""


def block_names(case: Case) -> list[str]:
    """Return the items of a case in splice mode, in the order of execution.

    Args:
        case: A case with a splice mode.

    Returns:
        The named blocks of a network, then `outputs`; of a pipeline, whose terms stand for
        themselves, `outputs` alone.
    """
    return list(_blocks(case.component, case.variant.size)) if case.is_network else [REST]


@cache
def _blocks(component: str, size: str) -> tuple[str, ...]:
    named = spec.block_names(component)
    return (*(name for name in spec.probe_names(component, size) if name in named), REST)


def block_of(case: Case, record: Record) -> str:
    """Return the item that a record belongs to: the innermost block that it is part of."""
    if record.kind != "probe" or not case.is_network:
        return REST
    return spec.block_around(case.component, record.name) or REST


def of_block(result: Result, block: str) -> Result:
    """Return what of a case's result belongs to one block.

    Args:
        result: Of a case in splice mode.
        block: One of `block_names`.

    Returns:
        A result of the block alone; where nothing was judged (a skip, an error), the same.
    """
    if not result.records:
        return replace(result, block=block)
    own = [r for r in result.records if block_of(result.case, r) == block]
    verdicts = {record.verdict for record in own}
    verdict = next((v for v in ("fail", "warn", "pass") if v in verdicts), "skip")
    part = replace(
        result, block=block, records=own, verdict=verdict, message="", first_divergence=None
    )
    if result.verdict == "error":
        return replace(part, verdict="error", message=result.message)
    if verdict == "skip":
        part.message = f"the port does not hand out {block}"
    if verdict == "fail":
        part.first_divergence = first_divergence(part)
        if result.rounding and result.first_divergence:  # read off all layers together
            whole = result.first_divergence
            part.first_divergence |= {"kind": whole["kind"], "hint": whole["hint"]}
        part.message = describe(part.first_divergence)
    return part
