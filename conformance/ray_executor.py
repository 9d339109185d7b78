"""`run --executor ray`: the items of a run on a Ray cluster; a worker that dies costs nothing.

Every node needs this package, the port and what it reads, at the same places.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.case import Case
from conformance.environment import environment
from conformance.errors import ExitCode, PortError, SuiteError, UsageError
from conformance.execution import Execution
from conformance.parallel import Item, Job, Report, groups
from conformance.port import Hello, close
from conformance.report.text import one_line
from conformance.requirements import adding
from conformance.result import Result
from conformance.runner import Runner

ADDRESS = "RAY_ADDRESS"
"""Names a cluster that is there already; without it one is started on this machine."""

_PATIENCE = 600
"""Seconds until the first worker has room on the cluster."""

_TRIES = 2
_STARTS = 3
_GOODBYE = 10
_STORE = 2**28
"""Bytes that a cluster of our own keeps for what is under way: case lines are small."""


class Worker:
    """Runs items in a process of the cluster."""

    def __init__(self) -> None:
        self._runner: Runner | None = None

    def make(self, job: Job, folder: str) -> tuple[Hello, dict[str, str]] | tuple[str, ExitCode]:
        """Make the port.

        Args:
            job: Makes it.
            folder: What relative paths of the user begin from.

        Returns:
            What it says of itself, and its environment; or why it cannot be made.
        """
        with suppress(FileNotFoundError):  # a port need not be a file
            os.chdir(folder)
        try:
            self._runner = job.runner()
        except SuiteError as error:
            return one_line(error), error.exit_code
        return self._runner.hello, environment()

    def run(self, case: Case, execution: Execution) -> dict[str, Any]:
        """Run an item and return its case line."""
        if self._runner is None:
            message = "make the port first"
            raise ValueError(message)
        return self._runner.run(case, execution).as_json()

    def end(self) -> None:
        """End what the port has started."""
        if self._runner is not None:
            close(self._runner.port)


@dataclass
class _Actor:
    """A worker, seen from here.

    Attributes:
        handle: Ray's.
        left: What it has been given and not yet answered; empty before it has made its port.
        ready: Whether it has made its port.
    """

    handle: Any
    left: deque[Item] = field(default_factory=deque)
    ready: bool = False

    def next(self) -> Any:
        """Let it run the first of what is left; return what stands for the answer."""
        return self.handle.run.remote(*self.left[0])


@contextmanager
def session(jobs: int = 0) -> Iterator[Any]:
    """Connect to the cluster that `RAY_ADDRESS` names, or start one; stop it if it was started.

    Args:
        jobs: Workers that a cluster of our own must have room for.

    Yields:
        The module `ray`, connected.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        message = f"--executor ray needs Ray ({error}): {adding(['ray'])}"
        raise UsageError(message) from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": os.environ.get(ADDRESS) or "local"}
    if options["address"] == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        room = max(jobs, os.cpu_count() or 1)
        options |= {"num_cpus": room, "object_store_memory": _STORE, "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        message = f"--executor ray: no cluster at {options['address']}: {one_line(error)}"
        raise UsageError(message) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def greet_on_ray(job: Job, *, on_gpu: bool) -> tuple[Hello, dict[str, str]]:
    """Ask the port on the cluster what it offers, and where it runs.

    Args:
        job: Makes the port.
        on_gpu: Whether it needs a GPU.

    Returns:
        What it says of itself, and the environment there.

    Raises:
        SuiteError: It cannot be made, or there is no room for it.
    """
    with session(1) as ray:
        actor = _started(ray, on_gpu=on_gpu)
        answer = actor.handle.make.remote(job, str(Path.cwd()))
        try:
            if not ray.wait([answer], timeout=_PATIENCE)[0]:
                raise _no_room(on_gpu=on_gpu)
            made = _made(ray.get(answer))
            actor.ready = True
        except ray.exceptions.RayError as error:
            message = f"a worker ended before it was ready: {one_line(error)}"
            raise PortError(message) from error
        finally:
            _end(ray, [actor])
    return made


def run_on_ray(job: Job, items: Iterable[Item], jobs: int, report: Report) -> None:
    """Run items on a Ray cluster.

    A worker that dies, alone or with its node, loses nothing: what it was running is tried again by
    another, and is an `error` if that dies too.

    Args:
        job: The port.
        items: Cases and how they are run; those on `cuda` get a GPU for each worker.
        jobs: Most workers; 0 for as many as the cluster has room for.
        report: Told each case line as it comes.

    Raises:
        UsageError: There is no Ray, no cluster, or no room on it.
        SuiteError: The port cannot be made.
    """
    waiting = deque(groups(items))
    on_gpu = any(run.device == "cuda" for group in waiting for _, run in group)
    with session(jobs) as ray:
        most = jobs or max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1)))
        _Run(ray, job, waiting, report, on_gpu=on_gpu).all(most)


class _Run:
    """One run: who does what, and what is still to be done."""

    def __init__(
        self, ray: Any, job: Job, waiting: deque[list[Item]], report: Report, *, on_gpu: bool
    ) -> None:
        self.ray = ray
        self.job = job
        self.waiting = waiting
        self.report = report
        self.on_gpu = on_gpu
        self.busy: dict[Any, _Actor] = {}
        self.idle: list[_Actor] = []
        self.tries: Counter[str] = Counter()
        self.lost_starts = 0
        self.one_was_ready = False

    def all(self, most: int) -> None:
        """Run everything with at most so many workers."""
        try:
            while self.waiting or any(actor.left for actor in self.busy.values()):
                while self.idle and self.waiting:
                    self._hand_out(self.idle.pop())
                room = most - len(self.busy)
                for _ in range(min(room, len(self.waiting) - self._starting())):
                    actor = _started(self.ray, on_gpu=self.on_gpu)
                    self.busy[actor.handle.make.remote(self.job, str(Path.cwd()))] = actor
                done, _ = self.ray.wait(list(self.busy), timeout=_PATIENCE)
                if not done and not self.one_was_ready:
                    raise _no_room(on_gpu=self.on_gpu)
                for answer in done:
                    self._take(answer)
        finally:
            _end(self.ray, [*self.busy.values(), *self.idle])

    def _starting(self) -> int:
        return sum(not actor.left for actor in self.busy.values())

    def _hand_out(self, actor: _Actor) -> None:
        """Give a worker the next group, or nothing where there is none."""
        if not actor.left and self.waiting:
            actor.left.extend(self.waiting.popleft())
        if actor.left:
            self.busy[actor.next()] = actor
        else:
            self.idle.append(actor)

    def _take(self, answer: Any) -> None:
        """Take an answer of a worker, and give it what comes next."""
        actor = self.busy.pop(answer)
        try:
            found = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self._lose(actor, error)
            return
        if actor.left:
            actor.left.popleft()
            self.report(found)
        else:
            _made(found)
            actor.ready = self.one_was_ready = True
        self._hand_out(actor)

    def _lose(self, actor: _Actor, error: Exception) -> None:
        """Put back what a worker that died has not done."""
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(actor.handle)
        if not actor.left:
            self.lost_starts += 1
            if self.lost_starts == _STARTS:
                message = f"workers end before they are ready: {one_line(error)}"
                raise PortError(message) from error
            return
        case, execution = actor.left[0]
        item = execution.item_id(case)
        self.tries[item] += 1
        if self.tries[item] == _TRIES:
            actor.left.popleft()
            message = f"the worker ended, {_TRIES} times: {one_line(error)}"
            self.report(Result(case, execution, "error", message=message).as_json())
        if actor.left:
            self.waiting.appendleft(list(actor.left))


def _started(ray: Any, *, on_gpu: bool) -> _Actor:
    needs = {"num_cpus": 1, "num_gpus": int(on_gpu), "max_restarts": 0, "max_task_retries": 0}
    return _Actor(ray.remote(Worker).options(**needs).remote())


def _made(answer: tuple[Any, Any]) -> tuple[Hello, dict[str, str]]:
    """Return what a port says of itself; raise where it could not be made."""
    told, facts = answer
    if isinstance(told, Hello):
        return told, facts
    raise (UsageError if facts == ExitCode.USAGE else PortError)(told)


def _no_room(*, on_gpu: bool) -> UsageError:
    need = "a CPU and a GPU" if on_gpu else "a CPU"
    return UsageError(f"--executor ray: no node had {need} for a worker within {_PATIENCE} s")


def _end(ray: Any, actors: list[_Actor]) -> None:
    """Let ports end what they have started, then end the workers."""
    ends = [actor.handle.end.remote() for actor in actors if actor.ready]
    if ends:
        ray.wait(ends, num_returns=len(ends), timeout=_GOODBYE)
    for actor in actors:
        with suppress(ray.exceptions.RayError):
            ray.kill(actor.handle)
