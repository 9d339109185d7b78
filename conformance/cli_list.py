"""`sd1-conformance list`, `show` and `ports`: what there is."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from conformance.case import all_cases, find_case
from conformance.cli_common import add_selection, command, selected
from conformance.errors import SuiteError
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.memory.cases import configurations, memory_cases
from conformance.port import greet, known_ports, resolve
from conformance.report.text import shorten
from conformance.tolerance import LIMIT
from conformance.vocabulary import Vocabulary


def add_commands(commands: Any) -> None:
    """Declare the commands."""
    listing = command(commands, "list", _list, "print case ids")
    add_selection(listing)
    listing.add_argument(
        "--all", action="store_true", help="every variant, sd1 too, and mode memory's"
    )

    show = command(commands, "show", _show, "print what a golden holds")
    show.add_argument("case", metavar="CASE", help="component/variant/scenario")
    show.add_argument("--probes", action="store_true", help="every probe, in order of execution")

    command(commands, "ports", _ports, "print the ports that can be named")


def _list(arguments: argparse.Namespace) -> int:
    among = None
    if arguments.all:
        arguments.variant = arguments.variant or "*"
        among = [*all_cases(), *([] if arguments.level else memory_cases())]
    for case in selected(arguments, among):
        print(f"{case.id:40s} {case.scenario.hunts}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    case = find_case(arguments.case)
    if case.refused:
        print(f"{case.id}\nhunts   {case.scenario.hunts}\nrefused {case.refused}")
        return 0
    if runs := [run for own, run in configurations() if own == case]:
        print(f"{case.id}\nhunts   {case.scenario.hunts}")
        print("\n".join(f"item    {run.item_id(case)}" for run in runs))
        return 0
    golden = load_golden(case)
    if arguments.probes:
        print("\n".join(golden.asked))
        return 0
    print(f"{case.id}\nhunts   {golden.hunts}\nlimit   {LIMIT:g}")
    for name, facts in golden.inputs.items():
        value = f" {shorten(str(facts['value']), 100)}" if "value" in facts else ""
        print(
            f"input   {name} {facts['dtype']} {tuple(facts['shape'])} from {facts['recipe']}{value}"
        )
    for name, shape in golden.output_shapes.items():
        print(f"output  {name} {shape}, {_output_text(golden, name)}")
    if golden.probes:
        what = "probes and steps of outputs, " if golden.sketched else ""
        print(f"probes  {len(golden.probes)}, {what}{golden.probes[0]} to {golden.probes[-1]}")
    for arithmetic, noise in golden.noise.items():
        outputs = ", ".join(f"{n} {v[0]:.2g}" for n, v in golden.output_noise[arithmetic].items())
        told = f", output {outputs}" if outputs else ""
        print(f"noise   {arithmetic}: median of the probes {np.median(noise):.2g}{told}")
    if golden.kills:
        print(f"kills   {shorten(', '.join(golden.kills), 200)}")
    print("from    " + ", ".join(f"{k} {v}" for k, v in golden.provenance.items()))
    return 0


def _output_text(golden: Golden, name: str) -> str:
    """Describe an output of a golden in words."""
    if name in golden.sketched:
        steps = sum(golden.sketched_output(row) == name for row in golden.probes)
        return f"kept as sketches, {steps} of them" if steps else "not kept"
    if name in golden.pictures:
        return "judged by the port's own image"
    whole = golden.outputs.get(name)
    if whole is not None and name == "timesteps":
        return ", ".join(map(str, whole.tolist()))
    if whole is not None and whole.dtype == np.uint8:
        return f"mean {whole.mean():.4g}"
    if golden.exact:
        words = Vocabulary.load()
        rows = [[words.name(i) for i in row] for row in golden.outputs[name].tolist()]
        return "; ".join(shorten(" ".join(row), 200) for row in rows)
    rms = golden.output_norm(name) / math.sqrt(math.prod(golden.output_shapes[name]))
    kept = ", kept as a sketch and its first and last rows and columns"
    return f"RMS {rms:.4g}{kept if name in golden.large else ''}"


def _ports(_: argparse.Namespace) -> int:
    for name, target in known_ports().items():
        try:
            hello = greet(resolve(name))
        except SuiteError as error:
            print(f"{name:12s} not available: {error}")
        else:
            print(
                f"{name:12s} {hello.version:10s} {', '.join(hello.components)}; "
                f"{', '.join(hello.arithmetics)}; {', '.join(hello.devices)} ({target})"
            )
    return 0
