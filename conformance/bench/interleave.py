"""Timing several things in turns, so that a busy machine is busy for all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Calls = Mapping[str, Mapping[str, Callable[[], object]]]
"""By group and side: what is timed. The sides of a group are compared with each other."""


def _nothing() -> None:
    """Wait for nothing: a CPU has computed when a call returns."""


@dataclass(frozen=True)
class Clock:
    """How time is told.

    Attributes:
        wall: Seconds.
        cpu: Seconds that all threads of this process have computed.
        wait: Returns when the device has nothing left to do.
    """

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    wait: Callable[[], None] = _nothing

    def timed(self, call: Callable[[], object]) -> Timed:
        """Call once; the device is idle before, and again when the clock is stopped."""
        self.wait()
        cpu, start = self.cpu(), self.wall()
        call()
        self.wait()
        return Timed(self.wall() - start, self.cpu() - cpu)


@dataclass(frozen=True)
class Timed:
    """What a call took.

    Attributes:
        seconds: From its start until the device had done everything.
        cpu: Seconds that this process computed meanwhile, summed over threads.
    """

    seconds: float
    cpu: float


def interleaved(
    calls: Calls, repeat: int, clock: Clock, done: Callable[[], object]
) -> dict[str, dict[str, list[Timed]]]:
    """Time everything, in rounds: each calls every side of every group once.

    A group's runs so lie minutes apart, and what the machine does meanwhile is in their spread.
    Within a round its sides are called one right after the other, in every other round from the
    last to the first: what comes and goes within minutes is the same for all of them, and none is
    always the first.

    Args:
        calls: What is timed.
        repeat: Rounds.
        clock: Tells the time.
        done: Called after each call.

    Returns:
        By group and side what each round took, in their order.
    """
    found: dict[str, dict[str, list[Timed]]] = {
        group: {side: [] for side in sides} for group, sides in calls.items()
    }
    collects = gc.isenabled()
    gc.disable()
    try:
        for k in range(repeat):
            gc.collect()
            for group, sides in calls.items():
                for side in reversed(list(sides)) if k % 2 else sides:
                    found[group][side].append(clock.timed(sides[side]))
                    done()
    finally:
        if collects:
            gc.enable()
    return found
