"""Recording what ports hold: the one writer of budgets.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from conformance.case import Case
from conformance.errors import UnsupportedError
from conformance.execution import Execution
from conformance.memory.budgets import Budgets, torch_version
from conformance.memory.cases import config_id, configurations
from conformance.memory.footprint import Footprint
from conformance.memory.sizes import mib


def record(
    budgets: Budgets,
    predictor: Any,
    pairs: Iterable[tuple[Case, Execution]],
    tell: Callable[[str], None],
) -> int:
    """Predict what a port holds and take it down.

    Args:
        budgets: Is changed: what the port declines is left out of it.
        predictor: Of the port.
        pairs: The configurations.
        tell: Is told each change in a line.

    Returns:
        How many changes there were.
    """
    own = budgets.records.setdefault(torch_version(), {})
    known = {config_id(*pair) for pair in configurations()}
    for key in sorted(own.keys() - known):
        del own[key]
        tell(f"{key}: is no configuration any longer")
    changes = 0
    for case, execution in pairs:
        key, port = config_id(case, execution), predictor.port.name
        before = own.get(key, {}).get(port)
        try:
            found = predictor.predict(case, execution)
        except UnsupportedError:
            found = None
        if found is None:
            own.get(key, {}).pop(port, None)
        else:
            own.setdefault(key, {})[port] = found
        if found != before:
            changes += 1
            tell(f"{port} {key}: {_change(before, found)}")
    return changes


def _change(before: Footprint | None, found: Footprint | None) -> str:
    """Say what changed in a configuration."""
    if before is None or found is None:
        one = found or before
        what = "recorded" if found else "no longer offered, was"
        return f"{what} {mib(one.peak)} at {one.place}" if one else "nothing"
    if before.peak != found.peak:
        return f"{before.peak:,} -> {found.peak:,} bytes, at {found.place} (was {before.place})"
    names = [n for n in found.blocks if found.blocks[n] != before.blocks.get(n)]
    if names:
        first = names[0]
        sizes = f"{before.blocks.get(first, 0):,} -> {found.blocks[first]:,} bytes"
        return f"{len(names)} blocks, first {first}: {sizes}"
    return f"at {found.place}, was {before.place}; weights {before.weights:,} -> {found.weights:,}"
