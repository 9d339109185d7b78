"""Stability modes: right ports pass each, a port that is wrong in one way fails that one."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance import stability_processes
from conformance.case import find_case
from conformance.execution import STABILITY, Execution
from conformance.port import close, resolve
from conformance.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.result import Result

BLOCK = "block/time_embedding/tiny/base"
SERVE = Path(stability_processes.__file__).parent / "adapters" / "serve.py"


def run(port: object, mode: str, case_id: str = BLOCK, spec: str = "", **how: str) -> Result:
    """Judge one case of a port in one mode."""
    case = find_case(case_id)
    return Runner(port, port_spec=spec).run(case, Execution(mode=mode, **how).for_case(case))


CASES = {
    "sd1_impl": (
        *("unet/tiny/base", "text_encoder/tiny/batch3", "vae_decoder/tiny/base", BLOCK),
        *("scheduler/pndm/-/base", "scheduler/euler_ancestral/-/base"),
        "tokenizer/-/batch-short-and-too-long",
    ),
    "diffusers": (
        *("unet/tiny/base", "text_encoder/tiny/batch3", "vae_encoder/tiny/base"),
        *("scheduler/dpmpp_2m/-/base", "tokenizer/-/batch-short-and-too-long"),
    ),
}


@pytest.mark.parametrize("mode", [mode for mode in STABILITY if mode != "fresh"])
@pytest.mark.parametrize(
    ("port", "case_id"), [(port, case_id) for port, cases in CASES.items() for case_id in cases]
)
def test_a_right_port_is_stable(port: str, case_id: str, mode: str) -> None:
    """The model and the reference pass, each probe judged; the tokenizer has no threads."""
    pytest.importorskip(port)
    result = run(resolve(port), mode, case_id, port)
    if case_id.startswith("tokenizer") and mode == "threads":
        assert (result.verdict, result.records) == ("skip", [])
        return
    assert result.verdict == "pass", result.message
    assert result.item_id.endswith(f"-{mode}]")
    assert result.records


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [("bfloat16", "state"), ("bfloat16", "batch"), ("float64", "repeat"), ("float64", "batch")],
)
def test_other_arithmetics(mode: str, dtype: str) -> None:
    """Half precision counts in its own noise; in float64 the timestep embedding is supplied."""
    result = run(resolve("sd1_impl"), mode, "unet/tiny/base", dtype=dtype)
    assert result.verdict == "pass", result.message
    assert {"time_proj", "sample"} <= {record.name for record in result.records}


def test_pipelines_are_stable() -> None:
    """Both branches of guidance are told apart when samples move."""
    result = run(resolve("sd1_impl"), "batch", "pipeline/txt2img/tiny/ddim2")
    assert (result.verdict, "one sample" in result.message) == ("skip", True)
    result = run(resolve("sd1_impl"), "batch", "pipeline/img2img/tiny/strength1")
    assert result.verdict == "pass", result.message
    assert {"latents#1", "image"} <= {record.name for record in result.records}


@dataclass
class Wrong:
    """sd1_impl, but for what `change` does to its outputs; knows how often it was called."""

    change: Callable[[Wrong, dict[str, Any], dict[str, Any]], Any]
    right: Any = field(default_factory=lambda: resolve("sd1_impl"))
    calls: int = 0
    loads: int = 0
    last: Any = None
    component: Any = None
    offers: dict[str, Any] = field(default_factory=dict)

    def hello(self) -> Any:
        """Offer what sd1_impl offers."""
        return replace(self.right.hello(), name="wrong", **self.offers)

    def load(self, *arguments: Any) -> Wrong:
        """Load sd1_impl."""
        self.component = self.right.load(*arguments)
        self.loads += 1
        return self

    def run(self, inputs: Any, probes: Any = (), replace: Any = None) -> Any:
        """Change what it answers."""
        outputs, seen = self.component.run(inputs, probes, replace)
        self.calls += 1
        self.change(self, inputs, outputs)
        self.last = inputs
        return outputs, seen


def up(outputs: dict[str, Any], factor: float = 1 + 2**-22) -> None:
    """Move an output: by little, or by more than its noise."""
    outputs["out"] *= np.float32(factor)


def on_second_call(port, _, outputs):
    """Change what the second call returns."""
    if port.calls % 2 == 0:
        up(outputs)


def on_second_load(port, _, outputs):
    """Change what is computed after another load."""
    if port.loads > 1:
        up(outputs)


def after_others(port, inputs, outputs):
    """Change what is computed after other inputs."""
    if port.last is not None and not np.array_equal(port.last["0"], inputs["0"]):
        up(outputs)


def by_default_dtype(_, __, outputs):
    """Change what is computed with float64 by default."""
    if torch.get_default_dtype() is torch.float64:
        up(outputs)


def by_gradients(_, __, outputs):
    """Change what is computed while gradients are on."""
    if torch.is_grad_enabled():
        up(outputs)


def by_threads(_, __, outputs):
    """Lose a little with two threads."""
    if torch.get_num_threads() == 2:
        up(outputs, 1.001)


def by_batch(_, inputs, outputs):
    """Change a sample that is alone."""
    if len(inputs["0"]) == 1:
        up(outputs, 1.001)


def by_place(_, __, outputs):
    """Change the first sample of several."""
    if len(outputs["out"]) == 2:
        outputs["out"][0] *= np.float32(1.001)


def by_company(_, inputs, outputs):
    """Let the largest sample shift all, of more than two."""
    if len(inputs["0"]) > 2:
        outputs["out"] += outputs["out"].max(axis=0)


WRONG = {
    on_second_call: ("repeat", "the second call differs from the first"),
    on_second_load: ("repeat", "what is loaded once more differs from the first"),
    after_others: ("repeat", "depends on what was called before"),
    by_default_dtype: ("state", "depends on the default dtype (float64 for float32)"),
    by_gradients: ("state", "depends on the grad mode"),
    by_threads: ("threads", "two threads against one"),
    by_batch: ("batch", "sample 0 alone differs from the same in its batch"),
    by_place: ("batch", "sample "),
    by_company: ("batch", "sample 0 changes with the other samples"),
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_a_wrong_port_fails(change, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure names the first row that differs and what was changed."""
    mode, cause = WRONG[change]
    monkeypatch.setattr(sys.modules[__name__], "torch", torch)  # by which its threads are known
    result = run(Wrong(change), mode)
    first = result.first_divergence
    assert result.verdict == "fail", result.message
    assert (first["probe"], first["kind"], first["after"]) == ("out", "fault", "linear_2")
    assert first["hint"].startswith(cause)
    assert re.search(r"\d of (128|256) elements differ", first["hint"])
    assert cause in result.message
    if mode in {"repeat", "state"}:
        assert "ulp" in first["hint"]
        assert "times the noise" in first["hint"]
        assert [record.ratio for record in result.records] == [0, 0, float("inf")]


def test_a_failure_to_repeat_names_settings() -> None:
    """What this process lacks of a reproducible run stands below the message."""
    detail = run(Wrong(on_second_call), "repeat").detail
    assert "deterministic is False, should be True" in detail


@pytest.mark.parametrize("change", [on_second_call, by_batch, by_threads])
def test_other_modes_do_not_see_it(change) -> None:
    """A trace takes such a port for right: the mode is needed."""
    assert run(Wrong(change, offers={"probes": False, "replace": False}), "trace").verdict == "pass"


def test_inputs_are_left_alone() -> None:
    """A port that writes into its inputs is an error in every mode."""

    def write(_, inputs, __):
        inputs["0"][:] = 0

    result = run(Wrong(write), "repeat")
    assert result.verdict == "error"
    assert "changed its input" in result.message


def test_a_buffer_that_is_used_again() -> None:
    """What a port hands out is copied: writing into it later hides nothing."""
    kept: dict[str, Any] = {}

    def reuse(port, _, outputs):
        array = kept.setdefault("out", outputs["out"])
        array[...] = outputs["out"] * np.float32(1 + port.calls * 2**-20)
        outputs["out"] = array

    assert run(Wrong(reuse), "repeat").verdict == "fail"


@pytest.mark.parametrize(
    ("mode", "case_id", "offers", "reason"),
    [
        ("batch", "unet/tiny/batch1", {}, "has one sample"),
        ("batch", BLOCK, {"shapes": {"block/time_embedding": {"0": [[2, None]]}}}, "takes 0 of"),
        ("fresh", BLOCK, {}, "needs the PORT argument"),
        ("repeat", "scheduler/pndm/-/steps1", {}, "the reference computes nothing here"),
        ("threads", BLOCK, {"arithmetics": ("float64",)}, "does not offer arithmetic float32"),
    ],
)
def test_skips_say_why(mode: str, case_id: str, offers: dict[str, Any], reason: str) -> None:
    """Where a mode says nothing of a case or port, that is a skip with its reason."""
    result = run(Wrong(lambda *_: None, offers=offers), mode, case_id)
    assert (result.verdict, result.records) == ("skip", [])
    assert reason in result.message


def test_float64_without_replace_is_not_judged_by_an_island() -> None:
    """A float32 timestep embedding would be judged alone; bits can be compared all the same."""
    port = Wrong(lambda *_: None, offers={"replace": False})
    result = run(port, "batch", "unet/tiny/base", dtype="float64")
    assert (result.verdict, "timestep embedding" in result.message) == ("skip", True)
    assert run(port, "repeat", "unet/tiny/base", dtype="float64").verdict == "pass"


NUMPY = '''
"""A time embedding in NumPy; each factory is wrong in one way, but `right`."""
import os
from pathlib import Path

import numpy as np

COUNT = Path(__file__).with_suffix(".starts")


class Port:
    def __init__(self, wrong=lambda: False):
        self.wrong = wrong

    def hello(self):
        names = ("block/time_embedding", "tokenizer")
        return {"name": "numpy", "version": "1", "components": list(names), "probes": False,
                "replace": False}

    def load(self, component, variant, weights, arithmetic, device, **_):
        self.weights = {name: weights[name] for name in weights}
        return self

    def linear(self, name, x):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def run(self, inputs, probes=(), replace=None):
        x = self.linear("linear_1", inputs["0"])
        out = self.linear("linear_2", x / (1 + np.exp(-x)))
        return {"out": out * np.float32(1.001) if self.wrong() else out}, {}


right = Port
hashed = lambda: Port(lambda: hash("an order") % 2 == 0)
here = lambda: Port(lambda: os.environ.get("LC_ALL") == "C.UTF-8")
threaded = lambda: Port(lambda: os.environ.get("OMP_NUM_THREADS") == "2")


def first():
    """Be right here and in the first new process alone."""
    starts = COUNT.read_text() if COUNT.exists() else ""
    COUNT.write_text(starts + "x")
    return Port(lambda: len(starts) > 1)
'''


@pytest.fixture
def numpy_port(tmp_path: Path):
    """Write a port without torch; return a function that runs it, here or in a process."""
    path = tmp_path / "numpy_port.py"
    path.write_text(NUMPY, "utf-8")

    def judge(factory: str, mode: str, *, inside: bool) -> Result:
        spec = f"{path}:{factory}"
        spec = spec if inside else f"exec:{sys.executable} {SERVE} {spec}"
        port = resolve(spec)
        try:
            return run(port, mode, spec=spec)
        finally:
            close(port)

    yield judge
    stability_processes.end_processes()


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "exec"])
@pytest.mark.parametrize("mode", STABILITY)
def test_a_port_without_torch(numpy_port, mode: str, inside: bool) -> None:  # noqa: FBT001
    """It passes, in processes with other variables too; what it has no state of is a skip."""
    result = numpy_port("right", mode, inside=inside)
    if mode == "state" and not inside:
        assert (result.verdict, "process of its own" in result.message) == ("skip", True)
        return
    assert result.verdict == "pass", result.message
    assert [record.name for record in result.records] == ["out"]


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "exec"])
@pytest.mark.parametrize(
    ("factory", "mode", "cause"),
    [
        ("hashed", "fresh", "depends on PYTHONHASHSEED"),
        ("here", "fresh", "depends on the locale (LC_ALL)"),
        ("first", "fresh", "two processes of the same variables differ"),
        ("threaded", "threads", "two threads against one"),
    ],
)
def test_a_port_that_depends_on_variables(
    numpy_port,
    factory: str,
    mode: str,
    cause: str,
    inside: bool,  # noqa: FBT001
) -> None:
    """A process of its own, or another one of a port that lives here, tells which variable."""
    result = numpy_port(factory, mode, inside=inside)
    assert result.verdict == "fail", result.message
    assert result.first_divergence["hint"].startswith(cause)


def test_processes_are_started_once(numpy_port) -> None:
    """They serve every case of a port, and make room for those of another."""
    kept = []
    for factory in ("right", "right", "hashed"):
        numpy_port(factory, "threads", inside=False)
        kept.append(dict(stability_processes._started))
    first, second, other = kept
    assert [runner.port.starts for runner in first.values()] == [1, 1]
    assert first == second
    assert len(other) == 2
    assert not any(runner.port.is_alive for runner in first.values())


def test_new_processes_of_the_model() -> None:
    """The model is the same in two new processes of other variables."""
    result = run(resolve("sd1_impl"), "fresh", spec="sd1_impl")
    stability_processes.end_processes()
    assert result.verdict == "pass", result.message
    assert [record.name for record in result.records] == ["linear_1", "linear_2", "out"]
