"""`sd1-conformance budget`: what a port holds, what fits a card, and the record of both."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.bench import record as bench
from conformance.case import COMPONENTS, Case, select_cases
from conformance.choice import chosen_names, no_device
from conformance.cli_common import Listed, command, given, split
from conformance.errors import ExitCode, UnsupportedError, UsageError
from conformance.execution import Execution
from conformance.memory.budgets import PATH, RECORD, Budgets, budgets, torch_version
from conformance.memory.cases import config_id, configurations, memory_cases
from conformance.memory.recording import record
from conformance.memory.sizes import mib, read_size
from conformance.memory.table import Line, bench_rows, lines_of, pictures, table
from conformance.port import BUILTIN, Hello, Port, greet, resolve
from conformance.progress import Progress
from conformance.requirements import adding

_RECORD = "record"


def add_command(commands: Any) -> None:
    """Declare the command."""
    budget = command(commands, "budget", _budget, "say what a port holds, and what fits a card")
    # What begins so is a value, which `read_size` refuses in words, and no option: `--max -1GiB`.
    budget._negative_number_matcher = re.compile(r"-\d")  # noqa: SLF001
    budget.add_argument(
        "words",
        nargs="*",
        metavar="[record] PORT",
        help="default sd1_impl; `record` takes down what the port holds, default all of ours",
    )
    words = "words in the case id with and, or, not"
    budget.add_argument("-k", metavar="EXPR", help=words)
    for option, what in (
        ("--component", "globs, comma-separated"),
        ("--variant", "globs, comma-separated; default all"),
        ("--dtype", "globs of arithmetics, comma-separated"),
        ("--backend", "globs of ways to compute, comma-separated"),
    ):
        budget.add_argument(option, action=Listed, help=what)
    budget.add_argument("--max", metavar="SIZE", help="say what fits a card of 4GiB, say")
    budget.add_argument(
        "--measure", action="store_true", help="run it too, and count what tensors hold"
    )
    budget.add_argument("--device", default="cpu", help="where it is run, default cpu")
    file = given("--out", "a file", Path)
    budget.add_argument("--out", type=file, metavar="FILE", help="write the figures as JSON")


def _budget(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        message = f"memory is predicted with torch ({adding(['torch'])})"
        raise UsageError(message)
    words = arguments.words
    if words[:1] == [_RECORD]:
        return _record(words[1:], arguments)
    if len(words) > 1:
        message = f"budget takes one port, not {len(words)}: {' '.join(words)}"
        raise UsageError(message)
    largest = None if arguments.max is None else read_size(arguments.max, "--max")
    if arguments.out is not None:
        bench.require_writable(arguments.out)
    name = words[0] if words else "sd1_impl"
    port = resolve(name)
    predictor = _predictor(port)
    pairs = _offered(greet(port), arguments)
    lines, declined = _lines(predictor, pairs, arguments)
    if not lines:
        reasons = "; ".join(dict.fromkeys(declined.values()))
        message = f"{name} offers none of these configurations: {reasons}"
        raise UsageError(message)
    print("\n".join(table(lines, largest)))
    for key, reason in declined.items():
        print(f"left out: {key}: {reason}")
    if largest is not None:
        print("\n".join(["", *pictures(lines, largest)]))
    if arguments.out is not None:
        bench.write(arguments.out, "budget", bench_rows(lines, name))
    return _verdict(lines, largest)


def _offered(hello: Hello, arguments: argparse.Namespace) -> list[tuple[Case, Execution]]:
    """Return the configurations that the options select and the port offers.

    Raises:
        UsageError: There is none, or the device is none of the port's.
    """
    if arguments.device not in hello.devices:
        raise no_device(arguments.device, hello)
    chosen = _chosen(arguments)
    pairs = [(case, how) for case, how in chosen if case.component in hello.components]
    if not pairs:
        offered = ", ".join(hello.components)
        message = f"{hello.name} offers none of the components that are selected: it says {offered}"
        raise UsageError(message)
    return pairs


def _verdict(lines: list[Line], largest: int | None) -> int:
    """Say what is wrong, and return the exit code."""
    wrong = [line for line in lines if line.wrong]
    for line in wrong:
        print(f"! {line.key}: {line.wrong}")
    total = len(lines)
    if not budgets().knows():
        print(f"torch {torch_version()} is not recorded: {RECORD}")
    if largest is not None:
        fitting = sum(line.needs <= largest for line in lines)
        print(f"{fitting} of {total} configurations fit in {mib(largest)}")
    print(f"{total - len(wrong)} of {total} configurations hold no more than they may")
    bad = bool(wrong) or (largest is not None and not fitting)
    return int(ExitCode.NONCONFORMANT if bad else ExitCode.CONFORMANT)


def _chosen(arguments: argparse.Namespace) -> list[tuple[Case, Execution]]:
    """Return the configurations that the options select.

    Raises:
        UsageError: A name that does not exist, or nothing is left.
    """
    variants = split(arguments.variant) or ["*"]
    cases = select_cases(
        split(arguments.component), variants, None, arguments.k, among=memory_cases()
    )
    ids = {case.id for case in cases}
    known = [execution for _, execution in configurations()]
    dtypes, backends = sorted({e.dtype for e in known}), sorted({e.backend for e in known})
    dtypes = chosen_names("dtype", arguments.dtype or "*", dtypes, dtypes)
    backends = chosen_names("backend", arguments.backend or "*", backends, backends)
    pairs = [
        (case, execution)
        for case, execution in configurations()
        if case.id in ids and execution.dtype in dtypes and execution.backend in backends
    ]
    if not pairs:
        message = "no configuration is selected: leave out --dtype or --backend"
        raise UsageError(message)
    return pairs


def _adapter() -> Any:
    return importlib.import_module("conformance.adapters.memory")


def _predictor(port: Port) -> Any:
    """Return what predicts for a port.

    Raises:
        UsageError: It is none that can be looked into.
    """
    try:
        return _adapter().Predictor(port)
    except UnsupportedError as error:
        raise UsageError(str(error)) from error


def _lines(
    predictor: Any, pairs: list[tuple[Case, Execution]], arguments: argparse.Namespace
) -> tuple[list[Line], dict[str, str]]:
    """Return the lines of the table, in its order, and why configurations are left out."""
    lines: dict[str, Line] = {}
    declined: dict[str, str] = {}
    rows = lines_of(predictor, pairs)
    for row in Progress(rows, total=len(pairs), unit="configuration", leave=False):
        if isinstance(row, Line):
            lines[row.key] = _measured(predictor.port, row, arguments) if arguments.measure else row
        else:
            declined[row[0]] = row[1]
    order = sorted(pairs, key=lambda pair: _place(pair[0]))
    names = [config_id(case, execution) for case, execution in order]
    return [lines[name] for name in names if name in lines], declined


def _place(case: Case) -> tuple[int, str, list[int]]:
    """Return what a table is sorted by: component, variant, then size and batch as numbers."""
    numbers = [int(text) for text in re.findall(r"\d+", case.scenario.name)]
    return COMPONENTS.index(case.component), case.variant.name, numbers


def _measured(port: Port, line: Line, arguments: argparse.Namespace) -> Line:
    """Run a configuration and count what it holds."""
    adapter, case = _adapter(), line.case
    component = adapter.loaded(port, case, line.execution, arguments.device)
    inputs = case.inputs()
    counted = adapter.footprint(component, case, inputs).peak
    on_cpu = arguments.device == "cpu"
    given_out = None if on_cpu else adapter.allocated(component, case, inputs, arguments.device)
    return replace(line, tensors=counted, allocator=given_out)


def _record(names: list[str], arguments: argparse.Namespace) -> int:
    """Take down what ports hold; on a CUDA device, the allowance of its allocator."""
    pairs = _chosen(arguments)
    found = Budgets.read() if PATH.exists() else Budgets()
    changes = 0
    foreign = [name for name in names if name not in BUILTIN]
    if foreign:
        message = (
            f"only {' and '.join(BUILTIN)} are recorded, not {foreign[0]}: write what it holds "
            "with budget PORT --out FILE, and compare two such files with diff"
        )
        raise UsageError(message)
    for name in names or BUILTIN:
        predictor = _predictor(resolve(name))
        watched = Progress(pairs, unit="configuration", leave=False)
        changes += record(found, predictor, watched, Progress.write)
        if arguments.device != "cpu":
            _record_allowance(found, predictor, pairs, arguments.device)
    found.write()
    print(f"{changes} changes for torch {torch_version()} in {PATH}: review the diff")
    return int(ExitCode.CONFORMANT)


def _record_allowance(
    found: Budgets, predictor: Any, pairs: list[tuple[Case, Execution]], device: str
) -> None:
    """Take down by how much a device's allocator exceeds the predictions at most."""
    adapter = _adapter()
    allowances = found.allowances.setdefault(torch_version(), {})
    name, excess = adapter.device_class(device), 0
    for case, execution in Progress(pairs, unit="configuration", leave=False):
        try:
            predicted = predictor.predict(case, execution).peak
        except UnsupportedError:
            continue
        component = adapter.loaded(predictor.port, case, execution, device)
        excess = max(excess, adapter.allocated(component, case, case.inputs(), device) - predicted)
    before = allowances.get(name, 0)
    allowances[name] = max(before, excess)
    print(f"{name}: allowance {mib(before)} -> {mib(allowances[name])}")
