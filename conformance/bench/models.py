"""Throughput of `sd1_impl` beside diffusers: one set of weights, one process, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.bench.interleave import Calls, Clock, Timed, interleaved
from conformance.bench.record import Reference, Row
from conformance.bench.tasks import Task
from conformance.errors import SuiteError

MATMUL = "matmul"
"""Of large matrices: what the machine can do."""

_PRODUCTS = 10
"""Calls of the large product before the rounds: the best of many is the least disturbed."""

_WARM = 2
"""Calls of a side on a GPU, beside the one whose output is compared, before time counts."""


@dataclass(frozen=True)
class Choice:
    """What is measured.

    Attributes:
        tasks: Each by its networks' names and sizes.
        dtype: `float32`, `bfloat16` or `float16`.
        device: As torch names it.
        repeat: Rounds.
        compiled: Whether both are compiled.
    """

    tasks: Sequence[Task]
    dtype: str
    device: str
    repeat: int
    compiled: bool = False


@dataclass(frozen=True)
class Ready:
    """A side that was called and found to agree with the reference.

    Attributes:
        side: It.
        error: Relative L2 distance of its output from that of the reference, not compiled.
        first: Seconds of its first call; where it is compiled, that is part of it.
        peak: Bytes that a call holds beside weights and inputs; None on a CPU.
    """

    side: Any
    error: float
    first: float
    peak: int | None


def measure(
    choice: Choice, torch_side: Any, models: Any, device: Any, bar: Callable[..., Any]
) -> tuple[Row, list[Row]]:
    """Compare outputs, then time everything in turns.

    Args:
        choice: What is measured.
        torch_side: `conformance.adapters.bench_models`.
        models: Its `Models`.
        device: Its `Device`.
        bar: Makes a progress bar, as `tqdm`.

    Returns:
        The seconds of a large product of matrices: the machine, which no `diff` judges. Then of
        each task in each way the seconds of `sd1_impl` beside those of diffusers, and on a GPU the
        bytes of both.

    Raises:
        SuiteError: Outputs differ by more than rounding, or a compiler failed.
    """
    clock: Clock = device.clock()
    product, operations = device.matmul()
    ready: dict[str, dict[str, Ready]] = {}
    flops: dict[str, int] = {}
    for task in bar(choice.tasks, desc="compare", unit="task"):
        ready[task.id], flops[task.id] = _compared(task, choice, torch_side, models, device, clock)
    calls: Calls = {MATMUL: {"": product}} | {
        name: {key: one.side.run for key, one in sides.items()} for name, sides in ready.items()
    }
    total = choice.repeat * sum(map(len, calls.values()))
    best = min(clock.timed(product).seconds for _ in range(_PRODUCTS))
    with bar(total=total, desc="time", unit="call") as progress:
        times = interleaved(calls, choice.repeat, clock, progress.update)
    suffix = f"{choice.dtype}-{choice.device}"
    seconds = [one.seconds for one in times[MATMUL][""]]
    facts = {"flops": operations, "peak": operations / min(best, *seconds)}
    product_row = Row.measured(f"{MATMUL}[{suffix}]", "s", seconds, facts=facts)
    rows: list[Row] = []
    for task in choice.tasks:
        counted = {"flops": flops[task.id], "peak": facts["peak"], "batch": task.batch}
        counted["compiled"] = choice.compiled
        rows += _rows(task.id, suffix, ready[task.id], times[task.id], counted, torch_side.BESIDE)
    return product_row, rows


def _key(side: Any) -> str:
    return f"{side.name} {side.way}"


def _compared(
    task: Task, choice: Choice, torch_side: Any, models: Any, device: Any, clock: Clock
) -> tuple[dict[str, Ready], int]:
    """Call every side of a task, and hold its output against the reference's."""
    reference = models.reference(task)
    wanted, flops = torch_side.counted(reference.output)
    found: dict[str, Ready] = {}
    for side in models.sides(task, compiled=choice.compiled):
        output, first = _first(side, task, clock, compiled=choice.compiled)
        error, most = torch_side.distance(output, wanted, models.dtype)
        if not error <= most:
            message = (
                f"{task.id}: the outputs of {side.name} ({side.way}) and diffusers differ by "
                f"{error:.2g}, at most {most:.2g} is rounding: a timing of something wrong is "
                f"worth nothing; `sd1-conformance run -k {task.component}` says where it begins"
            )
            raise SuiteError(message)
        for _ in range(_WARM if device.is_cuda else 0):
            side.run()
        found[_key(side)] = Ready(side, error, first, device.peak(side.run))
    return found, flops


def _first(side: Any, task: Task, clock: Clock, *, compiled: bool) -> tuple[Any, float]:
    """Return what the first call of a side returns, and its seconds."""
    outputs: list[Any] = []
    try:
        first = clock.timed(lambda: outputs.append(side.output()))
    except Exception as error:
        if not compiled:
            raise
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"{task.id}: torch.compile failed on {side.name}: {told}"
        raise SuiteError(message) from error
    return outputs[0], first.seconds


def _rows(
    name: str,
    suffix: str,
    ready: dict[str, Ready],
    times: dict[str, list[Timed]],
    facts: dict[str, Any],
    beside: dict[str, str],
) -> Iterator[Row]:
    """Yield the rows of a task: one for each way in which `sd1_impl` computed it."""
    theirs = {one.side.way: key for key, one in ready.items() if one.side.name == "diffusers"}
    for key, one in ready.items():
        if one.side.name == "diffusers":
            continue
        other = ready[theirs[beside[one.side.way]]]
        own, runs = times[key], times[_key(other.side)]
        told = {
            **facts,
            "error": one.error,
            "cpu seconds": statistics.median(run.cpu for run in own),
            "reference cpu seconds": statistics.median(run.cpu for run in runs),
            "first call": one.first,
            "reference first call": other.first,
        }
        id_ = f"{name}[{suffix}-{one.side.way}]"
        yield Row.measured(
            id_,
            "s",
            [run.seconds for run in own],
            reference=Reference(other.side.name, tuple(run.seconds for run in runs)),
            facts=told,
        )
        if one.peak is not None:
            bytes_ = {"reference bytes": other.peak}
            yield Row.counted(f"{id_}:memory", "bytes", one.peak, facts=bytes_)
