"""The report that people read: one self-contained page, put together from its sections."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from conformance.report.architecture import Architecture
from conformance.report.cases import Cases
from conformance.report.depth import Depth
from conformance.report.divergence import FirstDivergence
from conformance.report.faults import Faults, linked
from conformance.report.headroom import Headroom
from conformance.report.heat import Heat
from conformance.report.known import Known
from conformance.report.memory import Memory
from conformance.report.opening import Opening
from conformance.report.pictures import Pictures
from conformance.report.run import Run, read_run
from conformance.report.sections import Section, View
from conformance.report.tensor import WrongTensor
from conformance.report.text import number_text, shorten, size_text
from conformance.report.trajectories import Trajectories
from conformance.report.verdict import Verdict
from conformance.report.words import headline, measured
from conformance.run_folder import plain, write_whole

SECTIONS: tuple[type[Section], ...] = (
    Opening,
    Faults,
    Verdict,
    FirstDivergence,
    Depth,
    WrongTensor,
    Heat,
    Headroom,
    Memory,
    Architecture,
    Trajectories,
    Pictures,
    Known,
    Cases,
)
"""The parts of the page, in their order; each gives a fresh section to every page."""

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Part:
    """A section that has something to show, as the page takes it."""

    name: str
    title: str
    heading: str
    html: Markup
    data: Markup | None


class Page:
    """The page of a run, whose folder is read once."""

    def __init__(self, out: Path) -> None:
        """Read the folder.

        Args:
            out: The folder with `results.jsonl` and, once the run has ended, `summary.json`.

        Raises:
            UsageError: `out` holds no results.jsonl.
        """
        self._sections = [section() for section in SECTIONS]
        self.run = read_run(out, self._sections)

    def render(self, home: str = "") -> str:
        """Return the page.

        Args:
            home: Address of the table of ports, where the page is part of a site.
        """
        return _page(self.run, self._sections, home)


def write_html(page: Page) -> Path:
    """Write `index.html` into the run's folder.

    Args:
        page: The page.

    Returns:
        The path of the file written: UTF-8, its size bounded however large the run is.
    """
    path = page.run.out / "index.html"
    write_whole(path, [page.render()])
    return path


def template_environment() -> Environment:
    """Return the templates of this package, with the filters that they may use."""
    environment = Environment(
        loader=PackageLoader("conformance.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["number"] = number_text
    environment.filters["shorten"] = shorten
    environment.filters["bytes"] = size_text
    environment.filters["breakable"] = breakable
    environment.filters["linked"] = linked
    environment.globals["measured"] = measured
    return environment


def assemble(names: Iterable[str], suffix: str) -> Markup:
    """Return the style sheets (`.css`) or scripts (`.js`) of sections, one after the other.

    Args:
        names: Of the sections shown; the base (style.css, base.js) comes first by itself.
        suffix: Which of the two.

    Returns:
        The text, to be put into its element as it is: it comes from this package alone.
    """
    base = {".css": "style.css", ".js": "base.js"}[suffix]
    own = (path for name in names for path in sorted(_TEMPLATES.glob(f"{name}*{suffix}")))
    texts = [path.read_text("utf-8") for path in (_TEMPLATES / base, *own)]
    return Markup("\n".join(texts))  # noqa: S704


def digest(text: str) -> str:
    """Return what a content security policy calls an inline text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_block(value: Any) -> Markup:
    """Write a value as JSON that no text in it can break out of, for a data block of the page.

    Args:
        value: Of lists, dicts, texts and numbers; those that JSON lacks become texts ("nan").
    """
    text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


def _page(run: Run, sections: Iterable[Section], home: str) -> str:
    environment = template_environment()
    environment.globals |= {
        "run": run,
        "summary": run.summary,
    }
    viewed = ((section, section.view(run)) for section in sections)
    parts = [_part(environment, section, view) for section, view in viewed if view is not None]
    names = [part.name for part in parts]
    style, script = assemble(names, ".css"), assemble(names, ".js")
    return environment.get_template("page.html").render(
        headline=headline(run.summary),
        home=home,
        parts=parts,
        style=style,
        script=script,
        style_digest=digest(style),
        script_digest=digest(script),
        page_data=data_block({"limit": run.summary.limit, "port": run.summary.port}),
    )


def _part(environment: Environment, section: Section, view: View) -> Part:
    data = data_block(view["data"]) if "data" in view else None
    html = environment.get_template(section.template).render(view)
    heading = view.get("heading", section.title)
    return Part(section.name, section.title, heading, Markup(html), data)  # noqa: S704


def breakable(name: str) -> Markup:
    """Escape a dotted name or case id, and let a browser break its line between the parts."""
    return Markup(re.sub(r"(?=\[)|(?<=[./:])(?=\D)", "<wbr>", str(escape(name))))  # noqa: S704
