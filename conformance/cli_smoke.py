"""`sd1-conformance smoke PORT`: is the harness broken, or the mathematics?"""

from __future__ import annotations

import argparse
from typing import Any

from conformance.cli_common import add_limits, command, limits_of
from conformance.port import close, resolve
from conformance.smoke import conclusion, smoke


def add_command(commands: Any) -> None:
    """Declare the command."""
    parser = command(commands, "smoke", _smoke, "check a port's harness before its mathematics")
    parser.add_argument("port", metavar="PORT", help="as for run")
    add_limits(parser)


def _smoke(arguments: argparse.Namespace) -> int:
    port = resolve(arguments.port, limits_of(arguments))
    checks = []
    try:
        for check in smoke(port):
            print(f"{check.verdict:6s} {check.name:24s} {check.message}", flush=True)
            checks.append(check)
    finally:
        close(port)
    text, code = conclusion(checks, arguments.port)
    print(text)
    return int(code)
