"""Causes, not probes: what all the failures of a run come down to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup, escape

from conformance.known_bugs import KnownBug, known_bugs
from conformance.report.causes import causes_sentence
from conformance.report.records import Fault
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.sources import Source, read_sources
from conformance.report.text import mapping, printable

OPENLY = 8
"""So many causes are shown openly; the rest is folded."""

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")


@dataclass(frozen=True)
class Cause:
    """One cause, with what the catalogue says of the mutant that it is, or looks like.

    Attributes:
        fault: The cause as the run found it.
        bug: The mutant's entry.
        anchored: Whether this is the row that links to the mutant lead to.
        source: The lines of sd1_impl that do it right, where the run left them.
    """

    fault: Fault
    bug: KnownBug | None
    anchored: bool
    source: Source | None


class Faults(Section):
    """The causes, those that explain most first."""

    name: ClassVar[str] = "causes"
    title: ClassVar[str] = "Causes"
    template: ClassVar[str] = "faults.html"

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Take the names of the probes of each fault from the footer."""
        faults = record.get("faults") if record.get("type") == "footer" else None
        for fault in map(mapping, faults if isinstance(faults, list) else []):
            names = fault.get("names")
            key = printable(fault.get("probes")), printable(fault.get("mutant"))
            self._names[key] = [*map(printable, names)] if isinstance(names, list) else []

    def view(self, run: Run) -> View | None:
        """Look each of them up in the catalogue."""
        if not run.summary.faults:
            return None
        sources = read_sources(run.out)
        causes: list[Cause] = []
        for fault in run.summary.faults:
            first = fault.mutant not in {cause.fault.mutant for cause in causes}
            names = self._names.get((fault.probes, fault.mutant), [])
            source = next((sources[name] for name in names if name in sources), None)
            causes.append(Cause(fault, known_bugs().get(fault.mutant), first, source))
        return {
            "heading": causes_sentence(run.summary),
            "shown": causes[:OPENLY],
            "folded": causes[OPENLY:],
        }


def named_bugs(text: str) -> list[KnownBug]:
    """Return the mutants of the catalogue that a text names, in its order."""
    names = dict.fromkeys(_WORD.findall(text))
    return [known_bugs()[name] for name in names if name in known_bugs()]


def linked(text: str) -> Markup:
    """Escape a text, and make links of the mutants that it names."""

    def link(found: re.Match[str]) -> str:
        name = found[0]  # of small letters, digits and hyphens
        return f'<a href="#mutant-{name}">{name}</a>' if name in known_bugs() else name

    return Markup(_WORD.sub(link, str(escape(text))))  # noqa: S704
