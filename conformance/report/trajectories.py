"""Trajectories: how the error of a sampling run grows from step to step, and in which term."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from conformance.execution import STABILITY
from conformance.golden import SPLICE, TRACE
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.text import count, mapping, number, number_text, printable, severity
from conformance.sampling import PIPELINES, SCHEDULERS, term_and_step
from conformance.tolerance import LIMIT
from conformance.trajectory import BLEND

TERMS = ("input", "model", "guidance", "scheduler", BLEND)
"""Of a step, in the order in which they are computed."""

_OPEN_LOOP = {"model_inputs": "input", "samples": "scheduler"}
"""By output of a scheduler, the term that it is."""

_KEPT = 150
"""Runs shown, the worst of all."""

_IN_WORDS = 20
_MODES = {
    SPLICE: "each term by itself (splice)",
    TRACE: "as errors add up (trace)",
    "": "open loop",
}
_STEPS = 400


class Point(NamedTuple):
    """One term of one step."""

    step: int
    term: str
    ratio: float
    err: float | None


@dataclass
class Path:
    """One sampling run in the modes that it was tried in.

    Attributes:
        name: Its case, with all of its execution but the mode.
        cases: By mode, the id of the case.
        points: By mode, its points in the order of computation.
    """

    name: str
    cases: dict[str, str] = field(default_factory=dict)
    points: dict[str, list[Point]] = field(default_factory=dict)

    @property
    def badness(self) -> tuple[int, float]:
        """Return the severity of the worst point."""
        return max(severity(point.ratio) for points in self.points.values() for point in points)


class Trajectories(Section):
    """Errors by step, split into who makes them."""

    name: ClassVar[str] = "trajectories"
    title: ClassVar[str] = "Step by step"
    template: ClassVar[str] = "trajectories.html"

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}
        self._seen = 0

    def add(self, record: dict[str, Any]) -> None:
        """Keep the steps of samplers and pipelines, of very many the worst."""
        component = record.get("component")
        if record.get("type") != "case" or component not in (*PIPELINES, *SCHEDULERS):
            return
        points = list(_steps(record) if component in PIPELINES else _open_loop(record))
        if not points:
            return
        case, mode = printable(record.get("case")), printable(record.get("mode"))
        if mode in STABILITY:
            return
        name = case.replace(f"-{mode}]", "]") if mode else case
        if name not in self._paths:
            self._seen += 1
        path = self._paths.setdefault(name, Path(name))
        path.cases[mode], path.points[mode] = case, points
        if len(self._paths) > 2 * _KEPT:
            self._paths = {path.name: path for path in self._worst()}

    def _worst(self) -> list[Path]:
        return sorted(self._paths.values(), key=lambda path: path.badness, reverse=True)[:_KEPT]

    def view(self, run: Run) -> View | None:
        """Write the runs' points, and in words where each departs from the truth first."""
        paths = self._worst()
        if not paths:
            return None
        limit = run.summary.limit or LIMIT
        worded = [(path, _in_words(path, limit)) for path in paths]
        return {
            "lead": _lead(paths, limit),
            "worded": worded[:_IN_WORDS],
            "shown": len(paths),
            "seen": self._seen,
            "data": {
                "terms": TERMS,
                "modes": _MODES,
                "paths": [
                    {
                        "name": path.name,
                        "words": dict(words),
                        "cases": path.cases,
                        "points": {mode: _columns(ps) for mode, ps in path.points.items()},
                    }
                    for path, words in worded
                ],
            },
        }


def _steps(record: dict[str, Any]) -> Iterator[Point]:
    """Yield the points of a pipeline's case line."""
    steps = record.get("trajectory")
    for entry in map(mapping, steps[:_STEPS] if isinstance(steps, list) else []):
        for term in TERMS:
            measured = mapping(entry.get(term))
            ratio = number(measured.get("ratio"))
            if ratio is not None:
                yield Point(count(entry.get("step")), term, ratio, number(measured.get("err")))


def _open_loop(record: dict[str, Any]) -> Iterator[Point]:
    """Yield the points of a scheduler's case line: what went into each step and what came out."""
    probes = record.get("probes")
    for probe in map(mapping, probes[: 3 * _STEPS] if isinstance(probes, list) else []):
        try:
            term, step = term_and_step(printable(probe.get("name")))
        except ValueError:
            continue
        ratio = number(probe.get("ratio"))
        if term in _OPEN_LOOP and step is not None and ratio is not None:
            yield Point(step, _OPEN_LOOP[term], ratio, number(probe.get("err")))


def _columns(points: list[Point]) -> dict[str, list[Any]]:
    """Write points as columns, terms as numbers into `TERMS`."""
    return {
        "step": [point.step for point in points],
        "term": [TERMS.index(point.term) for point in points],
        "ratio": [float(f"{point.ratio:.3g}") for point in points],
        "err": [None if point.err is None else float(f"{point.err:.3g}") for point in points],
    }


def _departure(points: list[Point], limit: float) -> Point | None:
    """Return the first point beyond the limit."""
    return next((point for point in points if not point.ratio <= limit), None)


def _in_words(path: Path, limit: float) -> list[tuple[str, str]]:
    """Say in each mode where a run departs from the truth first."""
    return [
        (mode, _sentence(mode, points, limit))
        for mode, points in sorted(path.points.items(), key=lambda item: item[0] != SPLICE)
    ]


def _sentence(mode: str, points: list[Point], limit: float) -> str:
    first = _departure(points, limit)
    if first is None:
        worst = max(points, key=lambda point: severity(point.ratio))
        at = f"{number_text(worst.ratio)} in {worst.term} at step {worst.step}"
        return f"within the limit at every step; the worst is {at}"
    what = "is wrong by itself first" if mode == SPLICE else "departs first"
    wrong = {point.term for point in points if not point.ratio <= limit}
    right = [term for term in TERMS if term in {point.term for point in points} - wrong]
    text = f"{first.term} {what}, at step {first.step}: ratio {number_text(first.ratio)}"
    return f"{text}; {', '.join(right)} never" if right else text


def _lead(paths: list[Path], limit: float) -> str:
    """Say over all runs which terms depart first."""
    firsts: dict[str, int] = {}
    for path in paths:
        points = path.points.get(SPLICE) or next(iter(path.points.values()))
        if first := _departure(points, limit):
            firsts[first.term] = firsts.get(first.term, 0) + 1
    if not firsts:
        return f"All {len(paths)} runs stay within the limit at every step."
    named = ", ".join(
        f"{term} in {many}" for term, many in sorted(firsts.items(), key=lambda item: -item[1])
    )
    wrong = sum(firsts.values())
    return f"{wrong} of {len(paths)} runs leave the limit. The term that is wrong first: {named}."
