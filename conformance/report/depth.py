"""Ratio over depth: how the error grows from the first layer to the last, against both bands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from conformance.execution import STABILITY
from conformance.golden import SPLICE
from conformance.known_bugs import margin
from conformance.report.records import Case, Probe, is_wrong, parse_probes
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import case_name, severity, shorten

_COMPONENTS = 40
_SERIES = 8
_PROBES = 3000
_NAME = 120


@dataclass(frozen=True)
class Series:
    """The probes of one case in one execution; `local` where each layer's own error is meant."""

    case: str
    label: str
    local: bool
    probes: list[Probe]


class Depth(Section):
    """The case of the first divergence, and the worst one of every other component."""

    name: ClassVar[str] = "depth"
    title: ClassVar[str] = "Ratio over depth"
    template: ClassVar[str] = "depth.html"

    def view(self, run: Run) -> View | None:
        """Read the probes of one case a component, in all its executions."""
        plots = [_plot(run, cases) for cases in _chosen(run)]
        plots = [plot for plot in plots if len(plot["names"]) > 1]
        if not plots:
            return None
        measured = margin()
        return {
            "margin": measured,
            "data": {"plots": plots, "honest": measured.honest, "bugs": measured.wrong},
        }


def _chosen(run: Run) -> list[list[Case]]:
    """Return for each component the cases to draw: one name, in its executions.

    The component of the first divergence comes first, then those with the worst ratios.
    """
    first = run.summary.divergence
    named = case_name(first.case) if first else ""
    worst: dict[str, Case] = {}
    for case in run.cases:
        unseen = case.ratio is None or case.dtype == "int64"  # token ids have no depth
        if unseen or case.mode in STABILITY:
            continue
        known = worst.get(case.component)
        if known is None or _urgency(case, named) > _urgency(known, named):
            worst[case.component] = case
    order = sorted(worst.values(), key=lambda case: _urgency(case, named), reverse=True)
    names = {case_name(case.case): case.component for case in order[:_COMPONENTS]}
    found: dict[str, list[Case]] = {name: [] for name in names}
    for case in run.cases:
        name = case_name(case.case)
        drawn = case.ratio is not None and case.mode not in STABILITY
        if name in found and drawn and case.component == names[name]:
            found[name].append(case)
    return list(found.values())


def _urgency(case: Case, named: str) -> tuple[bool, tuple[int, float]]:
    return case_name(case.case) == named, severity(case.ratio)


def _plot(run: Run, cases: list[Case]) -> dict[str, Any]:
    """Return what the script draws of one case: the names of its probes, and a series of ratios."""
    series = _series(run, cases)
    names = _names([probe.name for probe in one.probes] for one in series)
    shown = names[:_PROBES]
    executions = {case.case.partition("::")[0] for case in cases}
    ratios = [{probe.name: probe.ratio for probe in one.probes} for one in series]
    return {
        "case": shorten(case_name(series[0].case), _NAME) if series else "",
        "names": [shorten(name, _NAME) for name in shown],
        "first": _first(series),
        "probes_left_out": len(names) - len(shown),
        "series_left_out": len(executions) - len(series),
        "series": [
            {
                "case": one.case,
                "label": one.label,
                "local": one.local,
                "ratios": [_rounded(own.get(name)) for name in shown],
            }
            for one, own in zip(series, ratios, strict=True)
        ],
    }


def _first(series: list[Series]) -> str | None:
    """Name the first wrong probe, local errors first."""
    for one in sorted(series, key=lambda one: not one.local):
        for probe in one.probes:
            if is_wrong(probe):
                return shorten(probe.name, _NAME)
    return None


def _series(run: Run, cases: Iterable[Case]) -> list[Series]:
    """Read the cases; the blocks of one that was spliced block by block are joined."""
    found: dict[str, Series] = {}
    for case in cases:
        whole = case.case.partition("::")[0]
        backend = "" if case.backend == "sdpa" else case.backend
        label = ", ".join(text for text in (case.dtype, case.device, backend) if text)
        if whole not in found and len(found) < _SERIES:
            found[whole] = Series(whole, label, case.mode == SPLICE, [])
        if whole in found:
            found[whole].probes.extend(parse_probes(run.line(case)))
    return list(found.values())


def _names(lists: Iterable[list[str]]) -> list[str]:
    """Merge the names of several series; what the longest lacks comes after its own neighbour."""
    merged: list[str] = []
    for names in sorted(lists, key=len, reverse=True):
        known, last = set(merged), ""
        following: dict[str, list[str]] = {}
        for name in names:
            if name in known:
                last = name
            else:
                following.setdefault(last, []).append(name)
        merged = [more for name in ("", *merged) for more in (name, *following.get(name, ()))][1:]
    return list(dict.fromkeys(merged))


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else float(f"{ratio:.3g}")
