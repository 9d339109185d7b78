"""The items of two runs compared: what got worse or better beyond noise, what is judged no more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from conformance.golden import SPLICE
from conformance.regression.findings import BEYOND_NOISE, Change, Finding, falls
from conformance.regression.finished import PROBE_VERDICTS, Group, Judged, Names

_FAIL = PROBE_VERDICTS.index("fail")


@dataclass(frozen=True)
class _Paired:
    """Which probes of two items are the same.

    Attributes:
        before: Rows of the earlier item.
        after: Rows of the later one.
        lost: Names in the earlier item alone.
    """

    before: np.ndarray
    after: np.ndarray
    lost: tuple[str, ...]

    @classmethod
    def of(cls, before: Names, after: Names) -> _Paired:
        """Pair by kind and name."""
        places = {key: j for j, key in enumerate(after)}
        rows = [(i, places[key]) for i, key in enumerate(before) if key in places]
        pairs = np.array(rows, dtype=np.intp).reshape(-1, 2)
        lost = tuple(key[1] for key in before if key not in places)
        return cls(pairs[:, 0], pairs[:, 1], lost)


@dataclass(frozen=True)
class _Kinds:
    """Which probes of an item differ in numbers alone.

    Attributes:
        keys: One for each kind: the parts of the names between numbers.
        of_row: int (probes,), places in `keys`.
    """

    keys: list[tuple[str, ...]]
    of_row: np.ndarray

    @classmethod
    def of(cls, names: Names) -> _Kinds:
        """Tell them apart."""
        found = [_kind(name) for _, name in names]
        keys = list(dict.fromkeys(found))
        places = {key: place for place, key in enumerate(keys)}
        return cls(keys, np.array([places[key] for key in found], dtype=np.intp))


def _kind(name: str) -> tuple[str, ...]:
    """Return the parts of a name between its numbers."""
    return tuple(re.split(r"\d+", name))


def _factors(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return `severity` of each pair of ratios."""
    ends = [np.maximum(1, np.where(np.isnan(ratios), np.inf, ratios)) for ratios in (before, after)]
    low, high = np.minimum(*ends), np.maximum(*ends)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(low), 1.0, high / low)


class Comparison:
    """Compares the items of a later run, one at a time, with those of an earlier one.

    Attributes:
        compared: So many probes were.
        uncompared: So many were not: their noise, the unit of their ratios, is another.
        cases: So many items both runs judged.
        verdicts: How often one verdict became another.
        changes: Items in which something moved.
        new: Items that the earlier run did not judge, with their verdicts.
        skipped: Items that are newly skipped, with the reasons.
        vanished: Items that are no longer there.
        lost: Items that hand out fewer probes, with the names of those.
        not_run: Items that the later run was not asked for.
        held: Items of mode `memory` whose peak moved, with the bytes before and after.
    """

    def __init__(self, earlier: Mapping[str, Judged], *, same_units: bool) -> None:
        """Take the earlier run.

        Args:
            earlier: Its items, by id.
            same_units: Whether both were judged by the same goldens. If not, ratios are compared
                only where the noise is the same.
        """
        self.compared = self.uncompared = self.cases = 0
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.changes: list[Change] = []
        self.new: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.vanished: list[str] = []
        self.lost: dict[str, tuple[str, ...]] = {}
        self.not_run: list[str] = []
        self.held: dict[str, tuple[int, int]] = {}
        self._left = dict(earlier)
        self._same_units = same_units
        self._skips: list[tuple[str, Judged, Judged]] = []
        self._groups: set[Group] = set()
        self._pairs: dict[tuple[int, int], _Paired] = {}
        self._kinds: dict[int, _Kinds] = {}
        self._found: dict[tuple[str, ...], Finding] = {}

    def add(self, case: str, after: Judged) -> None:
        """Compare one item of the later run."""
        if after.verdict != "skip":
            self._groups.add(after.group)
        before = self._left.pop(case, None)
        if before is None or (before.verdict == "skip" and after.measured):
            self.new[case] = after.verdict
            return
        self.cases += "skip" not in {before.verdict, after.verdict}
        if before.verdict != after.verdict:
            self.verdicts[before.verdict, after.verdict] += 1
        if after.verdict == "skip":
            if before.measured:
                self._skips.append((case, before, after))
            return
        self._note_held(case, before, after)
        worse, better = self._moved(case, before, after)
        fell, rose = falls(before.verdict, after.verdict), falls(after.verdict, before.verdict)
        if fell or rose or len(worse) or len(better):
            self.changes.append(Change(case, before, after, worse, better))
        for what, whole, rows in (("worse", fell, worse), ("better", rose, better)):
            if len(rows):
                self._note_probes(what, case, before, after, rows)
            elif whole:
                own = "fell" if what == "worse" else "rose"
                self._note_case(own, case, before, after.verdict, after.message)

    def _moved(self, case: str, before: Judged, after: Judged) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the probes that got worse, and of those that got better."""
        key = (id(before.names), id(after.names))
        paired = self._pairs.get(key) or _Paired.of(before.names, after.names)
        self._pairs[key] = paired
        if paired.lost and before.measured and after.measured and self._same_units:
            self.lost[case] = paired.lost
            self._note_lost(case, before.component, paired.lost)
        i, j = paired.before, paired.after
        old, new = (
            np.where(np.isnan(ratios), np.inf, ratios)
            for ratios in (before.ratios[i], after.ratios[j])
        )
        failed, fails = before.verdicts[i] == _FAIL, after.verdicts[j] == _FAIL
        worse = (new > BEYOND_NOISE * np.maximum(1, old)) | (fails & ~failed)
        better = (old > BEYOND_NOISE * np.maximum(1, new)) | (failed & ~fails)
        if not self._same_units:
            same = before.noises[i] == after.noises[j]
            worse, better = worse & same, better & same
            self.uncompared += int(np.count_nonzero(~same))
            self.compared += int(np.count_nonzero(same))
        else:
            self.compared += len(i)
        rows = np.stack([i, j], axis=1)
        return rows[worse], rows[better & ~worse]

    def _note_probes(
        self, what: str, case: str, before: Judged, after: Judged, rows: np.ndarray
    ) -> None:
        """Count the probes that moved by kind, and keep the worst of each."""
        i, j = rows.T
        kinds = self._kinds_of(after.names)
        factors = _factors(before.ratios[i], after.ratios[j])
        for kind in np.unique(kinds.of_row[j]).tolist():
            own = np.flatnonzero(kinds.of_row[j] == kind)
            names = [after.names[row][1] for row in j[own].tolist()]
            worst = own[np.argmax(factors[own])]
            found = self._noted(what, after.component, kinds.keys[kind], names)
            spliced = after.mode == SPLICE
            known = (found.spliced, found.severity)
            if not found.case or (spliced, float(factors[worst])) > known:
                found.spliced = spliced
                k, m = int(i[worst]), int(j[worst])
                found.case, found.probe = case, after.names[m][1]
                found.before, found.after = float(before.ratios[k]), float(after.ratios[m])
                found.verdicts = (before.probe_verdict(k), after.probe_verdict(m))

    def _note_held(self, case: str, before: Judged, after: Judged) -> None:
        """Keep the peaks of a configuration where they differ: they are exact, without noise."""
        if before.held and after.held and before.held != after.held:
            self.held[case] = before.held, after.held

    def _note_lost(self, case: str, component: str, names: tuple[str, ...]) -> None:
        """Count the probes of a case that are not handed out any more, by kind."""
        kinds: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            kinds.setdefault(_kind(name), []).append(name)
        for key, own in kinds.items():
            found = self._noted("lost", component, key, own)
            found.case, found.probe = found.case or case, found.probe or own[0]

    def _noted(self, what: str, component: str, kind: tuple[str, ...], names: list[str]) -> Finding:
        """Count probes of one kind in one case."""
        found = self._found.setdefault((what, component, *kind), Finding(what, component))
        found.count += len(names)
        found.cases += 1
        found.names.update(names)
        return found

    def _kinds_of(self, names: Names) -> _Kinds:
        """Return the kinds of the probes that many items share; they are told apart once."""
        found = self._kinds.get(id(names))
        if found is None:
            found = self._kinds[id(names)] = _Kinds.of(names)
        return found

    def _note_case(self, what: str, case: str, before: Judged, verdict: str, message: str) -> None:
        """Count a whole case among those of its component that end alike."""
        verdicts = (before.verdict, verdict)
        key = (what, before.component, *verdicts, message)
        own = Finding(what, before.component, case=case, verdicts=verdicts, message=message)
        self._found.setdefault(key, own).cases += 1

    def conclude(self, dropped: Collection[str] = (), *, whole: bool = True) -> None:
        """Take the later run as ended: what it did not judge is missing.

        Args:
            dropped: Components that the port offered and does not offer any more.
            whole: Whether the later run was asked for as much as the earlier one. What a shard
                leaves out, or a suite with other goldens, is not missing.
        """
        for case, before, after in self._skips:
            if after.group in self._groups or before.component in dropped:
                self.skipped[case] = after.message
                self._note_case("skipped", case, before, "skip", after.message)
            else:
                self.not_run.append(case)
        for case, before in self._left.items():
            asked = before.group in self._groups and whole and self._same_units
            if before.measured and (asked or before.component in dropped):
                self.vanished.append(case)
                self._note_case("vanished", case, before, "", "")
            else:
                self.not_run.append(case)
        self._left = {}

    @property
    def regressions(self) -> list[Finding]:
        """Return what speaks against the later run: a layer's own errors first, then the worst."""
        return self._of("fell", "worse", "vanished", "skipped", "lost")

    @property
    def improvements(self) -> list[Finding]:
        """Return what speaks for it, the best first."""
        return self._of("rose", "better")

    def count(self, *what: str) -> int:
        """Count the probes of some kinds of findings, whole cases as one each."""
        return sum(found.count or found.cases for found in self._of(*what))

    def _of(self, *what: str) -> list[Finding]:
        found = [finding for finding in self._found.values() if finding.what in what]
        return sorted(
            found, key=lambda f: (what.index(f.what), not f.spliced, -f.severity, -f.count)
        )
