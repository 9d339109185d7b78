"""The architecture: the blocks of Stable Diffusion v1, each coloured by its worst error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import urlencode

from conformance import spec
from conformance.case import NETWORKS
from conformance.report.diagram import Diagram, stacked, u_shaped
from conformance.report.layers import in_order
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import number_text
from conformance.report.worst import Worst, WorstLayers, worst_of
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.spec import TOKENIZER
from conformance.tolerance import LIMIT
from conformance.variants import parse_variant, variant_names

Found = dict[str, Worst]
"""By probe, the worst of it."""


@dataclass(frozen=True)
class Look:
    """How a block, or a whole component, is shown.

    Attributes:
        name: What is written on it.
        link: Where a click leads: the page's filters.
        ratio: Its worst ratio; None where nothing of it was measured.
        state: `none`, `pass`, `warn` or `fail`.
        own: Whether the ratio is its own error, with nothing inherited.
        title: All of it in words.
    """

    name: str
    link: str
    ratio: float | None
    state: str
    own: bool
    title: str


class Architecture(Section):
    """Networks, samplers and pipelines as blocks."""

    name: ClassVar[str] = "architecture"
    title: ClassVar[str] = "The model, block by block"
    template: ClassVar[str] = "architecture.html"

    def __init__(self) -> None:
        self._worst = WorstLayers()

    def add(self, record: dict[str, Any]) -> None:
        """Keep the worst of each layer."""
        if record.get("type") == "case":
            self._worst.add(record)

    def view(self, run: Run) -> View | None:
        """Draw the networks, and a box for every other component."""
        if not self._worst.components:
            return None
        limit = run.summary.limit or LIMIT
        known = [*NETWORKS, TOKENIZER, *SCHEDULERS, *PIPELINES]
        others = [name for name in self._worst.components if name not in known]
        variants: dict[str, dict[str, None]] = {}
        for case in run.cases:
            variants.setdefault(case.component, {})[case.variant] = None
        own = {name: self._worst.of(name, own=True) for name in [*known, *others]}
        inherited = {name: self._worst.of(name, own=False) for name in own}

        def look(component: str, path: str = "", label: str = "") -> Look:
            worst = _worst_within(path, own[component], inherited[component])
            found = _look(component, path, label or component, worst, limit)
            if worst is None and path:
                lacking = _lacking(component, path, variants.get(component, ()))
                found = replace(found, title=f"{path}: not in {lacking}") if lacking else found
            return found

        def drawn(diagram: Diagram) -> dict[str, Any]:
            boxes = [(box, look(diagram.component, box.path, box.label)) for box in diagram.boxes]
            return {"diagram": diagram, "boxes": boxes, "whole": look(diagram.component)}

        return {
            "networks": [drawn(u_shaped() if n == "unet" else stacked(n)) for n in NETWORKS],
            "tokenizer": look(TOKENIZER),
            "schedulers": [look(name, label=name.partition("/")[2]) for name in SCHEDULERS],
            "pipelines": [look(name, label=name.partition("/")[2]) for name in PIPELINES],
            "others": [look(name) for name in others],
            "data": _panel(own, inherited, [case.case for case in run.cases]),
        }


def _worst_within(path: str, own: Found, inherited: Found) -> Worst | None:
    """Return the worst of a block's probes, or of all: their own errors where any is known."""
    inside = [
        [w for name, w in found.items() if not path or name == path or name.startswith(f"{path}.")]
        for found in (own, inherited)
    ]
    return worst_of(inside[0] or inside[1])


def _lacking(component: str, path: str, variants: Iterable[str]) -> str:
    """Name the sizes that were run, where none of them has a layer of a block."""
    known = variant_names(component)
    sizes = list(dict.fromkeys(parse_variant(name).size for name in variants if name in known))
    probes = (probe for size in sizes for probe in spec.probe_names(component, size))
    if any(probe == path or probe.startswith(f"{path}.") for probe in probes):
        return ""
    return ", ".join(sizes)


def _look(component: str, path: str, label: str, worst: Worst | None, limit: float) -> Look:
    link = "#" + urlencode({"component": component} | ({"probe": path} if path else {}))
    name = path or component
    if worst is None:
        return Look(label, link, None, "none", own=False, title=f"{name}: not measured")
    ratio = number_text(worst.ratio)
    if not worst.ratio <= limit:
        state, judged = "fail", "beyond the limit"
    elif worst.ratio >= limit / 2:
        state, judged = "warn", "over half the limit"
    else:
        state, judged = "pass", "within the limit"
    what = "own error" if worst.own else "error, inherited ones included"
    title = f"{name}: worst {what} {ratio}, {judged}, at {worst.probe}"
    return Look(label, link, worst.ratio, state, worst.own, title)


def _panel(own: dict[str, Found], inherited: dict[str, Found], ids: list[str]) -> dict[str, Any]:
    """Write what the panel of a block lists: its layers, how bad each is, and in which case."""
    used: dict[int, int] = {}

    def row(probe: str, *found: Found) -> list[Any]:
        cells: list[Any] = [probe]
        for worst in (one.get(probe) for one in found):
            if worst is None:
                cells += [None, None]
            else:
                cells += [_rounded(worst.ratio), used.setdefault(worst.case, len(used))]
        return cells

    components = {
        name: [row(probe, own[name], inherited[name]) for probe in in_order(name, probes)]
        for name in own
        if (probes := [*own[name], *inherited[name]])
    }
    return {"components": components, "cases": [ids[case] for case in used]}


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.4g}")
