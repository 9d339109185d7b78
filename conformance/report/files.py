"""The reports of a run's folder: written when it ends, and again by `report`."""

from __future__ import annotations

from pathlib import Path

from conformance.report.badge import badge_svg
from conformance.report.html import Page, write_html
from conformance.report.junit import write_junit
from conformance.report.markdown import markdown
from conformance.run_folder import write_whole

REPORTS = ("index.html", "junit.xml", "summary.md", "badge.svg")


def write_reports(out: Path) -> None:
    """Write the page, the JUnit file, the Markdown summary and the badge of a run, each whole.

    Args:
        out: The folder with `results.jsonl` and, once the run has ended, `summary.json`.

    Raises:
        UsageError: `out` holds no results.jsonl.
        OSError: One of them cannot be written; what was there of it stays.
    """
    page = Page(out)
    write_html(page)
    run = page.run
    write_junit(run)
    write_whole(out / "summary.md", [markdown(run)])
    write_whole(out / "badge.svg", [badge_svg(run.summary)])
