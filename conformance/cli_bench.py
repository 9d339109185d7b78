"""`sd1-conformance bench`: what the model and the suite cost, beside the reference."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from conformance import cli_suite, export
from conformance.bench import loading, models, record, table
from conformance.bench.tasks import DECODER, choose
from conformance.cli_common import Listed, command, given, oracle_module, split
from conformance.errors import ExitCode, UsageError
from conformance.progress import Progress
from conformance.variants import parse_variant, sizes
from sd1_weights import sizes as network_sizes
from sd1_weights.layouts import read_checkpoint
from sd1_weights.save import write_network
from sd1_weights.stored import WEIGHTS

DTYPES = ("float32", "bfloat16", "float16")

_MIB = 2**20
_REPEAT, _QUICK = 7, 3
"""Rounds: the fewest from which `diff` can decide dozens of rows; with `--quick`."""

_LOADS = 5
_OF_MODELS = ("device", "dtype", "case", "variant", "compile", "quick")
"""Options that mean nothing to the other benchmarks."""


def add_commands(commands: Any) -> None:
    """Declare `bench`."""
    bench = command(commands, "bench", _models, "measure speed and memory beside the reference")
    bench.add_argument("--device", metavar="D", help="cpu (default), cuda or cuda:1")
    bench.add_argument("--dtype", choices=DTYPES, help="default float32")
    case = "what to time; default: all"
    bench.add_argument("--case", action=Listed, metavar="GLOB,..", help=case)
    bench.add_argument("--variant", metavar="V", help="size of the model, default sd1")
    bench.add_argument("--compile", action="store_true", default=None, help="compile both")
    bench.add_argument("--quick", action="store_true", default=None, help="small sizes, 3 rounds")
    _add_common(bench, f"rounds, default {_REPEAT}", None)
    own = bench.add_subparsers(metavar="COMMAND")
    load = command(own, "load", _load, "load the UNet of a checkpoint: time and memory")
    load.add_argument("--weights", type=Path, metavar="PATH", help="default: sd1, written first")
    _add_common(load, f"of each, default {_LOADS}", argparse.SUPPRESS)
    cli_suite.add_command(own)


def _add_common(parser: argparse.ArgumentParser, repeat: str, default: Any) -> None:
    """Offer what every benchmark takes; those of a subcommand do not undo what stood before it."""
    out = given("--out", "a file", Path)
    parser.add_argument("--repeat", type=int, default=default, metavar="N", help=repeat)
    parser.add_argument(
        "--out", type=out, default=default, metavar="FILE", help="write the figures as JSON"
    )


def _check(arguments: argparse.Namespace, default: int) -> int:
    """Check what every benchmark takes, before anything is measured; return the rounds."""
    repeat = default if arguments.repeat is None else arguments.repeat
    if repeat < 1:
        message = f"--repeat {repeat}: give a positive number"
        raise UsageError(message)
    if arguments.out is not None:
        record.require_writable(arguments.out)
    return int(repeat)


def _models(arguments: argparse.Namespace) -> int:
    """Time `sd1_impl` and diffusers."""
    repeat = _check(arguments, _QUICK if arguments.quick else _REPEAT)
    device = arguments.device or "cpu"
    variant = parse_variant(arguments.variant or "sd1")
    known = sizes(DECODER)  # of the VAE: none is made for inpainting
    if variant.name not in known:
        message = f"--variant {variant.name}: what is timed is one of {', '.join(known)}"
        raise UsageError(message)
    tasks = choose(
        variant.name,
        split(arguments.case),
        quick=bool(arguments.quick),
        on_gpu=device.startswith("cuda"),
    )
    torch_side = oracle_module("conformance.adapters.bench_models")
    dtype = arguments.dtype or DTYPES[0]
    place = torch_side.Device(device, torch_side.DTYPES[dtype])
    both = torch_side.Models(variant, place)
    choice = models.Choice(tasks, dtype, device, repeat, bool(arguments.compile))
    with torch_side.compiling() if choice.compiled else nullcontext():
        product, rows = models.measure(choice, torch_side, both, place, Progress)
    print("\n".join(table.table(product, rows)))
    if arguments.out is not None:
        record.write(arguments.out, "models", rows, {"matmul": product.as_json()})
    return int(ExitCode.CONFORMANT)


def _load(arguments: argparse.Namespace) -> int:
    """Load the UNet of a checkpoint by both, each time in a fresh process."""
    cli_suite.refuse_options(arguments, _OF_MODELS, "load")
    repeat = _check(arguments, _LOADS)
    oracle_module("diffusers")
    with tempfile.TemporaryDirectory(prefix="sd1-bench-") as scratch:
        path = arguments.weights
        if path is None:
            path = Path(scratch) / "sd1.safetensors"
            export.write_checkpoint(parse_variant("sd1"), "compvis", "float32", path)
        network = read_checkpoint(path).network("unet")
        known = network_sizes.sizes("unet")[network.size]
        write_network(Path(scratch) / "unet", "unet", {}, known, {})
        size = sum(tensor.nbytes for tensor in network.tensors.values())
        dtypes = {code: name for name, code in WEIGHTS.items()}
        dtype = dtypes[next(iter(network.tensors.values())).dtype]
        runs = [
            loading.measured(name, path.resolve(), Path(scratch), dtype)
            for _ in Progress(range(repeat), unit="round")
            for name in loading.LOADERS  # in turns, so that a busy machine is busy for both
        ]
    rows = loading.rows(runs, network.size)
    print(f"{path}: UNet, {runs[0]['parameters']:,} parameters, {size / _MIB:,.0f} MiB")
    print(f"{'':10s} {'call':>8s} {'ready':>8s} {'spread':>8s} {'memory':>12s}  of the weights")
    medians = {
        name: {key: statistics.median(_runs(row, name)) for key, row in rows.items()}
        for name in loading.LOADERS
    }
    for name, row in medians.items():
        ready = _runs(rows["ready"], name)
        print(
            f"{name:10s} {row['call']:7.2f}s {row['ready']:7.2f}s {max(ready) - min(ready):7.2f}s "
            f"{row['peak'] / _MIB:8,.0f} MiB  {row['peak'] / size:.2f}"
        )
    ratio = medians[loading.OURS]["ready"] / medians[loading.THEIRS]["ready"]
    print(f"ratio {ratio:.2f} until every weight was read once (medians of {repeat})")
    if arguments.out is not None:
        extra = {"bytes": size, "parameters": runs[0]["parameters"]}
        record.write(arguments.out, "load", rows.values(), extra)
    return int(ExitCode.CONFORMANT)


def _runs(row: record.Row, loader: str) -> tuple[float, ...]:
    """Return what a loader took."""
    if loader == loading.OURS or row.reference is None:
        return row.runs
    return row.reference.runs
