"""Several runs as one site: the table of ports that people share, and a page for each run."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path

from conformance.errors import UsageError
from conformance.levels import LADDER, NAMES, Rung
from conformance.report.badge import badge_svg
from conformance.report.causes import cause_name
from conformance.report.html import Page, assemble, digest, template_environment
from conformance.report.records import Summary
from conformance.report.run import Run, read_object, read_run
from conformance.report.text import counted, one_line, severity
from conformance.report.words import headline
from conformance.run_folder import unwritable, write_whole

MARKER = "site.json"
"""Lists the pages of a site: a folder that holds it may be written again."""

_SLUG, _CAUSES, _SHORT = 60, 3, 8
_VERDICTS = ("conformant", "incomplete", "nonconformant")


@dataclass(frozen=True)
class Step:
    """Where a port stands with one level.

    Attributes:
        name: The level's number and name.
        state: `reached`, `failed` or `open`.
        text: What the table's cell says.
        why: What keeps the port from it, where that is known.
    """

    name: str
    state: str
    text: str
    why: str = ""


@dataclass(frozen=True)
class Entry:
    """One run: a row of the table.

    Attributes:
        run: The run.
        slug: The folder of its page.
        steps: Levels 0 to 3.
        dtypes: Arithmetics judged.
        devices: Devices judged on.
        causes: The first causes of its failures.
        more: How many causes more there are.
        suite: Version of the suite.
        goldens: The beginning of the digest of the goldens.
    """

    run: Run
    slug: str
    steps: tuple[Step, ...]
    dtypes: str
    devices: str
    causes: tuple[str, ...]
    more: int
    suite: str
    goldens: str

    @property
    def summary(self) -> Summary:
        """Return the summary of the run."""
        return self.run.summary

    @property
    def said(self) -> str:
        """Return the verdict in one or two words."""
        return headline(self.summary)

    @property
    def size(self) -> str:
        """Say how many cases there were, how many of them are known to fail, and when."""
        cases, known = len(self.run.cases), self.summary.counts["xfail"]
        parts = [counted(cases, "case")]
        parts += [f"{known} known to fail"] if known else []
        return ", ".join([*parts, *([_time(self.run.started)] if self.run.started else [])])

    @property
    def rank(self) -> str:
        """Return a number that sorts as the worst ratio does: none first, not a number last."""
        worst = self.summary.worst_ratio
        if worst is None:
            return "-1"
        return "Infinity" if math.isnan(worst) else repr(min(worst, sys.float_info.max))


def write_site(folders: Sequence[Path], out: Path) -> Path:
    """Write one site of several runs.

    Args:
        folders: Of the runs; one that is named twice counts once.
        out: Folder of the site: a new one, an empty one, or a site that is then written anew.

    Returns:
        The path of the site's `index.html`; beside it, `NAME/index.html` and `NAME/badge.svg` of
        each run. No page asks for anything outside itself.

    Raises:
        UsageError: A folder holds no results.jsonl, or `out` holds what is no site.
    """
    chosen = list(dict.fromkeys(folder.resolve() for folder in folders))
    runs = [read_run(folder) for folder in chosen]
    _make_room(out)
    entries = sorted(_entries(runs), key=_by_merit)
    slugs = [entry.slug for entry in entries]
    (out / MARKER).write_text(json.dumps({"pages": slugs}) + "\n", encoding="ascii")
    for entry in entries:
        folder = out / entry.slug
        folder.mkdir()
        page = Page(entry.run.out).render(home="../index.html")
        write_whole(folder / "index.html", [page])
        write_whole(folder / "badge.svg", [badge_svg(entry.summary)])
    path = out / "index.html"
    write_whole(path, [_index(entries)])
    return path


def _make_room(out: Path) -> None:
    """Create the folder, or empty the site that it holds."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in out.iterdir()}
        if found and MARKER not in found:
            message = f"{out} is not empty and holds no site of `report`: give another --out"
            raise UsageError(message)
        for slug in _pages(out / MARKER):
            shutil.rmtree(out / slug, ignore_errors=True)
    except OSError as error:
        raise unwritable(out, error, "the site") from error


def _pages(marker: Path) -> list[str]:
    """Return the pages of an earlier site: what may be removed, so nothing but plain slugs."""
    pages = read_object(marker).get("pages")
    names = pages if isinstance(pages, list) else []
    return [name for name in names if isinstance(name, str) and name == slug_of(name)]


def slug_of(text: str) -> str:
    """Make a folder's name of a text: lower-case ASCII letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:_SLUG].strip("-") or "port"


def _entries(runs: Iterable[Run]) -> Iterable[Entry]:
    taken: set[str] = set()
    for run in runs:
        summary = run.summary
        dtypes = dict.fromkeys(case.dtype for case in run.cases if case.dtype not in ("", "int64"))
        devices = dict.fromkeys(case.device for case in run.cases if case.device)
        slug = slug_of(" ".join([summary.port, summary.port_version, *dtypes, *devices]))
        if slug in taken:
            free = (f"{slug}-{number}" for number in numbers(2))
            slug = next(name for name in free if name not in taken)
        taken.add(slug)
        yield Entry(
            run,
            slug,
            steps=tuple(_steps(summary)),
            dtypes=", ".join(dtypes),
            devices=", ".join(devices),
            causes=tuple(cause_name(fault) for fault in summary.faults[:_CAUSES]),
            more=max(0, len(summary.faults) - _CAUSES),
            suite=summary.suite,
            goldens=one_line(run.record.get("goldens"))[:_SHORT],
        )


def _steps(summary: Summary) -> Iterable[Step]:
    """Yield where a port stands with each level."""
    reached = -1 if summary.level is None else summary.level
    beyond = summary.next_level
    failing = summary.verdict == "nonconformant" or bool(summary.counts["xfail"])
    for number, name in enumerate(NAMES):
        own = next((rung for rung in LADDER if rung.level == number), None)
        why = beyond.because if beyond and beyond.level == number else ""
        if summary.environment_at_fault:
            yield Step(f"{number} {name}", "open", "not known")
        elif number <= reached:
            yield Step(f"{number} {name}", "reached", _share(summary, own))
        elif why and failing:
            yield Step(f"{number} {name}", "failed", "fails", why)
        else:
            yield Step(f"{number} {name}", "open", "not reached", why)


def _share(summary: Summary, rung: Rung | None) -> str:
    """Say how much of a level a port offers and how much of that was run, where not all."""
    if rung is None:
        return "yes"
    part = ["part"] if summary.partial else []
    offered = sum(component in summary.offers for component in rung.whole)
    if not summary.offers or offered == len(rung.whole):
        return "part" if part else "yes"
    return ", ".join([f"{offered} of {len(rung.whole)}", *part])


def _time(text: str) -> str:
    """Write a time of a header without its zone; to the second, since a port is run often."""
    return one_line(text[:19].replace("T", " "), 19)


def _by_merit(entry: Entry) -> tuple[int, int, int, tuple[int, float], str]:
    """Order rows: conformant ones first, the highest level, the most offered, the best ratio."""
    summary = entry.summary
    level = -1 if summary.level is None else summary.level
    place = _VERDICTS.index(summary.verdict)
    return (place, -level, -len(summary.offers), severity(summary.worst_ratio), entry.slug)


def _index(entries: Sequence[Entry]) -> str:
    style, script = assemble(["site"], ".css"), assemble(["site"], ".js")
    suites = {entry.suite: None for entry in entries}
    goldens = {entry.goldens: None for entry in entries}
    return (
        template_environment()
        .get_template("site.html")
        .render(
            entries=entries,
            levels=[f"{number} {name}" for number, name in enumerate(NAMES)],
            ports=len({(entry.summary.port, entry.summary.port_version) for entry in entries}),
            suites=list(suites),
            goldens=list(goldens),
            style=style,
            script=script,
            style_digest=digest(style),
            script_digest=digest(script),
        )
    )
