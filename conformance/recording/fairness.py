"""Is the limit fair? Honest evaluations measured against the recorded noise (docs/tolerance.md)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

from conformance import oracle
from conformance.case import Case
from conformance.golden import SPLICE, Golden
from conformance.golden_files import load_golden
from conformance.recorded import arithmetics, modes_in
from conformance.recording.calibration import calibrations
from conformance.recording.honest import HELD_OUT
from conformance.recording.noise import Errors, measure, worst_of, worst_ratio
from conformance.recording.record import Reference
from conformance.run_folder import RESULTS
from conformance.run_records import read_records
from conformance.tables import table_arithmetic
from conformance.tolerance import EVERY_ARITHMETIC, LIMIT

Say = Callable[[str], None]

BY_DESIGN = ("sequential sums", "channels last in offset", "one-pass variance in offset")
"""Calibration evaluations that nothing else stands for: shown, but no problem without themselves.

Nothing else sums naively. PyTorch's channels-last GroupNorm and Flax's LayerNorm compute their
variance in one pass, which shows where a norm reads a mean of many deviations."""

INSTRUCTION_SETS = {
    "ATen without vector kernels": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN limited to SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN limited to AVX": {"ONEDNN_MAX_CPU_ISA": "AVX"},
    "MKL compatible mode": {"MKL_CBWR": "COMPATIBLE"},
}
"""Held-out evaluations that need a process of their own."""

PORTS = ("diffusers", "sd1_impl")


class Table:
    """The worst ratio of each evaluation in each arithmetic."""

    def __init__(self) -> None:
        """Start empty."""
        self.rows: dict[tuple[str, str], tuple[float, str]] = defaultdict(lambda: (0.0, ""))

    def add(self, name: str, arithmetic: str, ratio: float, where: str) -> None:
        """Keep the worst."""
        key = (name, arithmetic)
        self.rows[key] = max(self.rows[key], (ratio, where))

    def markdown(self) -> str:
        """Return the table, in the order of first appearance."""
        lines = ["| evaluation | arithmetic | worst ratio | where |", "|---|---|---|---|"]
        lines += [f"| {n} | {a} | {r:.2f} | `{w}` |" for (n, a), (r, w) in self.rows.items()]
        return "\n".join(lines)


def measure_all(cases: list[Case], say: Say) -> list[str]:
    """Measure every held-out evaluation, and each calibration evaluation without itself.

    Args:
        cases: Recorded cases.
        say: Told progress, then the table.

    Returns:
        Evaluations over half the limit, but for those of `BY_DESIGN`.
    """
    table = Table()
    cases = [case for case in cases if not case.refused]
    for _, group in groupby(cases, key=lambda c: (c.component, c.variant.name)):
        _measure_variant(list(group), table, say)
    for port in PORTS:
        for arithmetic in EVERY_ARITHMETIC:
            _measure_process(
                f"port {port}", [port, "--dtype", arithmetic], arithmetic, {}, cases, table
            )
            say(f"port {port}, {arithmetic}")
    for name, variables in INSTRUCTION_SETS.items():
        for arithmetic in ("float32", "float64"):
            arguments = ["diffusers", "--dtype", arithmetic]
            _measure_process(name, arguments, arithmetic, variables, cases, table)
            say(f"{name}, {arithmetic}")
    say(table.markdown())
    return [
        f"{name} in {arithmetic}: ratio {ratio:.2f} at {where} is over half the limit"
        for (name, arithmetic), (ratio, where) in table.rows.items()
        if not ratio <= LIMIT / 2 and not name.removesuffix(" (splice)").endswith(BY_DESIGN)
    ]


def _measure_variant(cases: list[Case], table: Table, say: Say) -> None:
    reference = Reference(cases[0].component, cases[0].variant)
    truths = {case.id: reference.truth(case) for case in cases}
    for arithmetic in EVERY_ARITHMETIC:
        for case in cases:
            if arithmetic not in arithmetics(case):
                continue
            component, truth = reference.build(arithmetic), truths[case.id]
            for mode in modes_in(case, arithmetic):
                _measure_case(component, case, truth, (arithmetic, mode), table)
            say(f"{case.id}: {arithmetic}")


def _measure_case(
    component: oracle.Component,
    case: Case,
    truth: oracle.Truth,
    judged_in: tuple[str, str],
    table: Table,
) -> None:
    """Measure the evaluations of one case in an arithmetic and a mode."""
    arithmetic, mode = judged_in
    splice = mode == SPLICE
    told = " (splice)" if splice else ""
    noise = noise_in(load_golden(case).in_mode(mode), arithmetic)
    for evaluation in (e for e in HELD_OUT if e.applies(case, arithmetic)):
        errors = measure(component, case, truth, evaluation, splice=splice)
        ratio, where = worst_ratio(errors, noise, arithmetic)
        table.add(f"held out: {evaluation.name}{told}", arithmetic, ratio, f"{case.id} {where}")
    if arithmetic == "float64":
        return  # its noise is bounded from below by float32's: see noise_of
    chosen = calibrations(component, case, arithmetic, splice=splice)
    runs = [measure(component, case, truth, e, splice=splice) for e in chosen]
    for i, evaluation in enumerate(chosen):
        rest = worst_of(run for j, run in enumerate(runs) if j != i)
        ratio, where = worst_ratio(runs[i], rest, arithmetic)
        name = f"without itself: {evaluation.name.partition(' (')[0]}"
        if case.variant.regime == "offset":
            name += " in offset"
        table.add(name + told, arithmetic, ratio, f"{case.id} {where}")


def noise_in(golden: Golden, arithmetic: str) -> Errors:
    """Return the noise that a golden records."""
    noise = dict(zip(golden.probes, golden.noise[arithmetic].tolist(), strict=True))
    tables = golden.table_noise.get(table_arithmetic(arithmetic), {})
    return Errors(noise, golden.output_noise[arithmetic], tables)


def _measure_process(
    name: str,
    arguments: list[str],
    arithmetic: str,
    variables: dict[str, str],
    cases: Iterable[Case],
    table: Table,
) -> None:
    """Judge a port in a process of its own."""
    expression = " or ".join(dict.fromkeys(case.id for case in cases))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "conformance", "run", *arguments, "--variant", "*"]
        command += ["-k", expression, "--out", folder]
        subprocess.run(command, env={**os.environ, **variables}, capture_output=True, check=False)  # noqa: S603
        for line in read_records(Path(folder) / RESULTS):
            if line["type"] == "case" and line["ratio"] is not None:
                where = f"{line['case'].partition('[')[0]} {line['worst_probe']}"
                told = " (splice)" if line["mode"] == SPLICE else ""
                table.add(f"held out: {name}{told}", arithmetic, float(line["ratio"]), where)
