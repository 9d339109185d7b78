"""The command line: `sd1-conformance`, the same as `python -m conformance`."""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
from collections.abc import Collection
from contextlib import suppress

from conformance import __version__
from conformance.cli_parser import Parser
from conformance.errors import ExitCode, SuiteError, UsageError
from conformance.shadowing import require_own_packages

COMMANDS = {
    "run": ("cli_run:add_command", "judge a port"),
    "list": ("cli_list:add_commands", "print case ids"),
    "show": ("cli_list:add_commands", "print what a golden holds"),
    "ports": ("cli_list:add_commands", "print the ports that can be named"),
    "doctor": (
        "cli_doctor:add_command",
        "say what is installed, what can be judged with it, and what adds the rest",
    ),
    "audit": ("cli_audit:add_command", "say where an arithmetic loses precision"),
    "smoke": ("cli_smoke:add_command", "check a port's harness before its mathematics"),
    "weights": ("cli_weights:add_commands", "files of weights: write, inspect, convert"),
    "golden": ("cli_golden:add_commands", "record and check goldens"),
    "repro": ("cli_golden:add_commands", "write one layer's weights, inputs and output"),
    "mutants": (
        "cli_mutants:add_commands",
        "hunt deliberately wrong ports: every one must be caught",
    ),
    "budget": ("cli_budget:add_command", "say what a port holds, and what fits a card"),
    "bench": ("cli_bench:add_commands", "measure speed and memory beside the reference"),
    "report": (
        "cli_report:add_command",
        "write the reports of a run anew, or one site of several runs",
    ),
    "merge": ("cli_merge:add_command", "put the shards of a run together"),
    "diff": ("cli_diff:add_command", "say what got worse or better between two runs or benchmarks"),
}
"""By command: what declares it, imported only when it is asked for, and its line of `--help`."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        0 conformant, 1 not conformant, 2 bad usage, 3 the port or the suite broke.
    """
    if argv is None:  # a process of its own: a crash in a port's native code names its line
        with suppress(OSError, ValueError, RuntimeError):
            faulthandler.enable(all_threads=False)
    try:
        require_own_packages()
        return _run(sys.argv[1:] if argv is None else argv)
    except SuiteError as error:
        print(f"sd1-conformance: {error}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.BROKEN)
    except KeyboardInterrupt:
        print("sd1-conformance: interrupted", file=sys.stderr)
        return int(ExitCode.BROKEN)


def _run(words: list[str]) -> int:
    """Parse and run, now that what is imported by name is known to be our own."""
    from sd1_weights.errors import CheckpointError

    arguments = _parser([word for word in words if word in COMMANDS][:1]).parse_args(words)
    try:
        return int(arguments.command(arguments))
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def _parser(asked: Collection[str] = tuple(COMMANDS)) -> Parser:
    """Make the parser, with the options of the commands that are asked for alone."""
    parser = Parser(
        prog="sd1-conformance",
        description="Says whether a port of Stable Diffusion v1 computes what SD v1 computes.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for target in dict.fromkeys(COMMANDS[name][0] for name in asked):
        module, _, function = target.partition(":")
        getattr(importlib.import_module(f"conformance.{module}"), function)(commands)
    for name, (_, text) in COMMANDS.items():
        if name not in commands.choices:
            commands.add_parser(name, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
