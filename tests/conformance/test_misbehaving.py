"""Nothing that a child does costs another case, blocks the run or leaves anything behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conformance.adapters.process import ExecPort, Limits
from conformance.case import find_case
from conformance.child import resident_bytes
from conformance.errors import PortError, UsageError
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.runner import Runner

CHILD = Path(__file__).with_name("misbehaving_child.py")
RIGHT, FAULTY = "unet/tiny/batch1", "unet/tiny/base"
"""One sample, and two: the child misbehaves with two."""

FAULTS = {
    "hangs": ("error", "did not reply to run within 1 s"),
    "hangs, deaf to signals": ("error", "did not reply to run within 1 s"),
    "half a line, then hangs": ("error", "within 1 s; of a line came '{"),
    "half a line, then ends": ("error", "ended while it was asked for run (exit code 0)"),
    "crashes": ("error", "killed by SIGABRT"),
    "ends": ("error", "exit code 7); last on its standard error: out of luck"),
    "exits from Python": ("error", "SystemExit: 3"),
    "closes its output": ("error", "closed its standard output"),
    "a grandchild holds its output, then ends": ("error", "exit code 7"),
    "starts a process that stays": ("pass", ""),
    "floods standard error": ("pass", ""),
    "prints from below Python": ("pass", ""),
    "takes memory": ("error", "--memory allows 128 MiB"),
    "debug print": ("error", "more than one line in reply to run"),
    "two replies": ("error", "more than one line in reply to run"),
    "no object": ("error", "'[1]', which is no JSON object"),
    "no text": ("error", "which is no JSON object"),
    "endless line": ("error", "over 1048576 bytes"),
    "wrong id": ("error", "asked was"),
    "field missing": ("error", "the port's reply to run lacks the field 'outputs', a string"),
    "field too many": ("error", "the port's reply to run"),
    "file outside": ("error", "/etc/hostname, which is outside its scratch folder"),
    "file above": ("error", "which is outside its scratch folder"),
    "file is missing": ("error", "No such file"),
    "file is a link": ("error", "is no regular file"),
    "file is a pipe": ("error", "is no regular file"),
    "removes its scratch folder": ("error", "No such file"),
    "file cut short": ("error", "takes 8192 bytes, data_offsets are [0, 8192] of 8092 bytes"),
    "no safetensors": ("error", "is not safetensors"),
    "header length in big-endian order": ("error", "they are one in big-endian order"),
    "header without end": ("error", "is not safetensors"),
    "header is no object": ("error", "its header is no JSON object"),
    "unknown dtype": ("error", "dtype 'F33' is none of F64"),
    "wrong dtype": ("error", "output sample is float64, expected float32"),
    "wrong name": ("error", "output sample is missing; output image is none of this component"),
    "unasked probe": ("error", "returned probe 'conv_inn', which was not asked for"),
    "raises": ("error", "the port says of run: ValueError: no such luck second line (/"),
    "declines": ("skip", "not today"),
    "wrong shape": ("fail", "shape (2, 4, 15, 16)"),
    "NaN": ("fail", "sample"),
    "values in big-endian order": ("fail", "sample"),
}
"""What a child does, the verdict of that case, and what its message says."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the right outputs, by batch size."""
    path = tmp_path_factory.mktemp("answers") / "answers.npz"
    stored = [load_golden(find_case(name)).outputs["sample"] for name in (RIGHT, FAULTY)]
    np.savez(path, **{str(len(array)): array for array in stored})
    return path


@pytest.fixture
def child(answers: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes the port of a misbehaving child; all are ended afterwards."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ports = []

    def make(fault: str, memory: int = 128 << 20) -> ExecPort:
        port = ExecPort(f"{sys.executable} {CHILD} {answers} '{fault}'", Limits(memory=memory))
        ports.append(port)
        return port

    yield make
    for port in ports:
        port.close()


def alive(session: int) -> bool:
    """Say whether a process of a session lives, once its end has had a moment to be noticed."""
    deadline = time.monotonic() + 5
    while resident_bytes(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(resident_bytes(session))


@pytest.mark.parametrize(("fault", "expected"), FAULTS.items(), ids=FAULTS)
def test_costs_no_other_case(child, fault: str, expected: tuple[str, str]) -> None:
    """The case has its verdict, says why, and the next case of the same component passes."""
    port = child(fault)
    runner = Runner(port)
    assert runner.run(find_case(RIGHT), Execution()).verdict == "pass"
    session = port._child._process.pid
    port.limits = Limits(20 if fault == "takes memory" else 1, port.limits.memory)
    start = time.monotonic()
    result = runner.run(find_case(FAULTY), Execution())
    assert time.monotonic() - start < 20
    port.limits = Limits(memory=port.limits.memory)
    verdict, message = expected
    assert (result.verdict, message in result.message) == (verdict, True), result.message
    after = runner.run(find_case(RIGHT), Execution())
    assert after.verdict == "pass", after.message
    folder = port.folder()
    port.close()
    assert not folder.exists()
    assert not alive(session)


@pytest.mark.parametrize(
    ("fault", "message"), [("hello crashes", "SIGABRT"), ("hello lies", "field arithmetics")]
)
def test_no_greeting(child, fault: str, message: str) -> None:
    """Without a greeting there is no port, and after three it is not tried again."""
    port = child(fault)
    for _ in range(3):
        with pytest.raises(PortError, match=message):
            port.hello()
    with pytest.raises(PortError, match="not tried again"):
        port.hello()
    assert port.starts == 3


def test_hangs_are_not_endless(child) -> None:
    """A component that hangs every time is given up after three times."""
    port = child("hangs")
    runner = Runner(port)
    runner.run(find_case(RIGHT), Execution())
    port.limits = Limits(0.75, port.limits.memory)
    messages = [runner.run(find_case(FAULTY), Execution()).message for _ in range(4)]
    assert ["did not reply" in message for message in messages] == [True, True, True, False]
    assert "unet hung 3 times in a row" in messages[3]


def test_killed_where_it_does_not_end(child) -> None:
    """A child that goes on after `bye` is killed."""
    port = child("stays after bye")
    port.hello()
    session = port._child._process.pid
    assert port.end() is None
    assert not alive(session)


def test_ends_by_itself(child) -> None:
    """A child that ends after `bye` has its own exit code."""
    port = child("none")
    port.hello()
    assert port.end() == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "names no command"),
        ("no-such-program-anywhere", "is no program"),
        ("'unbalanced", "cannot be read"),
        (str(CHILD), "is no program"),
    ],
)
def test_no_program(command: str, message: str) -> None:
    """What cannot be started is bad usage."""
    if command == str(CHILD) and os.access(CHILD, os.X_OK):
        pytest.skip("the file is executable here")
    with pytest.raises(UsageError, match=message):
        ExecPort(command).hello()
