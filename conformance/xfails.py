"""Expected failures: what is known to be wrong, in a text file that is checked both ways."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from conformance.blocks import block_names
from conformance.case import Case, all_cases
from conformance.errors import UsageError, nearest_text
from conformance.report.text import case_name, counted, one_line
from conformance.tolerance import badness

Line = dict[str, Any]
"""A case line of results.jsonl."""

FIELDS = "case glob | probe glob | device glob | ratio at most | reason | expires"

_MOST_MISTAKES = 5
_REASON = 200


@dataclass(frozen=True)
class Entry:
    """One line of the file: which failures are known, how bad they may be, why, and until when.

    Attributes:
        number: The line's number.
        case: Glob of a case id, or of an item id if it holds a bracket.
        probe: Glob of names of probes and outputs.
        device: Glob of devices.
        at_most: The largest ratio that is excused; infinity excuses wrong shapes and NaN too.
        reason: Why, in the author's words.
        expires: The last day on which it holds; None for ever.
    """

    number: int
    case: str
    probe: str
    device: str
    at_most: float
    reason: str
    expires: dt.date | None

    def names(self, line: Mapping[str, Any]) -> bool:
        """Say whether a case line is among those that this is about."""
        item = line["case"]
        own = (item, item.partition("::")[0]) if "[" in self.case else (case_name(line["case"]),)
        return fits(self.device, line["device"]) and any(fits(self.case, name) for name in own)

    def names_case(self, case: Case) -> bool:
        """Say whether a case of the suite is among those that this is about."""
        return fits(self.case.partition("[")[0], case.id)

    def sees(self, line: Mapping[str, Any]) -> bool:
        """Say whether a line holds a probe that this is about: what holds none has any."""
        return any(fits(self.probe, p["name"]) for p in line["probes"] or [{"name": ""}])

    def expired(self, today: dt.date) -> bool:
        """Say whether it no longer holds."""
        return self.expires is not None and self.expires < today

    def excuses(self, record: Mapping[str, Any]) -> bool:
        """Say whether a failing record is within what is known."""
        return fits(self.probe, record["name"]) and badness(float(record["ratio"])) <= self.at_most


@dataclass(frozen=True)
class Xfails:
    """The expected failures of a port; without entries nothing is expected.

    Attributes:
        path: The file, as the user named it.
        entries: Its entries, in order.
        today: Decides which of them have expired.
    """

    path: Path
    entries: tuple[Entry, ...]
    today: dt.date

    @classmethod
    def read(cls, path: Path, today: dt.date | None = None) -> Xfails:
        """Read a file of expected failures.

        Args:
            path: UTF-8 text, one entry a line; empty lines and those that begin with `#` are free.
            today: None for the date of today (UTC).

        Raises:
            UsageError: The file cannot be read, or lines of it make no entry.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            message = f"cannot read expected failures from {path}: {error.strerror}"
            raise UsageError(message) from error
        except UnicodeDecodeError as error:
            message = f"cannot read expected failures from {path}: it is no UTF-8 text"
            raise UsageError(message) from error
        return cls.parse(text, path, today or dt.datetime.now(tz=dt.UTC).date())

    @classmethod
    def parse(cls, text: str, path: Path, today: dt.date) -> Xfails:
        """Read the text of a file; see `read`."""
        entries, mistakes = [], []
        for number, row in enumerate(text.split("\n"), start=1):
            if row.strip() and not row.lstrip().startswith("#"):
                try:
                    entries.append(_entry(number, row))
                except ValueError as error:
                    mistakes.append(f"line {number}: {error}")
        if mistakes:
            more = len(mistakes) - _MOST_MISTAKES
            shown = [*mistakes[:_MOST_MISTAKES], *([f"and {more} lines more"] if more > 0 else [])]
            message = f"{path}: {'; '.join(shown)}"
            raise UsageError(message)
        return cls(path, tuple(entries), today)

    def excuse(self, line: Line) -> Line:
        """Judge a case line by what is expected of the port.

        Args:
            line: As the runner judged it, or as an earlier run excused it; it is not changed.

        Returns:
            The line. A `fail` of which every failing record is excused is an `xfail`; one of
            which some are stays a `fail` whose message says what is not. Such a line holds
            `judged`: the verdict and message that it had without this file.
        """
        line = unexcused(line)
        own = [entry for entry in self.entries if entry.names(line)]
        if line["verdict"] != "fail" or not own:
            return line
        excuses = [(record, self._excusing(own, record)) for record in _failing(line)]
        missed = [record for record, entry in excuses if entry is None]
        if missed:
            more = f", and {len(missed) - 1} probes more" if len(missed) > 1 else ""
            text = f"not excused by {self.path.name}: {self._why_not(own, missed[0])}{more}"
            return _rewritten(line, "fail", "; ".join(filter(None, [line["message"], text])))
        used = dict.fromkeys(entry for _, entry in excuses if entry is not None)
        reasons = "; ".join(self._cited(entry) for entry in used)
        return _rewritten(line, "xfail", reasons) if used else line

    def conclude(self, lines: Sequence[Line]) -> list[str]:
        """Check the entries against a whole run.

        Args:
            lines: All case lines, each excused; those of an entry that now passes become `xpass`.

        Returns:
            What is wrong with the file, a sentence an entry: it matches no case of the suite, no
            probe, has expired or now passes. What the run left out is no problem.
        """
        found = [(entry, self._problem(entry, lines)) for entry in self.entries]
        return [f"line {entry.number}: {problem}" for entry, problem in found if problem]

    def used(self, lines: Iterable[Line]) -> int:
        """Count the entries that excused a case of a run."""
        used = {
            self._excusing([e for e in self.entries if e.names(line)], record)
            for line in lines
            if line["verdict"] == "xfail"
            for record in _failing(line)
        }
        return len(used)

    def _excusing(self, entries: Iterable[Entry], record: Mapping[str, Any]) -> Entry | None:
        """Return the first of the entries that excuses a failing record."""
        live = (entry for entry in entries if not entry.expired(self.today))
        return next((entry for entry in live if entry.excuses(record)), None)

    def _why_not(self, entries: Iterable[Entry], record: Mapping[str, Any]) -> str:
        """Say why none of the entries excuses a failing record."""
        name = record["name"]
        own = [entry for entry in entries if fits(entry.probe, name)]
        live = [entry for entry in own if not entry.expired(self.today)]
        if live:
            widest = max(live, key=lambda entry: entry.at_most)
            over = f"{name} is over the bound of line {widest.number}"
            if record["note"].startswith("shape "):
                return f"{over}: of {record['note']} there is no ratio, inf alone excuses it"
            return f"{over}: {float(record['ratio']):g} > {widest.at_most:g}"
        if own:
            return f"{name}: line {own[0].number} expired on {own[0].expires}"
        return f"no entry names {name}"

    def _problem(self, entry: Entry, lines: Sequence[Line]) -> str:
        """Say what is wrong with an entry after a run; empty where nothing is."""
        known = [case for case in all_cases() if entry.names_case(case)]
        if not known:
            return f"matches nothing: no case is called {entry.case!r}{_nearest(entry.case)}"
        if entry.expired(self.today):
            return f"expired on {entry.expires}: mend the port, or set another date"
        judged = [
            line for line in lines if entry.names(line) and line["verdict"] not in {"skip", "error"}
        ]
        own = [line for line in judged if entry.sees(line)]
        if not own:
            whole = any("::" not in line["case"] for line in judged)
            return f"no probe of that name: {entry.probe!r} in {entry.case}" if whole else ""
        failing = (fits(entry.probe, r["name"]) for line in own for r in _failing(line))
        if any(failing) or not _all_ran(known, lines):
            return ""
        for line in own:
            earlier = line["message"] if line["verdict"] == "xpass" else ""
            if line["verdict"] in {"pass", "warn", "xpass"}:
                text = "; ".join(filter(None, [earlier, self._cited(entry)]))
                line.update(_rewritten(line, "xpass", text))
        return f"now passes: delete it ({entry.case} | {entry.probe})"

    def _cited(self, entry: Entry) -> str:
        """Name an entry with its reason."""
        return f"{self.path.name} line {entry.number}: {one_line(entry.reason, _REASON)}"


def unexcused(line: Line) -> Line:
    """Return a case line with the verdict that it has without any file of expected failures."""
    return {k: v for k, v in line.items() if k != "judged"} | line.get("judged", {})


def fits(glob: str, name: str) -> bool:
    """Say whether a glob of `*` and `?` fits a whole name; brackets mean themselves."""
    return _pattern(glob).fullmatch(name) is not None


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(c) or re.escape(c) for c in glob), re.DOTALL)


def _entry(number: int, row: str) -> Entry:
    """Read one line.

    Raises:
        ValueError: It makes no entry; the message says what to write instead.
    """
    fields = [field.strip() for field in row.split("|")]
    if len(fields) != FIELDS.count("|") + 1:
        held = counted(len(fields), "field")
        message = f"it has {held}, not 6: write {FIELDS} (expires may be empty)"
        raise ValueError(message)
    case, probe, device, at_most, reason, expires = fields
    for name, value in (("case", case), ("probe", probe), ("device", device)):
        if not value:
            message = f"the {name} glob is empty: write * for any"
            raise ValueError(message)
    if not reason:
        message = "the reason is missing: say why the port may be wrong here"
        raise ValueError(message)
    return Entry(number, case, probe, device, _bound(at_most), reason, _date(expires))


def _bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        message = f"{text!r} is no bound of a ratio: write a number above 0, or inf"
        raise ValueError(message)
    return value


def _date(text: str) -> dt.date | None:
    message = f"{text!r} is no date: write YYYY-MM-DD, or nothing for never"
    if not text:
        return None
    try:
        date = dt.date.fromisoformat(text)
    except ValueError:
        raise ValueError(message) from None
    if date.isoformat() != text:
        raise ValueError(message)
    return date


def _failing(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [record for record in line["probes"] if record["verdict"] == "fail"]


def _rewritten(line: Line, verdict: str, message: str) -> Line:
    """Return a line with another verdict; what it was judged before stays in it."""
    judged = line.get("judged", {"verdict": line["verdict"], "message": line["message"]})
    return line | {"verdict": verdict, "message": message, "judged": judged}


def _all_ran(cases: Iterable[Case], lines: Sequence[Line]) -> bool:
    """Say whether a run can tell that cases all pass: it ran every one that it might have.

    Those of a component and variant of which it ran nothing were not asked for. One that was left
    out (`-k`, a shard), of which some blocks were left out, or that broke, may fail still.
    """
    asked = {(line["component"], line["variant"]) for line in lines}
    broken = {case_name(line["case"]) for line in lines if line["verdict"] == "error"}
    parts: dict[str, set[str]] = {}
    for line in lines:
        parts.setdefault(case_name(line["case"]), set()).add(line["case"].partition("::")[2])
    return all(
        case.id in parts
        and case.id not in broken
        and ("" in parts[case.id] or parts[case.id] >= set(block_names(case)))
        for case in cases
        if (case.component, case.variant.name) in asked
    )


def _nearest(glob: str) -> str:
    """Suggest the case that was meant, if one is alike."""
    alike = nearest_text(glob, [case.id for case in all_cases()])
    return f"; {alike}" if alike else ""
