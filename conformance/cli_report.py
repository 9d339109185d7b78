"""`sd1-conformance report`: the reports of a run made anew, and one site of several runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from conformance.cli_common import command
from conformance.errors import UsageError
from conformance.report.files import write_reports
from conformance.report.site import write_site


def add_command(commands: Any) -> None:
    """Declare the command."""
    text = "write the reports of a run anew, or one site of several runs"
    report = command(commands, "report", _report, text)
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a run")
    report.add_argument("--out", type=Path, metavar="SITE", help="folder of the site")


def _report(arguments: argparse.Namespace) -> int:
    folders, out = arguments.folders, arguments.out
    if out is None and len(folders) > 1:
        raise UsageError("several runs make a site: say where, with --out SITE")
    try:
        if out is None:
            write_reports(folders[0])
        else:
            write_site(folders, out)
    except OSError as error:
        message = f"cannot write to {out or folders[0]}: {error.strerror}"
        raise UsageError(message) from error
    print((out or folders[0]) / "index.html")
    return 0
