"""What the author of a wrong port is told: the same words in process and served."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from conformance.adapters import serve
from conformance.adapters.callables import CallablePort
from conformance.case import find_case
from conformance.errors import PortError, SuiteError
from conformance.execution import Execution
from conformance.port import close, greet, resolve
from conformance.result import Result
from conformance.runner import Runner

SERVE = Path(serve.__file__)
CASE = find_case("block/time_embedding/tiny/base")

PORT = """\
import numpy as np

class Loaded:
    def __init__(self, weights):
        self.weights = dict(weights.items())

    def run(self, inputs, probes=(), replace=None):
        w = self.weights
        x = inputs["0"] @ w["linear_1.weight"].T + w["linear_1.bias"]
        x = x / (1 + np.exp(-x))
        x = x @ w["linear_2.weight"].T + w["linear_2.bias"]
        return {"out": x}, {}

class Port:
    def hello(self):
        return {"name": "p", "version": "1", "components": ["block/time_embedding"],
                "probes": False, "replace": False}

    def load(self, component, variant, weights, arithmetic, device):
        return Loaded(weights)

def factory():
    return Port()
"""
LOAD = "(self, component, variant, weights, arithmetic, device)"
RUN = "(self, inputs, probes=(), replace=None)"


class Wrong:
    """Writes a port with something replaced, and judges it in process or served."""

    def __init__(self, folder: Path, *, served: bool) -> None:
        self.path = folder / "p.py"
        self.served = served

    def write(self, before: str = "", after: str = "") -> str:
        """Write the port and return its PORT argument."""
        assert before in PORT
        self.path.write_text(PORT.replace(before, after, 1), "utf-8")
        spec = f"{self.path}:factory"
        return f"exec:{sys.executable} {SERVE} {spec}" if self.served else spec

    def judge(self, before: str = "", after: str = "", way: Execution | None = None) -> Result:
        """Run one case."""
        port = resolve(self.write(before, after))
        try:
            return Runner(port).run(CASE, way or Execution())
        finally:
            close(port)

    def refusal(self, before: str, after: str) -> SuiteError:
        """Return the error with which the port is refused."""
        spec = self.write(before, after)
        with pytest.raises(SuiteError) as raised:
            _greeted(spec)
        return raised.value


def _greeted(spec: str) -> None:
    port = resolve(spec)
    try:
        greet(port)
    finally:
        close(port)


@pytest.fixture(params=[False, True], ids=["in-process", "served"])
def wrong(tmp_path: Path, request: pytest.FixtureRequest) -> Wrong:
    """Judge wrong ports."""
    return Wrong(tmp_path, served=request.param)


def test_the_port_is_right(wrong: Wrong) -> None:
    """Without a mistake it passes."""
    assert wrong.judge().verdict == "pass"


SIGNATURES = {
    "load-narrow": (LOAD, "(self, component)", "load(self, component) has to be load{0}", 19),
    "load-without-self": (LOAD, LOAD.replace("self, ", ""), "device) has to be load{0}", 19),
    "load-more": (LOAD, LOAD[:-1] + ", *, size: int)", "*, size) has to be load{0}", 19),
    "run-narrow": (
        RUN,
        "(self, inputs: dict) -> tuple",
        "run(self, inputs) has to be run(self, inputs, probes, replace)",
        7,
    ),
}


@pytest.mark.parametrize(("own", "other", "told", "line"), SIGNATURES.values(), ids=SIGNATURES)
def test_signature(wrong: Wrong, own: str, other: str, told: str, line: int) -> None:
    """A method that cannot be called is named with what it takes, has to take, and where it is."""
    result = wrong.judge(own, other)
    assert result.verdict == "error"
    assert result.message.endswith(f"{told.format(LOAD)} ({wrong.path}:{line})")


ALLOWED = {
    "load-more": (LOAD, LOAD[:-1] + ", cache=None)"),
    "load-any": (f"{LOAD}:", "(self, *own, **how):\n        weights = own[2]"),
    "load-static": (f"def load{LOAD}", f"@staticmethod\n    def load{LOAD.replace('self, ', '')}"),
    "run-any": (RUN, "(self, inputs, *rest)"),
    "run-other-names": (RUN, "(self, inputs, watch, put_in, deep=1)"),
}


@pytest.mark.parametrize(("own", "other"), ALLOWED.values(), ids=ALLOWED)
def test_signatures_that_can_be_called(wrong: Wrong, own: str, other: str) -> None:
    """More arguments, if they need not be given, and other names are the port's own affair."""
    result = wrong.judge(own, other)
    assert result.verdict == "pass", result.message


SILU = "x = x / (1"
RAISING = {
    "own": (SILU, 'raise ValueError("no\\n luck")\n        x / (1', "ValueError: no luck", 10),
    "deeper": (SILU, "np.linalg.inv(x); x / (1", "LinAlgError: ", 10),
    "loading": ("return Loaded(w", "weights['no.bias']; Loaded(w", "KeyError: 'no.bias'", 20),
    "suite": ("return Loaded(w", "variant.architecture('no'); Loaded(w", "KeyError: 'no'", 20),
    "exit": (SILU, "raise SystemExit; x / (1", "SystemExit: without a message", 10),
}


@pytest.mark.parametrize(("own", "other", "told", "line"), RAISING.values(), ids=RAISING)
def test_raises(wrong: Wrong, own: str, other: str, told: str, line: int) -> None:
    """The port's own line is named, whoever raised below it, and the traceback is kept."""
    result = wrong.judge(own, other)
    assert result.verdict == "error"
    assert told in result.message
    assert result.message.endswith(f" ({wrong.path}:{line})")
    first, frame, code, *_, last = result.traceback.splitlines()
    assert first == "Traceback (most recent call last):"
    assert frame.startswith(f'  File "{wrong.path}", line {line}, in ')
    assert code.strip().startswith(other.partition("\n")[0])
    assert last.partition(":")[0].rpartition(".")[2] in told


def test_of_a_dead_child_its_last_lines_are_kept(tmp_path: Path) -> None:
    """What it wrote to standard error, of a port in whatever language."""
    served = Wrong(tmp_path, served=True)
    result = served.judge(SILU, "import sys, os; print('one\\ntwo'); os._exit(3); x / (1")
    assert result.message.endswith("(exit code 3); last on its standard error: two")
    assert result.traceback == "one\ntwo"


def test_the_console_says_where_the_traceback_is(main, tmp_path: Path) -> None:
    """The line of the case names the port's own line; results and page have the traceback."""
    own = Wrong(tmp_path, served=False)
    spec = own.write(SILU, "raise ValueError; x / (1")
    code, out, _ = main("run", spec, "-k", "base", "--out", tmp_path / "out")
    assert (code, "Traceback" in out) == (3, False)
    lines = [line.strip() for line in out.splitlines()]
    at = lines.index(f"the port raised ValueError: without a message ({own.path}:10)")
    assert lines[at + 1] == f"traceback: `traceback` of this case in {tmp_path}/out/results.jsonl"
    records = map(json.loads, (tmp_path / "out/results.jsonl").read_text("utf-8").splitlines())
    (line,) = (record for record in records if record["type"] == "case")
    assert f'File "{own.path}", line 10, in run\n    raise ValueError; x' in line["traceback"]
    assert "raise ValueError; x" in (tmp_path / "out/index.html").read_text("utf-8")


GREETINGS = {
    "hello-narrow": (
        "hello(self)",
        "hello(self, x)",
        "hello(self, x) has to be hello(self) ({0}:15)",
    ),
    "hello-without-self": ("hello(self)", "hello()", "hello() has to be hello(self) ({0}:15)"),
    "factory": ("factory()", "factory(size)", "factory(size) has to be factory() ({0}:22)"),
    "class": ("return Port()", "return Port", "is the class Port: return Port()"),
}


@pytest.mark.parametrize(("own", "other", "told"), GREETINGS.values(), ids=GREETINGS)
def test_greeting(wrong: Wrong, own: str, other: str, told: str) -> None:
    """So is a factory or a `hello` that cannot be called: exit 3, no port was made."""
    error = wrong.refusal(own, other)
    assert error.exit_code == 3
    assert told.format(wrong.path) in str(error)


def blind():
    """Take no inputs."""


def greedy(inputs, weights, see):
    """Take what nobody gives."""


def test_a_factory_that_exits(wrong: Wrong) -> None:
    """It ends the port, and nobody asks whether it is served who sees that it is."""
    error = wrong.refusal("return Port()", "raise SystemExit(0)")
    assert error.exit_code == 3
    assert "serve.py my_port.py:factory" not in str(error)
    told = "(exit code 0)" if wrong.served else f"SystemExit: 0 ({wrong.path}:23)"
    assert told in str(error)


FUNCTIONS = {
    "load": (lambda _: None, "load of unet: <lambda>(_) has to be <lambda>(variant, weights, "),
    "function": (lambda *_: blind, "function of unet: blind() has to be blind(inputs) ("),
    "seeing": (
        lambda *_: greedy,
        "function of unet: greedy(inputs, weights, see) has to be greedy(inputs, see=None) (",
    ),
}


@pytest.mark.parametrize(("load", "told"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_a_callable_port(load: object, told: str) -> None:
    """What a CallablePort is made of is checked too."""
    port = CallablePort("mine", "1", {"unet": load}, probes=False)
    result = Runner(port).run(find_case("unet/tiny/base"), Execution())
    assert (result.verdict, result.message.startswith(told)) == ("error", True), result.message
    assert f"({__file__}:" in result.message


def test_functions_of_a_torch_port() -> None:
    """So is what a TorchPort is made of."""
    pytest.importorskip("torch")
    from conformance.adapters.torch_module import TorchPort

    case = find_case("unet/tiny/base")
    for pair, told in (
        ((blind, lambda *_: {}), "build of unet: blind() has to be blind(variant)"),
        ((lambda _: None, blind), "call of unet: blind() has to be blind(module, tensors)"),
    ):
        result = Runner(TorchPort("mine", "1", {"unet": pair})).run(case, Execution())
        assert result.message.startswith(told)
    load = {"scheduler/ddim": lambda _: None}
    with pytest.raises(PortError, match=r"load of scheduler/ddim: <lambda>\(_\) has to be"):
        TorchPort("mine", "1", {}, others=load).load("scheduler/ddim", None, None, "float32", "cpu")
