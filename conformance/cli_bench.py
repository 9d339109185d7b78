"""Benchmarks: what the suite and its model cost, beside the reference."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from conformance import export
from conformance.cli_common import command, given, oracle_module
from conformance.environment import environment
from conformance.errors import ExitCode, SuiteError, UsageError
from conformance.variants import parse_variant
from sd1_weights.layouts import read_checkpoint
from sd1_weights.save import write_network
from sd1_weights.sizes import sizes
from sd1_weights.stored import WEIGHTS

LOADERS = ("sd1_impl", "diffusers")
_MIB = 2**20


def add_commands(commands: Any) -> None:
    """Declare `bench`."""
    bench = command(commands, "bench", None, "measure speed and memory beside the reference")
    own = bench.add_subparsers(required=True, metavar="COMMAND")
    load = command(own, "load", _load, "load the UNet of a checkpoint: time and memory")
    load.add_argument("--weights", type=Path, metavar="PATH", help="default: sd1, written first")
    load.add_argument("--repeat", type=int, default=5, metavar="N", help="of each, default 5")
    load.add_argument(
        "--out",
        type=given("--out", "a file", Path),
        metavar="FILE",
        help="write the figures as JSON",
    )


def _load(arguments: argparse.Namespace) -> int:
    if arguments.repeat < 1:
        message = f"--repeat {arguments.repeat}: give a positive number"
        raise UsageError(message)
    if arguments.out is not None and not os.access(arguments.out.absolute().parent, os.W_OK):
        message = f"cannot write {arguments.out}: its folder has to exist and be writable"
        raise UsageError(message)
    oracle_module("diffusers")
    with tempfile.TemporaryDirectory(prefix="sd1-bench-") as scratch:
        path = arguments.weights
        if path is None:
            path = Path(scratch) / "sd1.safetensors"
            export.write_checkpoint(parse_variant("sd1"), "compvis", "float32", path)
        network = read_checkpoint(path).network("unet")
        write_network(Path(scratch) / "unet", "unet", {}, sizes("unet")[network.size], {})
        size = sum(tensor.nbytes for tensor in network.tensors.values())
        dtypes = {code: name for name, code in WEIGHTS.items()}
        dtype = dtypes[next(iter(network.tensors.values())).dtype]
        rows = [
            _measured(name, path.resolve(), Path(scratch), dtype)
            for _ in tqdm(range(arguments.repeat), unit="round", disable=None)
            for name in LOADERS  # in turns, so that a busy machine is busy for both
        ]
    figures = _figures(rows, size)
    print(f"{path}: UNet, {rows[0]['parameters']:,} parameters, {size / _MIB:,.0f} MiB")
    print(f"{'':10s} {'call':>8s} {'ready':>8s} {'spread':>8s} {'memory':>12s}  of the weights")
    for name in LOADERS:
        row = figures[name]
        print(
            f"{name:10s} {row['call']:7.2f}s {row['ready']:7.2f}s {row['spread']:7.2f}s "
            f"{row['peak'] / _MIB:8,.0f} MiB  {row['peak'] / size:.2f}"
        )
    ratio = figures["sd1_impl"]["ready"] / figures["diffusers"]["ready"]
    print(f"ratio {ratio:.2f} until every weight was read once (medians of {arguments.repeat})")
    if arguments.out is not None:
        report = {"bench": "load", "environment": environment(), "bytes": size, "runs": rows}
        report |= {"medians": figures, "ratio": ratio}
        try:
            arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            message = f"cannot write {arguments.out}: {error.strerror}"
            raise UsageError(message) from error
    return int(ExitCode.CONFORMANT)


def _measured(name: str, path: Path, config: Path, dtype: str) -> dict[str, Any]:
    """Load once in a fresh process."""
    words = [name, str(path), str(config), dtype]
    start = [sys.executable, "-m", "conformance.adapters.loaders"]
    done = subprocess.run([*start, *words], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        message = f"{name} could not load {path}: {last}"
        raise SuiteError(message)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _figures(rows: list[dict[str, Any]], size: int) -> dict[str, dict[str, float]]:
    """Return the medians of every loader, and the spread of its times."""
    figures = {}
    for name in LOADERS:
        own = [row for row in rows if row["loader"] == name]
        ready = [row["ready"] for row in own]
        figures[name] = {
            key: statistics.median(row[key] for row in own)
            for key in ("call", "ready", "peak", "growth")
        }
        figures[name]["spread"] = max(ready) - min(ready)
        figures[name]["peak_ratio"] = figures[name]["peak"] / size
    return figures
