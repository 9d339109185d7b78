"""Several processes that share the items of a run, each with its own copy of the port."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from conformance.case import Case
from conformance.devices import device_of, visible_devices
from conformance.errors import ExitCode, PortError, SuiteError, UsageError
from conformance.execution import Execution
from conformance.port import close, resolve
from conformance.report.text import one_line
from conformance.result import Result
from conformance.runner import Runner
from conformance.traces import find_traces

Item = tuple[Case, Execution]
Report = Callable[[dict[str, Any]], None]

_READY = "ready"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Job:
    """What every worker needs to know.

    Attributes:
        port: The PORT argument.
        limits: What a process of its own may use, as `conformance.port.resolve` takes it.
        packs: Folder of trace packs, or None.
    """

    port: str
    limits: Any = None
    packs: Path | None = None

    def runner(self) -> Runner:
        """Make the port and a runner for it."""
        traces = find_traces(self.packs) if self.packs else None
        return Runner(resolve(self.port, self.limits), traces, self.port)


def groups(items: Iterable[Item]) -> list[list[Item]]:
    """Split items into what one worker does in one go: networks are built once.

    Both modes of a case stay together, since a trace is explained by what splicing found.
    """
    found: dict[tuple[str, str, str], list[Item]] = {}
    for case, execution in items:
        key = (case.component, case.variant.name, execution.dtype)
        found.setdefault(key, []).append((case, execution))
    return sorted(found.values(), key=len, reverse=True)


@dataclass
class _Worker:
    slot: int
    process: Any
    pipe: Connection
    left: deque[Item] = field(default_factory=deque)
    ready: bool = False


def run_parallel(job: Job, items: Iterable[Item], jobs: int, report: Report) -> None:
    """Run items in several processes, spread over the machine's GPUs where they run on `cuda`.

    A worker that dies costs the item that it was running, which becomes an `error`, and no other.

    Args:
        job: The port.
        items: Cases and how they are run.
        jobs: Number of workers.
        report: Told each case line as it comes.

    Raises:
        SuiteError: The port cannot be made.
    """
    waiting = deque(groups(items))
    on_gpu = any(run.device == "cuda" for group in waiting for _, run in group)
    devices = visible_devices() if on_gpu else []
    workers: list[_Worker] = []
    try:
        with _environment(_cores(jobs)):
            while waiting or any(worker.left for worker in workers):
                busy = sum(bool(worker.left) for worker in workers)
                while len(workers) < min(jobs, busy + len(waiting)):
                    slot = min(set(range(jobs)) - {worker.slot for worker in workers})
                    with _environment(device_of(slot, devices)):
                        workers.append(_started(slot, job))
                _hand_out(workers, waiting)
                for worker in _woken(workers):
                    if not _listen(worker, report):
                        workers.remove(worker)
                        if worker.left:
                            waiting.appendleft(list(worker.left))
                            worker.left.clear()
    finally:
        for worker in workers:
            with suppress(OSError):
                worker.pipe.send(None)
            worker.process.join(_GOODBYE)
            worker.process.kill()


_GOODBYE = 10


def _cores(jobs: int) -> dict[str, str]:
    """Let workers divide the cores among them, unless the user has decided."""
    if _THREADS in os.environ:
        return {}
    return {_THREADS: str(max(1, (os.cpu_count() or 1) // jobs))}


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Let the processes that are started now have other variables than this one."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _started(slot: int, job: Job) -> _Worker:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    return _Worker(slot, process, ours)


def _woken(workers: list[_Worker]) -> list[_Worker]:
    """Wait until some workers have something to say, or have died."""
    pipes = {worker.pipe: worker for worker in workers}
    return [pipes[pipe] for pipe in wait(list(pipes)) if isinstance(pipe, Connection)]


def _hand_out(workers: list[_Worker], waiting: deque[list[Item]]) -> None:
    """Give a group to every worker that has nothing to do."""
    for worker in workers:
        if worker.ready and not worker.left and waiting:
            group = waiting.popleft()
            worker.left.extend(group)
            with suppress(OSError):  # it has died: its pipe will say so
                worker.pipe.send(group)


def _listen(worker: _Worker, report: Report) -> bool:
    """Take one message of a worker; False if it died."""
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(_GOODBYE)
        if not worker.ready:
            text = f"a worker ended before it was ready (exit code {worker.process.exitcode})"
            raise PortError(text) from None
        if worker.left:
            case, execution = worker.left.popleft()
            text = f"the port ended the process (exit code {worker.process.exitcode})"
            report(Result(case, execution, "error", message=text).as_json())
        return False
    if message == _READY:
        worker.ready = True
    elif isinstance(message, Exception):
        raise message
    else:
        worker.left.popleft()
        report(message)
    return True


def _work(pipe: Connection, job: Job) -> None:
    """Be a worker: run what comes, group by group, until None comes."""
    try:
        runner = job.runner()
    except SuiteError as error:
        kind = UsageError if error.exit_code is ExitCode.USAGE else PortError
        pipe.send(kind(one_line(error)))
        return
    try:
        pipe.send(_READY)
        while (group := pipe.recv()) is not None:
            for case, execution in group:
                pipe.send(runner.run(case, execution).as_json())
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the run was broken off
    finally:
        close(runner.port)
