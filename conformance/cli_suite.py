"""`sd1-conformance bench suite`: what the suite costs, as a table with the goals beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conformance.bench import record, suite
from conformance.bench.record import Row
from conformance.bench.table import aligned, between, figure
from conformance.cli_common import command, given
from conformance.errors import ExitCode, UsageError, unknown_name
from conformance.progress import Progress

_COLUMNS = ("", "median", "middle half", "CPU seconds", "over bare", "by CPU", "goal", "")
_WORDS = {None: "", True: "met", False: "MISSED"}

_OF_OTHERS = ("device", "dtype", "case", "compile", "quick", "repeat")
"""Options of `bench` that mean nothing here."""


def add_command(commands: Any) -> None:
    """Declare the command; options that `bench` has too may stand before it."""
    own = command(commands, "suite", _suite, "what starting, watching and judging cost")
    own.add_argument(
        "--variant",
        choices=list(suite.PLANS),
        default=argparse.SUPPRESS,
        help="default sd1, for which the goals are meant; tiny takes a minute",
    )
    own.add_argument(
        "--out",
        type=given("--out", "a file", Path),
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="write the figures as JSON",
    )


def refuse_options(arguments: argparse.Namespace, names: Sequence[str], own: str) -> None:
    """Refuse options of `bench` that stand before one of its commands and mean nothing to it.

    Raises:
        UsageError: There is one.
    """
    foreign = next((n for n in names if getattr(arguments, n, None) is not None), None)
    if foreign is not None:
        message = f"--{foreign} is an option of `bench` alone, not of `bench {own}`"
        raise UsageError(message)


def _suite(arguments: argparse.Namespace) -> int:
    refuse_options(arguments, _OF_OTHERS, "suite")
    out = getattr(arguments, "out", None)
    if out is not None:
        record.require_writable(out)
    variant = getattr(arguments, "variant", None) or "sd1"
    if variant not in suite.PLANS:
        raise unknown_name("variant", variant, list(suite.PLANS))
    rows: list[Row] = []
    with Progress(suite.steps(suite.PLANS[variant]), unit="step") as bar:
        for title, step in bar:
            bar.set_description(title)
            rows += step()
    print("\n".join(table(rows)))
    if not suite.can_collect():
        print("collection is not measured: it needs pytest and a checkout of the repository")
    if out is not None:
        record.write(out, "suite", rows, {"variant": variant})
    return int(ExitCode.CONFORMANT)


def table(rows: Sequence[Row]) -> list[str]:
    """Write rows; docs/speed.md explains the columns.

    Args:
        rows: Of `suite`.

    Returns:
        Lines, the columns aligned.
    """
    return aligned([_COLUMNS, *map(_line, rows)])


def _line(row: Row) -> tuple[str, ...]:
    cpu, goal = row.facts.get("cpu seconds"), row.facts.get("goal")
    compared = row.reference is not None
    return (
        row.name,
        figure(row.value, row.unit),
        between(*row.spread, row.unit),
        "" if cpu is None else figure(cpu, "s"),
        figure(float(np.median(row.ratios)), "ratio") if compared else "",
        figure(row.facts["cpu ratio"], "ratio") if compared else "",
        "" if goal is None else figure(goal, "ratio" if compared else row.unit),
        _WORDS[suite.met(row)],
    )
