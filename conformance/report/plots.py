"""The geometry of the report's two pictures; template.html draws it.

Across, positions are percentages, and down they are pixels, so a picture fills any width while its
text keeps its size. Both show ratios on a log scale.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conformance.report.records import VERDICTS, Case, Divergence, Probe
from conformance.report.text import number_text, printable, severity

DEPTH_HEIGHT = 260
LANE_HEIGHT = 44
LANES_TOP = 30
MOST_LANES = 60
_MOST_POINTS = 1000
_LEAST_DECADE, _MOST_DECADE = -3, 8
_MOST_TICKS = 7
_LABEL_GAP = 14.0
_SHAPES = {"fail": "fail", "error": "fail", "xpass": "fail", "warn": "warn", "xfail": "warn"}


@dataclass(frozen=True)
class Mark:
    """One drawn value: where, in which shape, and its title."""

    x: float
    y: float
    shape: str
    title: str


@dataclass(frozen=True)
class Line:
    """A line across the picture at a ratio that means something."""

    at: float
    label: str
    label_at: float
    name: str


@dataclass(frozen=True)
class Tick:
    """A decade on the ratio axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Flag:
    """The first divergence, marked across the depth picture."""

    x: float
    label: str
    anchor: str


@dataclass(frozen=True)
class DepthPlot:
    """Ratio over depth for one case."""

    case: str
    ticks: list[Tick]
    lines: list[Line]
    marks: list[Mark]
    flag: Flag | None
    probes: int
    height: int = DEPTH_HEIGHT

    @property
    def path(self) -> str:
        """The marks joined, as an SVG polyline's points."""
        return " ".join(f"{mark.x:g},{mark.y:g}" for mark in self.marks)


@dataclass(frozen=True)
class Lane:
    """The cases of one component and variant, on one line of the case picture."""

    y: float
    label: str
    note: str


@dataclass(frozen=True)
class CasePlot:
    """The worst ratio of each case, a lane for each component and variant."""

    lanes: list[Lane]
    ticks: list[Tick]
    lines: list[Line]
    marks: list[Mark]
    height: int
    left_out: int


@dataclass(frozen=True)
class Scale:
    """A log scale from ratios to 0..1; what is off the scale sits on its edge."""

    low: float
    high: float

    @classmethod
    def of(cls, ratios: Iterable[float | None], limit: float | None) -> Scale:
        """Choose the scale that shows these ratios, 1 and the limit."""
        shown = [r for r in (*ratios, 1.0, limit) if r is not None and 0 < r < math.inf]
        low = min(-1, max(_LEAST_DECADE, math.floor(math.log10(min(shown)))))
        return cls(low, min(_MOST_DECADE, math.log10(max(shown)) + 0.3))

    def __call__(self, ratio: float) -> float:
        """Return where a ratio sits, 0 (low) to 1 (high)."""
        if math.isnan(ratio) or ratio == math.inf:
            return 1.0
        exponent = math.log10(ratio) if ratio > 0 else self.low
        return min(1.0, max(0.0, (exponent - self.low) / (self.high - self.low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Return the decades worth labelling, as position and label."""
        decades = range(round(self.low), math.floor(self.high) + 1)
        step = math.ceil(len(decades) / _MOST_TICKS)
        return [(self(10.0**d), _decade_text(d)) for d in decades if d % step == 0]


def depth_plot(
    case: Case, probes: Sequence[Probe], limit: float | None, first: Divergence | None
) -> DepthPlot:
    """Lay out ratio over depth, probe by probe in execution order.

    Args:
        case: The case shown.
        probes: Its probes in execution order; of very many, the worst of each stretch are shown.
        limit: The run's limit.
        first: The case's first divergence, which is flagged.

    Returns:
        The picture, its y from 0 (top) to DEPTH_HEIGHT.
    """
    measured = [probe for probe in probes if probe.ratio is not None]
    scale = Scale.of((probe.ratio for probe in measured), limit)

    def down(fraction: float) -> float:
        return round(DEPTH_HEIGHT * (1 - fraction), 1)

    span = max(1, len(probes) - 1)
    marks = [
        Mark(
            round(100 * (probe.order - 1) / span, 2),
            down(scale(probe.ratio or 0.0)),
            _shape(probe.verdict, probe.ratio),
            f"{probe.order}. {probe.name}: {number_text(probe.ratio)}",
        )
        for probe in _thinned(measured)
    ]
    ticks = [Tick(down(at), label) for at, label in scale.ticks()]
    lines = _spread(
        [Line(down(scale(at)), label, 0.0, name) for at, label, name in _references(limit)]
    )
    named = (probe for probe in probes if first and probe.name == first.probe)
    flag = None
    if wrong := next(named, None):
        x = round(100 * (wrong.order - 1) / span, 2)
        flag = Flag(x, printable(wrong.name, 60), "start" if x < 50 else "end")  # noqa: PLR2004
    return DepthPlot(case.case, ticks, lines, marks, flag, len(probes))


def case_plot(cases: Sequence[Case], limit: float | None) -> CasePlot:
    """Lay out one mark per case, in lanes of component/variant.

    Args:
        cases: All cases in the order of the run.
        limit: The run's limit.

    Returns:
        The picture; marks that would fall on one another are drawn once.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(f"{case.component}/{case.variant}", []).append(case)
    scale = Scale.of((case.ratio for case in cases), limit)
    lanes: list[Lane] = []
    marks: dict[tuple[float, float, str], Mark] = {}
    for row, (label, members) in enumerate(list(groups.items())[:MOST_LANES]):
        top = LANES_TOP + row * LANE_HEIGHT
        lanes.append(Lane(top, printable(label, 44), _lane_note(members)))
        for number, case in enumerate(members):
            if case.ratio is None:
                continue
            shape = _shape(case.verdict, case.ratio)
            x, y = round(200 * scale(case.ratio)) / 2, top + 24.0 + 5 * (number % 3)
            title = f"{case.case}: {number_text(case.ratio)}"
            marks.setdefault((x, y, shape), Mark(x, y, shape, title))
    ticks = [Tick(round(100 * at, 1), label) for at, label in scale.ticks()]
    lines = [
        Line(round(100 * scale(at), 1), label, 0.0, name) for at, label, name in _references(limit)
    ]
    height = LANES_TOP + LANE_HEIGHT * len(lanes)
    order = ("pass", "warn", "fail", "beyond")
    drawn = sorted(marks.values(), key=lambda mark: order.index(mark.shape))
    return CasePlot(lanes, ticks, lines, drawn, height, max(0, len(groups) - MOST_LANES))


def _references(limit: float | None) -> list[tuple[float, str, str]]:
    """List the ratios that mean something: value, label, name."""
    references = [(1.0, "1 noise", "noise")]
    if limit and 0 < limit < math.inf:
        references += [
            (limit / 2, f"{limit / 2:g} half", "half"),
            (limit, f"{limit:g} limit", "limit"),
        ]
    return references


def _spread(lines: list[Line]) -> list[Line]:
    """Move the labels of close lines apart, from the lowest line up."""
    placed: list[Line] = []
    for line in sorted(lines, key=lambda line: -line.at):
        at = min(line.at, placed[-1].label_at - _LABEL_GAP) if placed else line.at
        placed.append(Line(line.at, line.label, at, line.name))
    return placed


def _thinned(probes: list[Probe]) -> list[Probe]:
    """Keep the worst probe of each stretch where there are more than can be drawn."""
    stride = math.ceil(len(probes) / _MOST_POINTS) or 1
    stretches = (probes[i : i + stride] for i in range(0, len(probes), stride))
    return [max(stretch, key=lambda probe: severity(probe.ratio)) for stretch in stretches]


def _shape(verdict: str, ratio: float | None) -> str:
    off_scale = ratio is not None and not ratio < 10.0**_MOST_DECADE
    return "beyond" if off_scale else _SHAPES.get(verdict, "pass")


def _lane_note(cases: list[Case]) -> str:
    """Say how many cases a lane holds and which did not simply pass."""
    found = Counter(case.verdict for case in cases)
    shown = [f"{found[verdict]} {verdict}" for verdict in VERDICTS[:-1] if found[verdict]]
    return " · ".join([f"{len(cases)} case{'' if len(cases) == 1 else 's'}", *shown])


def _decade_text(decade: int) -> str:
    if -4 < decade < 4:  # noqa: PLR2004
        return f"{10.0**decade:g}"
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(decade))
