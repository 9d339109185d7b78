"""The first divergence: where the port goes wrong, between which layers, and what that means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from conformance.golden import SPLICE
from conformance.known_bugs import known_bugs
from conformance.report.bug_report import bug_report
from conformance.report.faults import named_bugs
from conformance.report.gates import gates
from conformance.report.records import Divergence, Probe, is_wrong, parse_probes
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.sources import read_sources
from conformance.report.words import kind_text, rerun_of

_LEAF = re.compile(r"[^.]+(\.\d+)?$")
_BEFORE, _AFTER = 2, 2
_LIKELY = 5
_LOWEST, _HIGHEST = -1.0, 6.0


@dataclass(frozen=True)
class Layer:
    """One layer of the row: `role` says what it is there for, `bar` how far off it is, 0 to 100."""

    probe: Probe
    role: str
    bar: float

    @property
    def stem(self) -> str:
        """Return the block it stands in, with the dot."""
        return self.probe.name[: len(self.probe.name) - len(self.leaf)]

    @property
    def leaf(self) -> str:
        """Return the last part of its name, with what it numbers."""
        found = _LEAF.search(self.probe.name)
        return found[0] if found else self.probe.name


class FirstDivergence(Section):
    """The earliest wrong probe of the run."""

    name: ClassVar[str] = "divergence"
    title: ClassVar[str] = "First divergence"
    template: ClassVar[str] = "divergence.html"

    def view(self, run: Run) -> View | None:
        """Look up its neighbours, the catalogue and the lines that do it right.

        Where the environment is at fault the layers are left out: they are the port's, and what
        is wrong is the reference.
        """
        first = run.summary.divergence
        if first is None:
            return None
        case = next((case for case in run.cases if case.case == first.case), None)
        probes = parse_probes(run.line(case)) if case else []
        inherited = case is None or case.mode != SPLICE
        told = {fault.mutant for fault in run.summary.faults}
        bugs = named_bugs(" ".join((first.hint, *(f.mutant for f in run.summary.faults))))
        environment = run.summary.environment_at_fault
        return {
            "environment": environment,
            "again": rerun_of(run.summary, first),
            "first": first,
            "layers": [] if environment else neighbours(probes, first, inherited=inherited),
            "limit_at": bar_of(run.summary.limit),
            "kind": kind_text(first.kind),
            "others": [bug for bug in bugs if bug.id not in told][:_LIKELY],
            "told": bool(told & known_bugs().keys()),
            "changed": [g for g in gates(run.record) if g.bad] if environment else [],
            "source": read_sources(run.out).get(first.probe),
            "report": "" if environment else bug_report(run, first, _probe_of(probes, first), case),
        }


def neighbours(probes: Sequence[Probe], first: Divergence, *, inherited: bool) -> list[Layer]:
    """Choose the layers around the first wrong one.

    Args:
        probes: Of its case, in execution order.
        first: The divergence.
        inherited: Whether an error is handed on to the layers that follow, as in a trace.

    Returns:
        Up to two before it, itself, and two after it; none where it is not among the probes.
    """
    places = [i for i, probe in enumerate(probes) if probe.name == first.probe]
    if not places:
        return []
    at = places[0]
    good = next((i for i in range(at)[::-1] if probes[i].name == first.after), None)
    last = at - 1 if good is None else good
    before = range(max(0, last - _BEFORE + 1), last + 1)
    shown = [*before, at, *range(at + 1, min(at + 1 + _AFTER, len(probes)))]
    layers = []
    for i in shown:
        if i == at:
            role = "first wrong"
        elif i == good:
            role = "last good"
        elif i < at:
            role = "before"
        elif is_wrong(probes[i]):
            role = "next, inherits it" if inherited else "next, wrong too"
        else:
            role = "next"
        layers.append(Layer(probes[i], role, bar_of(probes[i].ratio)))
    return layers


def bar_of(ratio: float | None) -> float:
    """Return the length of a ratio's bar, 0 to 100, on a log scale from 0.1 to a million."""
    if ratio is None:
        return 0.0
    if not ratio < math.inf:
        return 100.0
    exponent = math.log10(ratio) if ratio > 0 else _LOWEST
    return round(100 * min(1.0, max(0.02, (exponent - _LOWEST) / (_HIGHEST - _LOWEST))), 1)


def _probe_of(probes: Sequence[Probe], first: Divergence) -> Probe | None:
    return next((probe for probe in probes if probe.name == first.probe), None)
