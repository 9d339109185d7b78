"""The rule of docs/regressions.md: what is worse, what is better, and how it is told.

Below 1 a ratio is the reference's own noise, so that a probe got worse if its ratio is more than
twice the earlier one, the earlier one taken as at least 1; better the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conformance.regression.finished import Judged
from conformance.report.text import counted, number_text, one_line, pattern_of
from conformance.tolerance import badness

BEYOND_NOISE = 2.0
"""Two honest runs of one port stay within this factor of each other, and of 1."""

_TEXT = 200


def is_worse(before: float, after: float) -> bool:
    """Say whether a ratio rose by more than noise; NaN is worse than any number."""
    return badness(after) > BEYOND_NOISE * max(1.0, badness(before))


def falls(before: str, after: str) -> bool:
    """Say whether the verdict of an item fell: to `error`, or from something better to `fail`."""
    if after == "error":
        return before != "error"
    return after == "fail" and before in {"pass", "warn", "xpass", "xfail"}


def severity(before: float, after: float) -> float:
    """Return the factor between two ratios, either way, each taken as at least 1."""
    low, high = sorted(max(1.0, badness(ratio)) for ratio in (before, after))
    return high / low if low < math.inf else 1.0


@dataclass
class Finding:
    """What happened to one kind of probe of a component, or to cases of it that end alike.

    Attributes:
        what: `worse`, `better`; of whole cases `fell`, `rose`, `skipped`, `vanished`; `lost` for
            probes that are no longer handed out.
        component: The component.
        count: So many probes.
        cases: In so many cases.
        case: The worst of them, or the first.
        probe: The worst probe; empty where whole cases are meant.
        before: Its earlier ratio.
        after: Its later ratio.
        verdicts: Before and after, of the probe or the case.
        message: Why, as the run says.
        spliced: Whether splice mode found it: an error of its own, none that it inherits.
        names: Of all its probes.
    """

    what: str
    component: str
    count: int = 0
    cases: int = 0
    case: str = ""
    probe: str = ""
    before: float | None = None
    after: float | None = None
    verdicts: tuple[str, str] = ("", "")
    message: str = ""
    spliced: bool = False
    names: set[str] = field(default_factory=set, repr=False)

    @property
    def probes(self) -> str:
        """Return the names of the probes as one, with a `*` for each number that differs."""
        return pattern_of(self.names) if self.names else ""

    @property
    def severity(self) -> float:
        """Return by what factor the worst probe moved; infinite for whole cases."""
        if self.before is None or self.after is None:
            return math.inf
        return severity(self.before, self.after)

    def as_json(self) -> dict[str, Any]:
        """Return the object of summary.json and of `diff --json`."""
        return {
            "what": self.what,
            "component": self.component,
            "probes": self.probes,
            "count": self.count,
            "cases": self.cases,
            "case": self.case,
            "probe": self.probe,
            "before": self.before,
            "after": self.after,
            "verdicts": list(self.verdicts),
            "message": self.message,
            "text": self.text,
        }

    @property
    def text(self) -> str:
        """Say it in one line."""
        where = one_line(self.case, _TEXT)
        cases = counted(self.cases, "case")
        told = f": {one_line(self.message, _TEXT)}" if self.message else ""
        if self.what in {"fell", "rose", "skipped", "vanished"}:
            moved = {"vanished": "not there any more"}.get(self.what, _arrow(*self.verdicts))
            first = "the first " if self.cases > 1 else ""
            return f"{self.component}: {cases} {moved}, {first}{where}{told}"
        what = f"{self.component} {one_line(self.probes, _TEXT)}: {self.count} in {cases}"
        if self.what == "lost":
            return f"{what} not handed out any more, the first in {where}"
        most = {"worse": "worst", "better": "best"}[self.what]
        probe = f"{one_line(self.probe, _TEXT)} " if len(self.names) > 1 else ""
        moved = moved_text(self.before, self.after, self.verdicts)
        return f"{what}, {most} {probe}{moved} in {where}"


def moved_text(before: float | None, after: float | None, verdicts: tuple[str, str]) -> str:
    """Write how a ratio moved: `1.2 -> 48 (pass -> fail)`."""
    return f"{_arrow(number_text(before), number_text(after))} ({_arrow(*verdicts)})"


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


@dataclass(frozen=True)
class Change:
    """A case of both runs in which something moved.

    Attributes:
        case: The item's id.
        before: Earlier.
        after: Later.
        worse: int (n, 2): rows of the probes that got worse, in the earlier and the later run.
        better: The same of those that got better.
    """

    case: str
    before: Judged
    after: Judged
    worse: np.ndarray
    better: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """Return the object of `diff --json`."""
        return {
            "case": self.case,
            "verdicts": [self.before.verdict, self.after.verdict],
            "message": self.after.message,
            "worse": list(self.rows(self.worse)),
            "better": list(self.rows(self.better)),
        }

    @property
    def worst(self) -> dict[str, Any]:
        """Return the case with the probe that got worse by most."""
        rows = self.rows(self.worse)
        return {
            "case": self.case, **max(rows, key=lambda row: severity(row["before"], row["after"])),
        }  # fmt: skip

    def rows(self, pairs: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yield what is to be said of each pair of rows, in order of execution."""
        for i, j in pairs.tolist():
            yield {
                "probe": self.after.names[j][1],
                "before": float(self.before.ratios[i]),
                "after": float(self.after.ratios[j]),
                "verdicts": (self.before.probe_verdict(i), self.after.probe_verdict(j)),
            }
