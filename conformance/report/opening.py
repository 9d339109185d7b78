"""The first thing seen: one sentence that anyone can read, and the badge."""

from __future__ import annotations

from typing import ClassVar

from markupsafe import Markup

from conformance.report.badge import badge_svg
from conformance.report.gates import gates, regression
from conformance.report.run import Run
from conformance.report.sections import Section, View
from conformance.report.words import headline, sentence


class Opening(Section):
    """The verdict in one sentence."""

    name: ClassVar[str] = "opening"
    template: ClassVar[str] = "opening.html"

    def view(self, run: Run) -> View:
        """Put the verdict into words."""
        return {
            "headline": headline(run.summary),
            "sentence": sentence(run.summary),
            "regression": regression(gates(run.record)),
            "badge": Markup(badge_svg(run.summary)),  # noqa: S704 - escaped where it is drawn
        }
