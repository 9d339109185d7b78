"""`sd1-conformance merge`: the shards of a run as one run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from conformance import cli_diff
from conformance.cli_common import command
from conformance.merge import merged
from conformance.report.terminal import verdict_lines, wants_colour
from conformance.summary import exit_code


def add_command(commands: Any) -> None:
    """Declare the command."""
    own = command(commands, "merge", _merge, "put the shards of a run together")
    own.add_argument("shards", nargs="+", type=Path, metavar="DIR", help="folder of one shard")
    own.add_argument("--out", type=Path, required=True, help="folder of the whole run's report")
    cli_diff.add_baseline(own)


def _merge(arguments: argparse.Namespace) -> int:
    results = merged(arguments.shards, arguments.out, arguments.baseline)
    summary = results.close()
    print("\n".join(verdict_lines(summary, results.lines, colour=wants_colour(sys.stdout))))
    if summary["baseline"] is not None:
        print("\n".join(cli_diff.diff_lines(summary["baseline"])))
    print(f"  report {arguments.out / 'index.html'}")
    return int(exit_code(summary))
