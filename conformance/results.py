"""What a run leaves behind: results.jsonl as it goes, then the verdict and its reports."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance import __version__
from conformance.case import Case
from conformance.environment import environment, source_digest
from conformance.errors import UsageError
from conformance.evidence.data_folder import DATA, DataFolder, left_out
from conformance.evidence.sources import find_sources
from conformance.explain import Explanation, explain, explain_merged, in_short
from conformance.header import header_of, require_same
from conformance.port import Hello
from conformance.raised import place_of
from conformance.regression.baseline import Baseline, ratchet_of
from conformance.regression.control import Watch, watch
from conformance.regression.ratchet import RATCHET
from conformance.report.files import REPORTS, write_reports
from conformance.report.text import one_line
from conformance.run_folder import (
    RESULTS,
    SUMMARY,
    RunFolder,
    plain,
    require_own,
    write_whole,
    writing,
)
from conformance.runner import Runner
from conformance.shards import Shard
from conformance.summary import summarise
from conformance.witness import is_witness
from conformance.xfails import Xfails, unexcused

DEFAULT_OUT = Path("conformance-report")
FILES = (RESULTS, SUMMARY, RATCHET, *REPORTS)


@dataclass(frozen=True)
class Merged:
    """What only the shards know of a run that is put together from them.

    Attributes:
        port: Name, version, spec and digest of the port.
        started: When the first of them began.
        seconds: How long they took together.
        faults: The causes that they found.
        missing: Those that are not there, such as `3/4`.
        sources: The lines of sd1_impl that they show, for where it is not installed.
    """

    port: Mapping[str, str]
    started: dt.datetime
    seconds: float
    faults: Sequence[Mapping[str, Any]]
    missing: tuple[str, ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)


class Results:
    """Collects case lines, writes each at once, and closes with the verdict."""

    def __init__(
        self,
        out: Path,
        hello: Hello,
        port_spec: str,
        scope: str,
        *,
        resume: Collection[str] | None = None,
        machine: dict[str, str] | None = None,
        xfails: Xfails | None = None,
        options: Sequence[str] = (),
        weights: dict[str, Any] | None = None,
        control: str | None = None,
        baseline: Baseline | None = None,
        shard: Shard | None = None,
        items: Mapping[str, Any] | None = None,
        merged: Merged | None = None,
    ) -> None:
        """Create the folder and write the header.

        Args:
            out: Folder to create; files of an earlier run are replaced.
            hello: What the port says of itself.
            port_spec: The port as the user typed it.
            scope: What is being run, in words.
            resume: Item ids of this run: the lines of an earlier, broken-off run of the same kind
                are kept, and judged anew by `xfails`.
            machine: The environment in which the port runs, where that is another process.
            xfails: The failures that are expected of the port.
            options: What a command that runs one of these cases again must repeat and no id says,
                such as `--traces DIR`.
            weights: What is to be said of the user's own weights; None for the recipe's.
            control: The reference that is run in the same job, as the user typed it.
            baseline: An earlier run, with which this one is compared.
            shard: Which part of a run this is; None for the whole.
            items: Number and digest of the items of the whole run.
            merged: Of a run that is put together from shards.

        Raises:
            UsageError: The folder cannot be written, another process writes to it, or the run to
                resume is another one, or holds what is not selected now.
        """
        self.out = out
        self.hello = hello
        self.environment = machine or environment()
        self.environment |= {f"port: {name}": text for name, text in hello.details.items()}
        self.port = dict(merged.port) if merged else _described(hello, port_spec)
        self.scope = f"{scope}; {shard.words}" if shard else scope
        self.shard = shard
        self.xfails = xfails
        self.baseline = baseline
        self.options = list(options)
        self.weights = weights
        self.merged = merged
        self.started = merged.started if merged else dt.datetime.now(tz=dt.UTC)
        self._header = header_of(
            self.port,
            self.scope,
            self.environment,
            self.started,
            suite=__version__,
            offers=hello.components,
            backends=hello.backends,
            options=options,
            weights=weights,
            xfails=xfails,
            shard=str(shard) if shard else None,
            items=items,
            control=control,
            process=os.getpid(),
        )
        self._folder = RunFolder(out)
        require_own(out, RESULTS, FILES)
        self.resumed = False
        earlier = [] if resume is None else self._earlier(resume)
        self.data = DataFolder(out / DATA)
        kept = [self._excused(line) for line in earlier if line["type"] == "case"]
        self.lines = [self.data.adopt(line, self.data.folder) for line in kept]
        self.control = [line for line in earlier if line["type"] == "control"]
        traced = [line for line in self.lines if line.get("traceback")]
        self._broke = {place_of(line["traceback"]): line["case"] for line in traced}
        self._folder.begin([self._header, *self.lines, *self.control], stale=FILES[1:])
        self.data.sweep()

    def _excused(self, line: dict[str, Any]) -> dict[str, Any]:
        """Judge a line by the failures expected in this run, whatever an earlier run did."""
        return unexcused(line) if self.xfails is None else self.xfails.excuse(line)

    def _earlier(self, resume: Collection[str]) -> list[dict[str, Any]]:
        """Return the lines of the run to resume that this run asks for, each once."""
        records = self._folder.records()
        if not records:
            return []
        self.resumed = True
        require_same(records[0], self._header, self.out)
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for record in records[1:]:
            if record["type"] != "footer":
                found.setdefault((record["type"], record["case"]), record)
        foreign = [case for _, case in found if case not in resume]
        if foreign:
            message = (
                f"cannot resume {self.out}: it holds {len(foreign)} item"
                f"{'s that are' if len(foreign) > 1 else ' that is'} not selected now, such as "
                f"{one_line(foreign[0], 100)}; repeat the selection of that run, or drop --resume "
                "to start anew"
            )
            raise UsageError(message)
        return list(found.values())

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write one case line and return it as written: a failure may be an expected one."""
        line = self.data.store(self._excused(self._traced_once(line)))
        self.lines.append(line)
        self._folder.append(line)
        return line

    def _traced_once(self, line: dict[str, Any]) -> dict[str, Any]:
        """Keep the traceback of the first case that broke at a place; the others name that case."""
        if not line.get("traceback"):
            return line
        first = self._broke.setdefault(place_of(line["traceback"]), line["case"])
        if first == line["case"]:
            return line | {"detail": f"traceback: `traceback` of this case in {self.out / RESULTS}"}
        line = line | {"detail": f"traceback: that of {first}"}
        del line["traceback"]
        return line

    def add_control(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write one control line and return it: it counts for no verdict of the port."""
        self.control.append(line)
        self._folder.append(line)
        return line

    def _conclude_xfails(self) -> dict[str, Any] | None:
        """Check the list of expected failures, and return what summary.json says of it.

        What a part of a run does not hold may fail as expected in another part.
        """
        if self.xfails is None:
            return None
        partial = self.shard is not None or (self.merged is not None and self.merged.missing)
        problems = self.xfails.conclude([] if partial else self.lines)
        return {
            "file": str(self.xfails.path),
            "entries": len(self.xfails.entries),
            "used": self.xfails.used(self.lines),
            "problems": problems,
        }

    def _explanation(
        self,
        lines: list[dict[str, Any]],
        runner: Runner | None,
        cases: Mapping[str, Case] | None,
    ) -> Explanation:
        """Trace failures to their causes, by the port or by what shards found."""
        if self.merged is not None:
            return explain_merged(lines, self.merged.faults)
        return explain(lines, runner, cases) if runner is not None else Explanation()

    def close(
        self,
        runner: Runner | None = None,
        cases: Mapping[str, Case] | None = None,
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Write footer, summary.json and the reports that are made of them.

        Args:
            runner: Holds the port: failures are traced to their causes. None leaves them be.
            cases: By id, those with other weights than the recipe's.
            tell: Told the summary before anything is written: a full disk costs no verdict.

        Returns:
            The summary.

        Raises:
            SuiteError: The folder cannot be written any longer.
        """
        expected = self._conclude_xfails()
        compared = None
        if self.baseline is not None:
            compared = self.baseline.compared(self._header, self.lines, self.control)
        watched = watch(self._header, self.control, self.lines, compared)
        unexpected = [
            line
            for line in self.lines
            if line["verdict"] != "xfail"
            and not is_witness(line)
            and line["case"] not in watched.excused
        ]
        found = self._explanation(unexpected, runner, cases)
        found.faults = [*watched.faults, *found.faults]
        seconds = (dt.datetime.now(tz=dt.UTC) - self.started).total_seconds()
        seconds = self.merged.seconds if self.merged else seconds
        summary = self._summary(expected, watched, found, round(seconds, 3))
        if self.baseline is not None and compared is not None:
            summary["baseline"] = self.baseline.facts(compared, self.lines)
        unheard = None
        try:
            tell(summary)
        except BrokenPipeError as error:  # nobody reads on: the files are written all the same
            unheard = error
        sources = find_sources(summary["first_divergence"], found.faults, unexpected, cases)
        self.data.add_sources(sources or (self.merged.sources if self.merged else {}))
        self._write(summary, found, seconds)
        if unheard is not None:
            raise unheard
        return summary

    def _summary(
        self, expected: dict[str, Any] | None, watched: Watch, found: Explanation, seconds: float
    ) -> dict[str, Any]:
        """Draw the verdict, and say what summary.json says but for the baseline."""
        missing = self.merged.missing if self.merged else ()
        summary = summarise(
            self.lines, self.port, self.hello, self.scope, expected, watched.facts, missing
        )
        summary |= {
            "environment": self.environment,
            "seconds": seconds,
            "shard": str(self.shard) if self.shard else None,
            "options": self.options,
            "weights": self.weights,
            "faults": [in_short(fault) for fault in found.faults],
            "left_out": left_out(self.lines),
        }
        first = summary["first_divergence"]
        if first is not None:
            told = found.hints.get(first["case"].partition("[")[0].rsplit("/", 2)[0], "")
            hint = "; ".join(text for text in (told, first["hint"]) if text)
            summary["first_divergence"] = first | {"hint": hint}
        if watched.divergence is not None:
            summary["first_divergence"] = watched.divergence
        return summary

    def _write(self, summary: dict[str, Any], found: Explanation, seconds: float) -> None:
        """Write what closes a run: ratchet, summary, footer and reports."""
        if summary["counts"]["xpass"]:  # what the list told of whole runs alone
            self._folder.begin([self._header, *self.lines, *self.control])
        footer = {
            "type": "footer",
            "counts": summary["counts"],
            "controls": len(self.control),
            "seconds": seconds,
            "faults": found.faults,
            "hints": found.hints,
        }
        with writing(self.out):
            ratchet_of(self.baseline, self._header, self.lines).write(self.out)
            write_whole(self.out / SUMMARY, [json.dumps(plain(summary), indent=2), "\n"])
            self._folder.append(footer)
            write_reports(self.out)
        self._folder.close()


def _described(hello: Hello, port_spec: str) -> dict[str, str]:
    """Say which port it is: one whose files were edited is another one."""
    port = {"name": hello.name, "version": hello.version, "spec": port_spec}
    digest = source_digest(port_spec)
    return {**port, "sha256": digest} if digest else port
