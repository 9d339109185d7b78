"""The reports of a run's folder: written when it ends, and again by `report`."""

from __future__ import annotations

from pathlib import Path

from conformance.report.badge import badge_svg
from conformance.report.html import write_html
from conformance.report.junit import write_junit
from conformance.report.markdown import markdown
from conformance.report.run import read_run

REPORTS = ("index.html", "junit.xml", "summary.md", "badge.svg")


def write_reports(out: Path) -> None:
    """Write the page, the JUnit file, the Markdown summary and the badge of a run.

    Args:
        out: The folder with `results.jsonl` and, once the run has ended, `summary.json`.

    Raises:
        UsageError: `out` holds no results.jsonl.
    """
    write_html(out)
    run = read_run(out)
    write_junit(run)
    (out / "summary.md").write_text(markdown(run), encoding="utf-8")
    (out / "badge.svg").write_text(badge_svg(run.summary), encoding="ascii")
