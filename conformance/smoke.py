"""A first look at a port: does its harness carry tensors and errors, before any mathematics?"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from conformance import protocol
from conformance.adapters.process import ExecPort
from conformance.case import Case, all_cases
from conformance.errors import ExitCode, PortError, RaisedError, SuiteError, UnsupportedError
from conformance.execution import Execution
from conformance.port import Port
from conformance.report.text import counted, number_text, one_line
from conformance.runner import Runner
from conformance.scenarios import BASE
from conformance.tensors import read_tensors, write_tensors
from conformance.tolerance import LIMIT
from conformance.variants import NO_VARIANT, Variant, Weights

OK, BROKEN, WRONG, SKIPPED = "ok", "broken", "wrong", "skip"
"""Of a check: as it should be; the harness is at fault; the mathematics is; not to be had."""

_LARGE = 25_000_000
"""Elements of the largest tensor that is sent: 100 MB of float32."""

BFLOAT16 = "bfloat16"
"""Comes back as it was sent, or as float32: NumPy has no such dtype."""

_MANY = 700
"""So many tensors in one file: as many as a UNet has probes."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: Of the check.
        verdict: `ok`, `broken`, `wrong` or `skip`.
        message: What was seen, in one line.
    """

    name: str
    verdict: str
    message: str


def smoke(port: Port) -> Iterator[Check]:
    """Check a port's harness, from the simplest to whole components.

    Args:
        port: In process, or in one of its own; that one is also asked to carry tensors of every
            kind, to go on after errors and to end.

    Yields:
        Checks. The first that is `broken` explains most that follow.
    """
    try:
        runner = Runner(port)
    except SuiteError as error:
        yield Check("hello", BROKEN, one_line(error))
        return
    hello = runner.hello
    runner.asks_for_age = False
    offers = ", ".join(hello.components) or "no component yet"
    yield Check("hello", OK, f"{hello.name} {hello.version}: {offers}")
    if isinstance(port, ExecPort):
        yield _checked("unknown component", lambda: _unknown_component(port))
        yield _checked("unknown request", lambda: _unknown_request(port))
        yield _checked("unreadable input", lambda: _unreadable_input(port))
        if hello.echo:
            for name, arrays in _parcels():
                yield _checked(f"echo: {name}", partial(_echo, port, arrays, name))
        else:
            text = "the port offers no component `echo` (`echo: true` in hello): not checked"
            yield Check("echo", SKIPPED, text)
    for case in _first_cases(runner):
        yield _component(runner, case)
    if isinstance(port, ExecPort):
        yield _checked("bye and restart", lambda: _restart(port))


def conclusion(checks: list[Check], port: str) -> tuple[str, ExitCode]:
    """Say what is to be mended first, the harness or the mathematics.

    Args:
        checks: All of them.
        port: The PORT argument.

    Returns:
        A sentence and the exit code: 3 for a harness that is broken, 1 for wrong numbers.
    """
    run = f"sd1-conformance run {shlex.quote(port)}"
    broken = [check.name for check in checks if check.verdict == BROKEN]
    wrong = [check.name for check in checks if check.verdict == WRONG]
    if broken:
        text = f"The harness is broken ({', '.join(broken)}): mend that before any mathematics."
        return text, ExitCode.BROKEN
    if wrong:
        text = (
            f"The harness is sound. The mathematics is wrong ({', '.join(wrong)}): "
            f"`{run}` names the layer."
        )
        return text, ExitCode.NONCONFORMANT
    computed = any("/" in check.name and check.verdict == OK for check in checks)
    what = ", and so is what was computed" if computed else "; nothing was computed yet"
    text = f"The harness is sound{what}. Next: `{run}`."
    return text, ExitCode.CONFORMANT


def _checked(name: str, check: Callable[[], str]) -> Check:
    """Run a check that says what it saw, or raises what is broken."""
    try:
        return Check(name, OK, check())
    except SuiteError as error:
        return Check(name, BROKEN, one_line(error))
    except Exception as error:  # noqa: BLE001 - the suite's own files may fail too
        return Check(name, BROKEN, f"{type(error).__name__}: {one_line(error)}")


_NOWHERE = Variant(NO_VARIANT, NO_VARIANT, "unit")
_UNKNOWN = "no-such-component"


def _unknown_component(port: ExecPort) -> str:
    """A component that nobody offers has to be refused."""
    weights = Weights(_UNKNOWN, _NOWHERE, {}, 1)
    try:
        port.load(_UNKNOWN, _NOWHERE, weights, "float32", "cpu")
    except (RaisedError, UnsupportedError) as error:
        return _survivor(port, f"refused: {one_line(error)}")
    message = f"it loads a component {_UNKNOWN!r}: an unknown one has to be an error"
    raise PortError(message)


def _unknown_request(port: ExecPort) -> str:
    try:
        port.request({"op": "no-such-request"})
    except RaisedError as error:
        return _survivor(port, f"refused: {one_line(error)}")
    message = "it carries out a request 'no-such-request': an unknown one has to be an error"
    raise PortError(message)


def _survivor(port: ExecPort, text: str) -> str:
    """Say that a child goes on after an error, or that it does not."""
    starts = port.starts
    port.request({"op": "unload"})
    if port.starts != starts:
        message = f"{text}; but then it ended: after an error it has to wait for the next line"
        raise PortError(message)
    return text


def _unreadable_input(port: ExecPort) -> str:
    """Inputs in a file that is not there have to be an error, and no end."""
    if port.hello().echo:
        _load_echo(port)
    try:
        _send(port, port.scratch() / "no-such-file.safetensors")
    except RaisedError as error:
        return _survivor(port, f"refused: {one_line(error)}")
    message = "it runs although the file of its inputs is missing"
    raise PortError(message)


def _load_echo(port: ExecPort) -> None:
    weights = Weights(protocol.ECHO, _NOWHERE, {}, 1)
    port.load(protocol.ECHO, _NOWHERE, weights, "int64", "cpu")


def _send(port: ExecPort, tensors: Path) -> dict[str, np.ndarray]:
    """Let the child run on the tensors of a file and return its outputs."""
    inputs: dict[str, object] = {"tensors": str(tensors), "strings": {}, "config": None}
    answer = port.request({"op": "run", "inputs": inputs, "probes": [], "replace": None})
    return read_tensors(Path(answer["outputs"]), tensors.parent)


def _parcels() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield what is sent there and back: names, and tensors in which every mistake shows."""
    yield "float32", {"x": np.arange(1, 7, dtype=np.float32).reshape(2, 3) / 3}
    numbers = np.array([0.0, -0.0, 1 / 3, -1.5, 65504.0, 6e-8, np.inf, -np.inf, np.nan])
    integers = np.array([0, 1, -1, 100, -128, 127])
    yield (
        "dtypes",
        {
            **{dtype: numbers.astype(dtype) for dtype in ("float64", "float32", "float16")},
            **{dtype: integers.astype(dtype) for dtype in ("int64", "int32", "int16", "int8")},
            "wide": np.array([2**53 + 1, -(2**62)], np.int64),
            "uint8": np.array([0, 1, 127, 128, 255], np.uint8),
            "bool": np.array([True, False, True]),
        },
    )
    shapes = [(), (1,), (0,), (3, 0, 2), (7,), (2, 3), (2, 3, 5), (2, 3, 4, 5), (2, 1, 3, 4, 5)]
    yield "shapes", {f"shape {shape}": _numbered(shape) for shape in shapes}
    names = ["down_blocks.0.attentions.1.to_out.0.input", "noise_pred#3", "0", "vae"]
    yield "names", {name: _numbered((i + 1,)) for i, name in enumerate(names)}
    yield BFLOAT16, {"x": np.array([1.0, -0.0, 1.0078125, 3e38, np.inf, -1e-38], np.float32)}
    yield f"{_MANY} tensors", {f"tensor.{i}": _numbered((i % 7, 3)) + i for i in range(_MANY)}
    yield "100 MB", {"large": np.arange(_LARGE, dtype=np.float32)}


def _numbered(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of that shape, all of whose elements differ."""
    count = int(np.prod(shape, dtype=np.int64))
    return (np.arange(count, dtype=np.float32) + 0.25).reshape(shape)


def _echo(port: ExecPort, arrays: dict[str, np.ndarray], name: str) -> str:
    _load_echo(port)
    path = port.scratch() / "inputs.safetensors"
    write_tensors(path, arrays, BFLOAT16 if name == BFLOAT16 else "")
    if name == BFLOAT16:
        arrays = read_tensors(path)
    returned = _send(port, path)
    port.scratch()
    if sorted(returned) != sorted(arrays):
        lost = sorted(set(arrays) - set(returned))
        added = sorted(set(returned) - set(arrays))
        message = f"tensors were lost: {lost[:3]}, or added: {added[:3]}"
        raise PortError(message)
    for key, sent in arrays.items():
        problem = _difference(sent, returned[key])
        if problem:
            message = f"{key!r} of {sent.dtype}, shape {sent.shape}: {problem}"
            raise PortError(message)
    count = len(arrays)
    size = sum(array.nbytes for array in arrays.values())
    return f"{counted(count, 'tensor')}, {size} bytes, the same bits"


def _difference(sent: np.ndarray, got: np.ndarray) -> str:
    """Say how a tensor changed on its way, or nothing."""
    if got.dtype != sent.dtype:
        return f"came back as {got.dtype}"
    if got.shape != sent.shape:
        return f"came back in shape {got.shape}"
    if np.array_equal(_bits(got), _bits(sent)):
        return ""
    for text, other in _suspects(sent):
        if np.array_equal(_bits(got), _bits(other)):
            return text
    differ = _bits(got) != _bits(sent)
    first = int(np.argmax(differ.ravel()))
    return (
        f"{int(differ.sum())} of {differ.size} elements differ, the first is element {first}: "
        f"{got.ravel()[first]} for {sent.ravel()[first]}"
    )


def _suspects(sent: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield mistakes that are often made, and what each would give back."""
    yield "its bytes are swapped: safetensors is little-endian", sent.byteswap()
    if sent.ndim > 1:
        columns = np.ascontiguousarray(sent.ravel(order="F").reshape(sent.shape))
        yield "it was written column by column (Fortran order): rows come first", columns
        rows = np.ascontiguousarray(sent.ravel().reshape(sent.shape, order="F"))
        yield "it was read column by column (Fortran order): rows come first", rows
        last = np.moveaxis(sent, 1, -1).reshape(sent.shape)
        yield "channels were moved to the end: say `layout: NHWC` in hello", last
    yield "all its elements are zero", np.zeros_like(sent)
    if sent.size > 1:
        yield (
            "it begins at the wrong byte of the file",
            np.roll(sent.ravel(), 1).reshape(sent.shape),
        )


def _bits(array: np.ndarray) -> np.ndarray:
    """Return the bits of an array: NaN equals itself, and 0 differs from -0."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _first_cases(runner: Runner) -> Iterator[Case]:
    """Yield for every component offered the case that a port does first."""
    known = all_cases()
    for component in runner.hello.components:
        own = [c for c in known if c.component == component and not c.refused]
        base = [c for c in own if c.scenario.name == BASE] or own
        if base:
            yield base[0]


def _component(runner: Runner, case: Case) -> Check:
    """Load and run one component."""
    dtype = runner.hello.arithmetics[0]
    execution = Execution(dtype, runner.hello.devices[0]).for_case(case)
    result = runner.run(case, execution)
    if result.verdict == "skip":
        return Check(case.id, SKIPPED, result.message)
    if result.verdict == "error":
        return Check(case.id, BROKEN, result.message)
    worst = result.worst
    ratio = "" if worst is None else f"worst ratio {number_text(worst.ratio)}, limit {LIMIT:g}"
    if result.verdict == "fail":
        return Check(case.id, WRONG, f"{ratio}; {result.message}")
    missing = f"; probes not handed out: {', '.join(result.missing[:_NAMED])}"
    return Check(case.id, OK, ratio + (missing if result.missing else ""))


_NAMED = 5


def _restart(port: ExecPort) -> str:
    """A child ends when it is told to, and can be started again."""
    before = port.hello()
    port.request({"op": "unload"})
    code = port.end()
    if code is None:
        message = "it does not end after `bye` and the end of its standard input: it was killed"
        raise PortError(message)
    if code != 0:
        message = f"it ends with exit code {code} after `bye`, not 0"
        raise PortError(message)
    port.request({"op": "unload"})  # starts it again
    return f"it ended by itself and {before.name} started again"
