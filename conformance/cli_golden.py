"""Commands that write or check goldens and trace packs."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from conformance.case import Case, all_cases, find_case
from conformance.cli_common import (
    Listed,
    add_selection,
    chosen_cases,
    command,
    given,
    oracle_module,
    selected,
    split,
)
from conformance.errors import ExitCode, UsageError, unknown_name
from conformance.golden import SPLICE
from conformance.golden_files import load_golden
from conformance.recorded import arithmetics
from conformance.recording import writer
from conformance.recording.lint import lint
from conformance.report.text import counted
from conformance.run_folder import require_creatable, require_room
from conformance.tolerance import EVERY_ARITHMETIC
from conformance.traces import pack_path, write_pack


def add_commands(commands: Any) -> None:
    """Declare `golden` and `repro`."""
    golden = command(commands, "golden", None, "record and check goldens")
    golden_commands = golden.add_subparsers(required=True, metavar="COMMAND")
    record = command(golden_commands, "record", _golden_record, "record goldens from the oracle")
    add_selection(record)
    record.add_argument("--spec", action="store_true", help="golden/spec/ instead of goldens")
    record.add_argument(
        "--dtype",
        action=Listed,
        metavar="D,..",
        help="enter the noise of these arithmetics into goldens that exist; all else stays",
    )
    record.add_argument(
        "--resume",
        action="store_true",
        help="leave out what is recorded already, of this commit and by this oracle",
    )
    again = command(golden_commands, "verify", _golden_verify, "derive goldens again and compare")
    add_selection(again)
    again.add_argument(
        "--dtype",
        action=Listed,
        metavar="D,..",
        help="only the noise of these, and of float64; the mutants claimed are not hunted",
    )
    trace = command(
        golden_commands, "trace", _golden_trace, "write trace packs: the oracle's values, whole"
    )
    trace.add_argument("cases", nargs="+", metavar="CASE", help="case ids, or globs of them")
    trace.add_argument(
        "--out", type=given("--out", "a folder", Path), required=True, help="folder of the packs"
    )
    repro = command(commands, "repro", _repro, "write one layer's weights, inputs and output")
    repro.add_argument("case", metavar="CASE", help="component/variant/scenario")
    repro.add_argument("probe", nargs="?", metavar="PROBE", help="default: the whole network")
    repro.add_argument(
        "--out", type=given("--out", "a folder", Path), required=True, help="folder to write"
    )
    checks = command(golden_commands, "lint", _golden_lint, "look for goldens that prove nothing")
    checks.add_argument("--full-size", action="store_true", help="look for dead weights in sd1 too")
    honest = command(
        golden_commands, "honest", _golden_honest, "measure honest evaluations against the limit"
    )
    add_selection(honest)


def _by_variant(cases: list[Case]) -> list[list[Case]]:
    return [list(g) for _, g in groupby(cases, key=lambda c: (c.component, c.variant.name))]


def _say(text: str) -> None:
    print(text, flush=True)


def _golden_record(arguments: argparse.Namespace) -> int:
    batch = oracle_module("conformance.recording.batch")
    if arguments.spec:
        texts = oracle_module("conformance.recording.discover").derive_spec()
        for name, changed in writer.write_spec(texts).items():
            print(f"{name}: {'written' if changed else 'as it was'}")
        return 0
    added = _arithmetics(arguments.dtype)
    cases = [case for case in selected(arguments) if not case.refused]
    if added:
        cases = [case for case in cases if not case.exact and set(added) & set(arithmetics(case))]
        make = partial(oracle_module("conformance.recording.added_noise").with_noise, wanted=added)
    else:
        make = oracle_module("conformance.recording.record").record_case
    if arguments.resume:
        left = [case for case in cases if not batch.is_recorded(case, added)]
        print(f"{len(cases) - len(left)} of {counted(len(cases), 'golden')} recorded already")
        cases = left
    batch.record_all(cases, make, _say)
    return 0


def _arithmetics(text: str | None) -> list[str]:
    """Return the arithmetics that `--dtype` names, by globs; none where it is not given."""
    names = split(text) or []
    for name in names:
        if not any(fnmatchcase(known, name) for known in EVERY_ARITHMETIC):
            raise unknown_name("dtype", name, list(EVERY_ARITHMETIC))
    return [a for a in EVERY_ARITHMETIC if any(fnmatchcase(a, name) for name in names)]


def _golden_verify(arguments: argparse.Namespace) -> int:
    record = oracle_module("conformance.recording.record")
    verify = oracle_module("conformance.recording.verify")
    wanted = _arithmetics(arguments.dtype)
    only = {"float64", *wanted} if wanted else EVERY_ARITHMETIC
    wrong = 0
    for case in selected(arguments):
        if case.refused:
            continue
        old = load_golden(case)
        golden = record.record_case(case, only, claim=not wanted)
        if wanted:
            old = replace(old.narrowed(only), kills=golden.kills)
        problem = verify.disagreement(old, golden)
        wrong += problem is not None
        print(f"{case.id}: {problem or 'agrees with the oracle'}", flush=True)
    return int(ExitCode.BROKEN if wrong else ExitCode.CONFORMANT)


def _golden_trace(arguments: argparse.Namespace) -> int:
    traces = oracle_module("conformance.recording.live").LiveTraces()
    cases = chosen_cases(arguments.cases)
    if (arguments.out / "manifest.json").exists():
        message = f"{arguments.out} holds goldens, which packs would replace; give another --out"
        raise UsageError(message)
    families = {case.id.partition("/")[0] for case in all_cases()}
    require_room(arguments.out, families, "no `golden trace`")
    require_creatable(arguments.out, "trace packs")
    for case in cases:
        golden = load_golden(case)
        golden.in_mode(SPLICE)  # refuses what has no such mode
        path = pack_path(arguments.out, case)
        write_pack(path, case, traces(case, golden))
        print(f"{path}: {len(golden.probes)} probes, {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _repro(arguments: argparse.Namespace) -> int:
    write, case = oracle_module("conformance.repro").write_repro, find_case(arguments.case)
    require_room(arguments.out, ["repro.py"], "no `repro`")
    require_creatable(arguments.out, "the layer")
    for path in write(case, arguments.probe, arguments.out):
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(f"fill in `layer` and run: cd {arguments.out} && python repro.py")
    return 0


def _golden_lint(arguments: argparse.Namespace) -> int:
    problems = lint(_say)
    try:
        liveness = importlib.import_module("conformance.recording.liveness")
    except ImportError as error:
        print(f"dead weights were not looked for: {error}")
    else:
        for group in _by_variant(all_cases()):
            variant = group[0].variant
            networks = variant.regime == "unit" and group[0].is_network
            if networks and (arguments.full_size or not group[0].full_size):
                problems += liveness.dead_parameters(group, _say)
    for problem in problems:
        print(f"lint: {problem}")
    print(counted(len(problems), "problem"))
    return int(ExitCode.BROKEN if problems else ExitCode.CONFORMANT)


def _golden_honest(arguments: argparse.Namespace) -> int:
    fairness = oracle_module("conformance.recording.fairness")
    return 1 if fairness.measure_all(selected(arguments), _say) else 0
