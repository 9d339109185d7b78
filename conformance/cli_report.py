"""`sd1-conformance report`: the reports of a run made anew, and one site of several runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from conformance.cli_common import command, given
from conformance.errors import UsageError
from conformance.report.files import write_reports
from conformance.report.run import doubt_of
from conformance.report.site import write_site
from conformance.report.whole import require_whole
from conformance.run_folder import writer_of


def add_command(commands: Any) -> None:
    """Declare the command."""
    text = "write the reports of a run anew, or one site of several runs"
    report = command(commands, "report", _report, text)
    folder = given("DIR", "the folder of a run", Path)
    report.add_argument("folders", nargs="+", type=folder, metavar="DIR", help="folder of a run")
    site = given("--out", "a folder", Path)
    report.add_argument("--out", type=site, metavar="SITE", help="folder of the site")


def _report(arguments: argparse.Namespace) -> int:
    folders, out = arguments.folders, arguments.out
    if out is None and len(folders) > 1:
        raise UsageError("several runs make a site: say where, with --out SITE")
    try:
        notes = [note for folder in folders if (note := _note(folder))]
        if out is None:
            write_reports(folders[0])
        else:
            write_site(folders, out)
    except OSError as error:
        message = f"cannot write to {out or folders[0]}: {error.strerror}"
        raise UsageError(message) from error
    print("\n".join([str((out or folders[0]) / "index.html"), *notes]))
    return 0


def _note(folder: Path) -> str:
    """Check a run's folder, and say what keeps its verdict from being known; empty if nothing."""
    if require_whole(folder):
        doubt = doubt_of(folder)
        return f"  note   {doubt}" if doubt else ""
    writer = writer_of(folder)
    return (
        f"  note   {writer} still writes to it: {folder} shows the cases so far" if writer else ""
    )
