"""Causes, not probes: what all the failures of a run come down to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup, escape

from conformance.known_bugs import KnownBug, known_bugs
from conformance.report.causes import causes_sentence
from conformance.report.records import Fault
from conformance.report.run import Run
from conformance.report.sections import Section, View

OPENLY = 8
"""So many causes are shown openly; the rest is folded."""

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")


@dataclass(frozen=True)
class Cause:
    """One cause, with what the catalogue says of the mutant that it is, or looks like."""

    fault: Fault
    bug: KnownBug | None
    anchored: bool


class Faults(Section):
    """The causes, the surest first."""

    name: ClassVar[str] = "causes"
    title: ClassVar[str] = "Causes"
    template: ClassVar[str] = "faults.html"

    def view(self, run: Run) -> View | None:
        """Look each of them up in the catalogue."""
        if not run.summary.faults:
            return None
        faults = sorted(run.summary.faults, key=lambda f: (-f.confirmed, not f.mutant, -f.count))
        causes: list[Cause] = []
        for fault in faults:
            first = fault.mutant not in {cause.fault.mutant for cause in causes}
            causes.append(Cause(fault, known_bugs().get(fault.mutant), first))
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
