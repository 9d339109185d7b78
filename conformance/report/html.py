"""The report that people read: one self-contained page without scripts or network."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from conformance.report.plots import case_plot, depth_plot
from conformance.report.records import VERDICTS, Case
from conformance.report.run import Run, read_run
from conformance.report.text import case_name, number_text, severity, shorten
from conformance.report.words import (
    depth_text,
    headline,
    level_text,
    measured,
    rerun_command,
    sentence,
)

_OPEN_UP_TO = 200
"""Passing cases are listed openly up to this many, and folded away beyond."""

_CASE_TEXT = 3_000_000
"""Characters that the texts of all case rows may take together, about."""


def write_html(out: Path) -> Path:
    """Write `index.html` from a run's folder.

    Args:
        out: The folder with `results.jsonl` and, once the run has ended, `summary.json`.

    Returns:
        The path of the file written: UTF-8, under 5 MB for 10,000 cases.

    Raises:
        UsageError: `out` holds no results.jsonl.
    """
    path = out / "index.html"
    path.write_text(_render(read_run(out)), encoding="utf-8")
    return path


def _render(run: Run) -> str:
    environment = Environment(
        loader=PackageLoader("conformance.report", package_path=""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["number"] = number_text
    environment.filters["shorten"] = shorten
    environment.filters["breakable"] = _breakable
    template = environment.get_template("template.html")
    style = "".join(template.blocks["style"](template.new_context()))
    summary = run.summary
    notable = [case for case in run.cases if case.verdict != "pass"]
    notable.sort(key=_by_urgency)
    detailed = sorted(run.detailed, key=_by_urgency)
    worst = run.worst
    text_length = max(60, min(300, _CASE_TEXT // (3 * max(1, len(run.cases)))))
    return template.render(
        run=run,
        summary=summary,
        headline=headline(summary),
        sentence=sentence(summary),
        level=level_text(summary),
        seen=depth_text(summary),
        measured=measured,
        depth=worst and depth_plot(worst, run.worst_probes, summary.limit, worst.divergence),
        overview=case_plot(run.cases, summary.limit) if run.cases else None,
        notable=notable,
        passing=[case for case in run.cases if case.verdict == "pass"],
        detailed=detailed,
        detail_links={case.case: f"case-{i}" for i, case in enumerate(detailed, start=1)},
        undetailed=sum(case.verdict in ("fail", "error") for case in notable) - len(detailed),
        rerun=lambda case_id: rerun_command(summary.port_spec, case_id, summary.options),
        case_name=case_name,
        open_up_to=_OPEN_UP_TO,
        text_length=text_length,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def _breakable(name: str) -> Markup:
    """Escape a dotted name or case id, and let a browser break its line between the parts."""
    return Markup(re.sub(r"(?=\[)|(?<=[./])(?=\D)", "<wbr>", str(escape(name))))  # noqa: S704


def _by_urgency(case: Case) -> tuple[int, int, float]:
    """Order cases: failures first, the worst ratio first among them."""
    known, ratio = severity(case.ratio)
    return (VERDICTS.index(case.verdict), -known, -ratio)
