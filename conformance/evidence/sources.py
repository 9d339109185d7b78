"""For what is wrong, the lines of `sd1_impl` that do it right; nothing where it cannot run."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from conformance import spec
from conformance.case import Case, find_case
from conformance.errors import SuiteError

Line = Mapping[str, Any]


def find_sources(
    first: Line | None,
    faults: Iterable[Line],
    lines: Sequence[Line],
    cases: Mapping[str, Case] | None = None,
) -> dict[str, Any]:
    """Return the source of the first divergence, and of the first probe of each fault.

    Args:
        first: The first divergence of the run, if there is one.
        faults: Causes, each with its component and the `names` of its probes.
        lines: Case lines.
        cases: By id, those with other weights than the recipe's.

    Returns:
        By probe: `file`, `start` (number of the first line), `lines` and `marked` (numbers of
        those that name what is wrong). What cannot be found is left out; everything, where torch
        or what sd1_impl needs is missing.
    """
    if first is None:
        return {}
    try:
        module: Any = importlib.import_module("conformance.adapters.sd1_impl_sources")
    except (ImportError, OSError):  # the second where torch is there and its libraries are not
        return {}
    found: dict[str, Any] = {}
    for item_id, probe in [(first["case"], first["probe"]), *_first_probes(faults, lines)]:
        case = _case(item_id, cases or {})
        if case is not None and probe not in found:
            source = module.source_of(case, probe)
            found |= {probe: source} if source else {}
    return found


def _first_probes(faults: Iterable[Line], lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Yield an item and the probe for each fault: the first in the order of execution."""
    for fault in faults:
        names, component = fault.get("names"), fault.get("component")
        if not names or component is None:
            continue
        probe = min(names, key=lambda name: spec.place(component, name))
        for line in lines:
            own = line["component"] == component and line["verdict"] == "fail"
            if own and any(p["name"] == probe for p in line["probes"]):
                yield line["case"], probe
                break


def _case(item_id: str, cases: Mapping[str, Case]) -> Case | None:
    """Return the case of an item; None for a published slice, which is no case."""
    known = cases.get(item_id.partition("[")[0])
    try:
        return known or find_case(item_id)
    except SuiteError:
        return None
