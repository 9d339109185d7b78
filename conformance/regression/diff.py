"""Two runs compared: their cases, their controls, their environments, and what they are judged by.

The rule is that of `conformance.regression.findings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance import spec
from conformance.case import COMPONENTS
from conformance.environment import Changes, changes
from conformance.errors import UsageError
from conformance.golden import SPLICE
from conformance.regression.comparison import Comparison
from conformance.regression.findings import Change, Finding, moved_text
from conformance.regression.finished import CASE, EarlierRun, FinishedRun, Judged
from conformance.report.text import mapping, one_line

_MEASURES = {
    "suite": "another suite",
    "limit": "another limit",
    "shard": "another part of a run",
    "control": "another control",
}
"""Fields of a header whose difference has to be known to read a comparison."""

_UNITS = {
    "goldens": "other goldens",
    "weights": "other weights",
}
"""Fields of a header on which the noise depends, and so the unit of every ratio."""


BEGINS = 5
"""So many components are told where it begins."""


class Diff:
    """Compares a later run, line by line, with an earlier one.

    Attributes:
        earlier: The earlier run.
        header: The header of the later one.
        cases: The comparison of the port's items.
        controls: That of the control's, where both runs had the same control.
        environment: What changed around the port.
    """

    def __init__(self, earlier: EarlierRun, header: Mapping[str, Any]) -> None:
        """Begin.

        Args:
            earlier: The earlier run.
            header: The header of the later one.
        """
        self.earlier = earlier
        self.header = header
        same_units = all(earlier.header.get(key) == header.get(key) for key in _UNITS)
        same_control = earlier.header.get("control") == header.get("control")
        controls = earlier.controls if same_control else {}
        self.cases = Comparison(earlier.cases, same_units=same_units)
        self.controls = Comparison(controls, same_units=same_units)
        self.environment: Changes = changes(*map(_environment, (earlier.header, header)))

    def add(self, kind: str, case: str, judged: Judged) -> None:
        """Compare a line of the later run, `case` or `control`."""
        (self.cases if kind == CASE else self.controls).add(case, judged)

    def conclude(self) -> None:
        """Take the later run as ended."""
        dropped = _offers(self.earlier.header) - _offers(self.header)
        whole = self.earlier.header.get("shard") == self.header.get("shard")
        self.cases.conclude(dropped, whole=whole)

    @property
    def control(self) -> list[Finding]:
        """Return where the control got worse, and so the environment; not where it broke."""
        return [found for found in self.controls.regressions if found.what == "worse"]

    @property
    def moved(self) -> list[Change]:
        """Return the items in which the control got worse."""
        return [change for change in self.controls.changes if len(change.worse)]

    @property
    def begins(self) -> list[dict[str, Any]]:
        """Return the first probe of each component that got worse, in order of execution.

        In a trace all that follows inherits the error, so that many probes are worse for one cause:
        splice mode says best where it begins. At most `BEGINS` components are told, the first ones.
        """
        worse = [change for change in self.cases.changes if len(change.worse)]
        firsts: dict[str, Change] = {}
        for change in sorted(worse, key=_position):
            firsts.setdefault(change.after.component, change)
        return [_beginning(change) for change in [*firsts.values()][:BEGINS]]

    @property
    def held(self) -> list[dict[str, Any]]:
        """Return the items whose peak moved, the largest change first: `case`, `before`, `after`.

        In bytes. It speaks for or against nothing: the verdict of an item says whether it may.
        """
        moved = sorted(self.cases.held.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
        return [{"case": case, "before": b, "after": a} for case, (b, a) in moved]

    @property
    def regressed(self) -> bool:
        """Say whether the later run is worse than the earlier one."""
        return bool(self.cases.regressions or self.moved)

    @property
    def nothing(self) -> bool:
        """Say whether no case was judged by both, and nothing speaks against the later run."""
        return not self.cases.cases and not self.regressed

    @property
    def notes(self) -> list[str]:
        """Say in what the two runs were not judged alike, a sentence each."""
        before, after = self.earlier.header, self.header
        texts = []
        if _port(before)["name"] != _port(after)["name"]:
            texts.append(f"another port: {_port(before)['name']} -> {_port(after)['name']}")
        texts += [
            f"{text}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
            for key, text in _MEASURES.items()
            if (before.get(key) or None) != (after.get(key) or None)
        ]
        units = [text for key, text in _UNITS.items() if before.get(key) != after.get(key)]
        if units:
            texts.append(
                f"{' and '.join(units)}: ratios are compared only where the noise is the same, "
                f"at {self.cases.compared} of {self.cases.compared + self.cases.uncompared} probes"
            )
        return texts

    def facts(self) -> dict[str, Any]:
        """Return what a summary tells: counts, notes and findings."""
        return {
            "dir": str(self.earlier.folder),
            **self.counts(),
            "notes": self.notes,
            "environment": self.environment,
            "begins": self.begins,
            "regressions": [found.as_json() for found in self.cases.regressions],
            "improvements": [found.as_json() for found in self.cases.improvements],
            "held": self.held,
        }

    def as_json(self, folder: Path) -> dict[str, Any]:
        """Return the object of `diff --json`, all but what moved case by case.

        Args:
            folder: Of the later run.
        """
        cases = self.cases
        verdicts = sorted(cases.verdicts.items())
        return {
            "before": _run(self.earlier.folder, self.earlier.header),
            "after": _run(folder, self.header),
            "regression": self.regressed,
            "notes": self.notes,
            "environment": self.environment,
            "counts": self.counts(),
            "begins": self.begins,
            "verdicts": [{"before": b, "after": a, "cases": n} for (b, a), n in verdicts],
            "regressions": [found.as_json() for found in cases.regressions],
            "improvements": [found.as_json() for found in cases.improvements],
            "held": self.held,
            "control": [found.as_json() for found in self.control],
            "new": cases.new,
            "vanished": cases.vanished,
            "skipped": cases.skipped,
            "lost": cases.lost,
            "not_run": cases.not_run,
        }

    def counts(self) -> dict[str, int]:
        """Return how many probes moved, and how many cases came and went."""
        cases = self.cases
        return {
            "cases": cases.cases,
            "probes": cases.compared,
            "worse": cases.count("worse", "fell"),
            "better": cases.count("better", "rose"),
            "new": len(cases.new),
            "vanished": len(cases.vanished),
            "skipped": len(cases.skipped),
            "lost": cases.count("lost"),
            "not_run": len(cases.not_run),
        }


def diff(before: Path, after: Path) -> Diff:
    """Compare the folders of two finished runs.

    Args:
        before: Of the earlier run.
        after: Of the later one; it is read line by line.

    Returns:
        The comparison.

    Raises:
        UsageError: They are the same folder, or one holds no run that has ended.
    """
    if before.resolve() == after.resolve():
        message = f"{before} and {after} are one folder: give those of two runs"
        raise UsageError(message)
    for folder in (before, after):
        FinishedRun(folder)  # what is no run is told before minutes are spent on the other
    earlier = EarlierRun.read(before)
    later = FinishedRun(after, earlier.interned)
    found = Diff(earlier, later.header)
    for line in later.judged():
        found.add(*line)
    found.conclude()
    return found


def _position(change: Change) -> tuple[int, bool, tuple[int, ...]]:
    """Return where a change begins: the component, splice mode first, and the probe."""
    after = change.after
    if after.component not in COMPONENTS:
        return len(COMPONENTS), False, ()
    probe = after.names[change.worse[0, 1]][1]
    place = spec.place(after.component, probe)
    return COMPONENTS.index(after.component), after.mode != SPLICE, place


def _beginning(change: Change) -> dict[str, Any]:
    """Say where a change begins."""
    row = next(iter(change.rows(change.worse)))
    moved = moved_text(row["before"], row["after"], row["verdicts"])
    text = f"{change.after.component} {one_line(row['probe'], 200)} {moved}"
    return {"case": change.case, **row, "text": f"{text} in {one_line(change.case, 200)}"}


def _environment(header: Mapping[str, Any]) -> dict[str, Any]:
    return mapping(header.get("environment"))


def _port(header: Mapping[str, Any]) -> dict[str, str]:
    port = mapping(header.get("port"))
    return {key: one_line(port.get(key), 100) for key in ("name", "version", "sha256")}


def _offers(header: Mapping[str, Any]) -> set[str]:
    """Return the components that the port of a run offers."""
    offers = header.get("offers")
    return {str(name) for name in offers} if isinstance(offers, list) else set()


def _run(folder: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Say which run it is."""
    told = {key: header.get(key) for key in ("suite", "goldens", "limit", "started")}
    return {"dir": str(folder), "port": _port(header), **told}


def _shown(value: object) -> str:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return one_line(value, 100) or "none"
