"""`sd1-conformance doctor [PORT]`: what is here, what can be judged with it, what adds the rest.

What the command itself works with may be missing: it is imported after that has been looked at.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from conformance import __version__
from conformance.errors import ExitCode
from conformance.requirements import (
    CORE,
    MISSING,
    OUTSIDE,
    TESTS,
    Installed,
    adding,
    installed,
)

if TYPE_CHECKING:
    from conformance.doctor import Diagnosis, Judgement, Kept
    from conformance.doctor_port import Prospect

_HELP = "say what is installed, what can be judged with it, and what adds the rest"
_SHOWN = 5


def add_command(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser("doctor", help=_HELP, description=_HELP)
    parser.add_argument("port", nargs="?", metavar="PORT", help="as for run: what it offers, too")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    missing = [p for p in installed() if p.extra == CORE and p.state == MISSING]
    if missing:
        names = [package.name for package in missing]
        print(f"broken: {', '.join(names)} missing, without which nothing runs: {adding(names)}")
        return int(ExitCode.BROKEN)
    found: Diagnosis = importlib.import_module("conformance.doctor").diagnose()
    port = None if arguments.port is None else _prospect(arguments.port, found)
    if arguments.json:
        facts = {"suite": __version__, **asdict(found)}
        print(json.dumps(facts | {"port": asdict(port) if port else None}, indent=1))
    else:
        print("\n".join([*_lines(found), *(_port_lines(port) if port else []), *_end(found)]))
    return int(ExitCode.BROKEN if found.broken else ExitCode.CONFORMANT)


def _prospect(spec: str, found: Diagnosis) -> Prospect:
    """Ask a port what it offers, and say what of it can be judged here.

    Raises:
        UsageError: There is no such port.
        PortError: It does not say what it offers.
    """
    from conformance.doctor_port import prospect
    from conformance.port import close, greet, resolve

    port = resolve(spec)
    try:
        torch = any(p.name == "torch" and p.state != MISSING for p in found.packages)
        return prospect(greet(port), torch=torch)
    finally:
        close(port)


def _lines(found: Diagnosis) -> Iterator[str]:
    """Write what was found, a section after the other."""
    kind = "checkout" if found.checkout else "installed"
    yield f"sd1-conformance {__version__}, {kind} in {found.home}"
    yield from _section("installed", map(_package, [found.python, *found.packages]))
    yield from _section("devices", ((kind, text) for kind, text in found.devices.items()))
    yield from _section("goldens", [(found.goldens,)])
    yield from _section("cache", [(found.cache,), *map(_kept, found.kept)])
    yield from _section("environment", found.variables.items() or [("nothing is set",)])
    yield from _section("what can be judged here", map(_ability, found.abilities))
    yield from _commands(found.abilities)


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Write a title, and rows below it whose columns are aligned."""
    rows = [*rows]
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    yield f"\n{title}"
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=False)]
        yield f"  {'  '.join(cells)}".rstrip()


def _package(package: Installed) -> tuple[str, ...]:
    state = {MISSING: "missing", OUTSIDE: "outside"}.get(package.state, "")
    kind = "group" if package.extra == TESTS else "extra"
    extra = f"{kind} {package.extra}" if package.extra else ""
    told = ", ".join(text for text in (state, extra) if text)
    return package.name, package.version or "-", package.range or "any", told


def _kept(kept: Kept) -> tuple[str]:
    mib = 2**20
    most = f" of {kept.most / mib:,.0f}" if kept.most else ""
    return (f"{kept.name}: {kept.size / mib:,.0f}{most} MiB",)


def _ability(ability: Judgement) -> tuple[str, ...]:
    told = "; ".join(text for text in (", ".join(ability.lacks), ability.note) if text)
    return "yes" if ability.possible else "no", ability.kind, ability.name, told


def _commands(abilities: Iterable[Judgement]) -> Iterator[str]:
    """Write each command that adds something once, and what it adds; nothing where all is there."""
    from conformance.doctor import what_adds

    adds = what_adds(abilities)
    if adds:
        yield "\nwhat adds the rest"
    for text, added in adds.items():
        yield f"  {text}"
        yield f"      {'; '.join(f'{ability.kind} {ability.name}' for ability in added)}"


def _port_lines(port: Prospect) -> Iterator[str]:
    """Write what a port offers, and how far it can get."""
    levels = [
        (
            f"level {reach.level} {reach.name}",
            reach.because or ", ".join(reach.offered),
            f"(not {', '.join(reach.lacking)})" if reach.offered and reach.lacking else "",
        )
        for reach in port.reaches
    ]
    rows = [(name, text, "") for name, text in port.facts.items()]
    rows += [*levels, ("modes", port.modes, ""), ("stamps", ", ".join(port.stamps) or "none", "")]
    title = f"port {port.name} {port.version}: level {port.highest} can be reached"
    yield from _section(title, ((name, f"{text} {more}".rstrip()) for name, text, more in rows))


def _end(found: Diagnosis) -> Iterator[str]:
    """Write what is to be known, and whether the suite can be trusted."""
    yield ""
    yield from (f"note: {text}" for text in found.notes)
    yield from (f"broken: {text}" for text in found.broken[:_SHOWN])
    more = len(found.broken) - _SHOWN
    if more > 0:
        yield f"broken: and {more} more"
    if found.broken:
        yield "nothing that is judged here can be trusted: mend this first"
    else:
        yield "the core can judge: sd1-conformance run PORT"
