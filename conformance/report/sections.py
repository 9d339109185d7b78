"""What a part of the report page is: told every record of a run once, then asked for its view."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from conformance.report.run import Run

View = dict[str, Any]
"""What a section's template reads; of its keys `data` is for the section's script, `heading` stands
in the place of its title."""


class Section(ABC):
    """One part of the page, from a file of its own; `html.SECTIONS` says in which order they come.

    The page wraps what the template makes in `<section id=NAME>` and puts `<h2>TITLE</h2>` above
    it. Beside the template lie NAME.js (one function called at once, which reads its data by
    `sd1.data("NAME")`) and NAME.css, where the section needs them, and NAME-*.js before NAME.js;
    those of a section that is left out stay out. What scripts share is described at the top of
    templates/base.js.

    Attributes:
        name: The section's id in the page, and the name of its files.
        title: Its heading, also in the page's list of contents; empty for none.
        template: Its file in templates/.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    template: ClassVar[str]

    def add(self, record: dict[str, Any]) -> None:  # noqa: B027 - most sections need no record
        """Take note of one record of results.jsonl; those that nobody can read are not told.

        Args:
            record: A header, case, control line or footer, in the order of the file: as a port and
                a file left it, so nothing in it can be relied on. A run can hold 10,000 cases of
                700 probes: keep only what the view shows.
        """

    @abstractmethod
    def view(self, run: Run) -> View | None:
        """Return what the template reads, beside `run`, `summary` and the filters of html.py.

        Args:
            run: The run; every record was told by now.

        Returns:
            The template's names; None where there is nothing to show.
        """
