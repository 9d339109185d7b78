"""Timing in turns, by a clock that only the calls move; and what is chosen to be timed."""

from __future__ import annotations

import gc

import pytest

from conformance.bench.interleave import Clock, Timed, interleaved
from conformance.bench.tasks import choose
from conformance.errors import UsageError


class Machine:
    """A clock that calls move: each takes its seconds, on two threads; a device lags behind."""

    def __init__(self) -> None:
        self.now = self.cpu = self.queued = 0.0
        self.log: list[str] = []

    def call(self, name: str, seconds: float, queued: float = 0.0):
        """Return a call that takes so long, and leaves so much for the device to do."""

        def run() -> None:
            self.log.append(name)
            self.now += seconds
            self.cpu += 2 * seconds
            self.queued += queued

        return run

    def wait(self) -> None:
        """Let the device finish."""
        self.now += self.queued
        self.queued = 0.0

    def clock(self) -> Clock:
        """Return its clock."""
        return Clock(lambda: self.now, lambda: self.cpu, self.wait)


def test_order() -> None:
    """Each round calls every side once, and turns the order round."""
    machine = Machine()
    calls = {
        group: {side: machine.call(f"{group}{side}", 1.0) for side in sides}
        for group, sides in {"a": "xyz", "b": "xy"}.items()
    }
    done: list[None] = []
    found = interleaved(calls, 3, machine.clock(), lambda: done.append(None))
    forth, back = ["ax", "ay", "az", "bx", "by"], ["az", "ay", "ax", "by", "bx"]
    assert machine.log == [*forth, *back, *forth]
    assert len(done) == 15
    assert {
        group: {side: len(x) for side, x in sides.items()} for group, sides in found.items()
    } == {
        "a": {"x": 3, "y": 3, "z": 3},
        "b": {"x": 3, "y": 3},
    }


def test_what_the_device_has_left_to_do_counts() -> None:
    """The clock stops when the device is done, and what came before is not the call's."""
    machine = Machine()
    machine.queued = 50.0
    calls = {"a": {"slow": machine.call("slow", 1.0, 4.0), "fast": machine.call("fast", 2.0)}}
    found = interleaved(calls, 2, machine.clock(), lambda: None)
    assert found["a"]["slow"] == [Timed(5.0, 2.0)] * 2
    assert found["a"]["fast"] == [Timed(2.0, 4.0)] * 2


def test_collector_waits() -> None:
    """No call is interrupted by the garbage collector, which is as before afterwards."""
    seen: list[bool] = []
    interleaved({"a": {"": lambda: seen.append(gc.isenabled())}}, 2, Clock(), lambda: None)
    assert seen == [False, False]
    assert gc.isenabled()

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleaved({"a": {"": broken}}, 1, Clock(), lambda: None)
    assert gc.isenabled()


def test_choice() -> None:
    """All, the small ones, what globs name; the large ones only on a GPU, or by name."""
    assert [task.id for task in choose("sd1", None, quick=True)] == [
        "text_encoder/sd1/batch1",
        "unet/sd1/latent32-batch1",
        "vae_decoder/sd1/latent32-batch1",
    ]
    on_cpu, on_gpu = choose("sd1", None), choose("sd1", None, on_gpu=True)
    assert [task.id for task in on_gpu if task not in on_cpu] == [
        f"pipeline/txt2img/sd1/image512-steps10-batch{n}" for n in (1, 4, 16)
    ]
    assert choose("sd1", ["*image512*batch16"]) == [on_gpu[-1]]
    assert [t.id for t in choose("tiny", ["vae_e*", "unet/*64-batch2"])] == [
        "unet/tiny/latent64-batch2",
        "vae_encoder/tiny/image512-batch1",
    ]
    with pytest.raises(
        UsageError, match="--case 'nothing\\*' fits none of text_encoder/sd1/batch1"
    ):
        choose("sd1", ["unet*", "nothing*"])
    with pytest.raises(UsageError, match="--case '' fits none"):
        choose("sd1", [])
