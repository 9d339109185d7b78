"""The command `mutants`: proof that the suite sees the bugs of the catalogue."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from conformance.cli_common import command, given, oracle_module
from conformance.errors import ExitCode, UsageError
from conformance.fingerprint import write_library
from conformance.known_bugs import write_catalogue
from conformance.report.text import counted
from conformance.results import DEFAULT_OUT
from conformance.run_folder import plain

PAGE = Path("docs") / "mutants.md"


def add_commands(commands: Any) -> None:
    """Declare `mutants`."""
    mutants = command(
        commands, "mutants", _mutants, "hunt deliberately wrong ports: every one must be caught"
    )
    mutants.add_argument("ids", nargs="*", metavar="ID", help="ids or globs; default all")
    mutants.add_argument("-n", "--jobs", type=_positive, help="processes; default one per core")
    mutants.add_argument(
        "--out",
        type=given("--out", "a folder", Path),
        default=DEFAULT_OUT,
        help="folder of mutants.json",
    )
    mutants.add_argument(
        "--no-hints",
        action="store_true",
        help="kill and localise only: leave out how well hints name them, a fifth of the time",
    )
    mutants.add_argument(
        "--update",
        action="store_true",
        help="write anew the fingerprints by which hints are given, the catalogue that reports "
        "show and docs/mutants.md",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        message = f"{text!r} is no number of processes, 1 or more"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _mutants(arguments: argparse.Namespace) -> int:
    gate = oracle_module("conformance.mutants.gate")
    jobs = arguments.jobs or os.cpu_count() or 1
    chosen = gate.find_mutants(arguments.ids)
    if arguments.update and (arguments.ids or arguments.no_hints):
        all_of = "all mutants: name none" if arguments.ids else "hints: leave out --no-hints"
        message = f"--update needs {all_of}"
        raise UsageError(message)
    hints = not arguments.no_hints
    path = arguments.out / "mutants.json"
    _write(path, "")  # a folder that cannot be written is told before minutes have passed
    again = sum(not (m.null or m.unstable) for m in chosen) if hints else 0
    seen: set[str] = set()
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(chosen) + again, disable=quiet, unit="run") as bar:

        def report(mutant_id: str, row: dict[str, Any]) -> None:
            bar.update()
            text = _line(mutant_id, row, again=mutant_id in seen)
            seen.add(mutant_id)
            if quiet:
                print(text, flush=True)
            else:
                bar.write(text)

        summary, known = gate.run_gate(arguments.ids, jobs, report, hints=hints)
    _write(path, json.dumps(plain(summary), indent=1) + "\n")
    if arguments.update:
        write_library(known)
        record = importlib.import_module("conformance.mutants.record").record
        write_catalogue(*record(summary))
        page = importlib.import_module("conformance.mutants.page").page(summary)
        PAGE.write_text(page, encoding="utf-8")
    print("\n".join(_verdict(summary)))
    print(f"  report {path}")
    return int(ExitCode.CONFORMANT if gate.passed(summary) else ExitCode.NONCONFORMANT)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}; give another --out"
        raise UsageError(message) from error


def _line(mutant_id: str, row: dict[str, Any], *, again: bool) -> str:
    if not row:
        return f"{mutant_id:36s} broke"
    if again:
        confirmed = "confirmed" if row["confirmed"] else "not confirmed"
        return f"{mutant_id:36s} hint {row['hint_rank'] or '-'}, {confirmed}"
    first = row["first_divergence"]
    where = f"at {first['probe']}" if first else ""
    verdict = "killed" if row["killed_by"] else "survived"
    return f"{mutant_id:36s} {verdict} {float(row['ratio']):10.3g} {where}"


def _verdict(summary: dict[str, Any]) -> list[str]:
    """Return the gate's verdict in a few lines."""
    total, nulls = summary["total"], summary["nulls"]
    rows = [row for row in summary["mutants"] if not row.get("heavy")]  # those have no noise
    wrong = [row for row in rows if row["expected_probe"] or row["killed_by"]]
    smallest = sorted(wrong, key=lambda row: row["ratio"])[:10]
    honest = [row for row in rows if row not in wrong]
    largest = sorted(honest, key=lambda row: -row["ratio"])[:10]
    mutants, null = counted(total, "mutant"), counted(nulls["total"], "null mutant")
    survivors = nulls["total"] - len(nulls["killed"])
    hinted = (
        f"true cause among 3 hints {summary['hint_top3']}, confirmed {summary['confirmed']}"
        if summary["hint_top3"] is not None
        else "hints not scored"
    )
    counts = (
        f"{summary['killed']} of {mutants} killed, {summary['localised']} localised, {hinted}; "
        f"{survivors} of {null} survive; {len(summary['not_run'])} not run"
    )
    lines = [
        counts,
        *_listed("smallest ratios:", smallest, ".3g"),
        *_listed("largest honest: ", largest, ".2f"),
    ]
    lines += [f"  survivor: {name}" for name in summary["survivors"]]
    lines += [f"  null mutant killed: {name}" for name in nulls["killed"]]
    lines += [f"  broke: {name}: {text}" for name, text in summary["errors"].items()]
    return lines


def _listed(what: str, rows: list[dict[str, Any]], form: str) -> list[str]:
    """Return a line of mutants with their ratios, where there are any."""
    texts = [f"{row['id']} {row['ratio']:{form}}" for row in rows]
    return [f"  {what} {', '.join(texts)}"] if texts else []
