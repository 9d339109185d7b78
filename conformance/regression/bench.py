"""Two bench files: what got slower or larger beyond noise.

What is compared of a row are its ratios to the reference that was timed beside it, run for run: a
machine that was slower that day was slower for both. Seconds themselves are compared where there
is no such ratio and the machine is the same. A row is worse if these rank higher than chance
allows, over all rows of the comparison together (`ranks`), and by more than they vary: each median
lies outside the other's middle half. What was counted, not measured, is exact. docs/bench.md
explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conformance.bench.record import MORE, BenchFile, Row, quartiles, read
from conformance.determinism import HASH_SEED
from conformance.environment import Changes, changes
from conformance.errors import UsageError
from conformance.regression.ranks import ALPHA, holm, p_larger, p_least, runs_needed
from conformance.report.text import counted

WORSE, BETTER, SAME, UNDECIDED, APART = "worse", "better", "same", "undecided", "not compared"

_REFERENCE = ("diffusers", "transformers")
"""Facts of the environment that are the reference."""

_IDLE = ("numpy", "numpy blas", "LC_ALL", HASH_SEED, "gradients", "set by the suite")
"""Facts that cost no time: anything else is another machine."""

_NAMED = 4

Series = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Moved:
    """A row of both files.

    Attributes:
        before: In the earlier.
        after: In the later.
        what: `worse`, `better`, `same`, `undecided` (too few runs) or `not compared`.
        factor: What is compared, the later median over the earlier; None if nothing is.
        p: How probable a change for the worse, or the better, as large as this is by chance; None
            where the figure is exact or not compared.
    """

    before: Row
    after: Row
    what: str
    factor: float | None
    p: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` has it."""
        rows = {"before": self.before.as_json(), "after": self.after.as_json()}
        own = {"name": self.after.name, "what": self.what, "factor": self.factor, "p": self.p}
        return own | {
            side: {key: row.get(key) for key in ("value", "spread", "ratio")}
            for side, row in rows.items()
        }


@dataclass(frozen=True)
class BenchDiff:
    """Two bench files of one kind."""

    before: BenchFile
    after: BenchFile

    @cached_property
    def environment(self) -> Changes:
        """Return what differs between the machines and libraries."""
        return changes(self.before.environment, self.after.environment)

    @cached_property
    def machines(self) -> list[str]:
        """Return the facts by which the machines are not one."""
        return [name for name in self.environment if name not in (*_REFERENCE, *_IDLE)]

    @cached_property
    def references(self) -> list[str]:
        """Return which libraries of the reference have another version."""
        return [name for name in _REFERENCE if name in self.environment]

    @cached_property
    def lost(self) -> list[str]:
        """Return the rows of the earlier file alone."""
        return [name for name in self.before.rows if name not in self.after.rows]

    @cached_property
    def new(self) -> list[str]:
        """Return the rows of the later file alone."""
        return [name for name in self.after.rows if name not in self.before.rows]

    @cached_property
    def moved(self) -> list[Moved]:
        """Return every row of both files, judged."""
        pairs = [
            (row, self.after.rows[n]) for n, row in self.before.rows.items() if n in self.after.rows
        ]
        series = [self._series(*pair) for pair in pairs]
        tested = [i for i, one in enumerate(series) if one]
        p: dict[str, dict[int, float]] = {}
        sure: dict[str, set[int]] = {}
        for what in (WORSE, BETTER):
            p[what] = {i: _p(series[i], larger=_larger(pairs[i][1], what)) for i in tested}
            flags = holm(list(p[what].values()))
            sure[what] = {i for i, flag in zip(tested, flags, strict=True) if flag}
        found = []
        for i, (before, after) in enumerate(pairs):
            one = series[i]
            if one is None:
                what, factor = _exactly(before, after) if _exact(before, after) else (APART, None)
                found.append(Moved(before, after, what, factor, None))
                continue
            what = next((w for w in (WORSE, BETTER) if i in sure[w] and _apart(*one)), SAME)
            if what == SAME and p_least(*map(len, one)) > ALPHA / len(tested):
                what = UNDECIDED
            least = min(p[w][i] for w in (WORSE, BETTER))
            found.append(Moved(before, after, what, _factor(*one), least))
        return found

    def _series(self, before: Row, after: Row) -> Series | None:
        """Return what is compared of a row, before and after; None if it is exact or nothing is."""
        names = {row.reference.name if row.reference else None for row in (before, after)}
        replaced = self.references and names & {*_REFERENCE}
        if before.ratios and after.ratios and len(names) == 1 and not replaced:
            return before.ratios, after.ratios
        alone = after.unit == "ratio" or not self.machines
        return (before.runs, after.runs) if before.runs and after.runs and alone else None

    def of(self, what: str) -> list[Moved]:
        """Return the rows that did this, the largest change first."""
        rows = [moved for moved in self.moved if moved.what == what]
        return sorted(rows, key=lambda m: -abs(np.log(m.factor)) if m.factor else -np.inf)

    @property
    def regressed(self) -> bool:
        """Say whether anything got worse."""
        return bool(self.of(WORSE))

    @property
    def nothing(self) -> bool:
        """Say whether no row could be judged."""
        return all(moved.what in {UNDECIDED, APART} for moved in self.moved)

    @property
    def notes(self) -> list[str]:
        """Return what makes the two hard to compare, a sentence each."""
        found = []
        if self.machines:
            found.append(
                f"between two machines ({_some(self.machines)}): seconds say nothing, only ratios "
                "to the reference of the same run and what is counted are compared"
            )
        if self.references:
            found.append(
                f"{' and '.join(self.references)} changed: ratios to it are not compared"
                + ("" if self.machines else ", seconds are")
            )
        if self.before.suite != self.after.suite:
            found.append(f"suite {self.before.suite} before, {self.after.suite} after")
        undecided, apart = self.of(UNDECIDED), self.of(APART)
        if undecided:
            judged = sum(moved.p is not None for moved in self.moved)
            found.append(
                f"{len(undecided)} of {judged} rows have too few runs to be told from chance: "
                f"measure both with --repeat {runs_needed(judged)}"
            )
        if apart:
            verb = "is" if len(apart) == 1 else "are"
            rows = counted(len(apart), "row")
            found.append(f"{rows} {verb} not comparable, such as {apart[0].after.name}")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything, as strict JSON."""
        told = {"before": self.before, "after": self.after}
        return {
            **{
                name: {"file": str(file.path), "suite": file.suite, "environment": file.environment}
                for name, file in told.items()
            },
            "bench": self.after.bench,
            "regression": self.regressed,
            "notes": self.notes,
            "changed": self.environment,
            "lost": self.lost,
            "new": self.new,
            "rows": [moved.as_json() for moved in self.moved],
        }


def bench_diff(before: Path, after: Path) -> BenchDiff:
    """Compare two bench files.

    Args:
        before: The earlier.
        after: The later.

    Raises:
        UsageError: One of them cannot be read, they are one file, or of two benchmarks.
    """
    if before.exists() and after.exists() and before.samefile(after):
        message = f"{before} and {after} are the same file: name two"
        raise UsageError(message)
    files = read(before), read(after)
    if files[0].bench != files[1].bench:
        message = (
            f"{before} is of `{files[0].bench}`, {after} of `{files[1].bench}`: "
            "only two of the same benchmark can be compared"
        )
        raise UsageError(message)
    return BenchDiff(*files)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _exact(before: Row, after: Row) -> bool:
    return not before.runs and not after.runs


def _exactly(before: Row, after: Row) -> tuple[str, float | None]:
    """Judge counted figures: any change is one."""
    factor = after.value / before.value if before.value else None
    if before.value == after.value:
        return SAME, factor
    larger = after.value > before.value
    return (WORSE if larger is _larger(after, WORSE) else BETTER), factor


def _larger(row: Row, what: str) -> bool:
    """Say whether a larger figure is what is asked for."""
    return (what == WORSE) is (row.better != MORE)


def _p(series: Series | None, *, larger: bool) -> float:
    """Return how probable it is by chance that the later runs are this much larger, or smaller."""
    before, after = series or ((), ())
    return p_larger(before, after) if larger else p_larger(after, before)


def _apart(before: Sequence[float], after: Sequence[float]) -> bool:
    """Say whether they moved by more than they vary."""
    return _outside(before, after) and _outside(after, before)


def _outside(runs: Sequence[float], others: Sequence[float]) -> bool:
    low, high = quartiles(others)
    return not low <= float(np.median(runs)) <= high


def _factor(before: Sequence[float], after: Sequence[float]) -> float | None:
    first = float(np.median(before))
    return float(np.median(after)) / first if first else None
