"""`sd1-conformance merge`: the shards of a run as one run."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from conformance import cli_diff
from conformance.cli_common import command, given
from conformance.merge import merged
from conformance.summary import exit_code


def add_command(commands: Any) -> None:
    """Declare the command."""
    own = command(commands, "merge", _merge, "put the shards of a run together")
    shard = given("DIR", "the folder of a shard", Path)
    own.add_argument("shards", nargs="+", type=shard, metavar="DIR", help="folder of one shard")
    folder = given("--out", "a folder", Path)
    own.add_argument("--out", type=folder, required=True, help="folder of the whole run's report")
    cli_diff.add_baseline(own)


def _merge(arguments: argparse.Namespace) -> int:
    results = merged(arguments.shards, arguments.out, arguments.baseline)
    summary = results.close(tell=partial(cli_diff.print_verdict, results.lines))
    print(f"  report {arguments.out / 'index.html'}")
    return int(exit_code(summary))
