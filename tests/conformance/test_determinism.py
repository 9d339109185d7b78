"""Seeds, switches, threads: what keeps a run from repeating is named; what is set is put back."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance import determinism
from conformance.determinism import (
    CHANGED,
    HASH_SEED,
    SWITCHES,
    WORKSPACE,
    check,
    float32_is_float32,
    gradient_mode,
    reproducible,
    state,
    thread_count,
)
from conformance.environment import environment
from conformance.errors import UsageError
from conformance.execution import STABILITY

OFF = {
    "default dtype": "torch.float64",
    "deterministic": False,
    "denormals flushed": True,
    "float32 matmul precision": "medium",
    "fp32 precision": "tf32",
    "onednn matmul precision": "bf16",
    "onednn conv precision": "bf16",
}
"""Values that a run which repeats must not have."""


def values() -> dict[str, object]:
    """Read every switch."""
    return {switch.name: determinism._value(switch, torch) for switch in SWITCHES}


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    """Give every switch a good value, and put back what tests change."""
    before = values()
    monkeypatch.setenv(HASH_SEED, "0")
    torch.use_deterministic_algorithms(mode=True)
    yield
    for switch in reversed(SWITCHES):  # the oldest cannot be read while others contradict it
        if switch.write and determinism._value(switch, torch) != before[switch.name]:
            switch.write(torch, before[switch.name])


def named() -> list[str]:
    """Return the names of what deviates."""
    return [deviation.name for deviation in check()]


@pytest.mark.parametrize("name", OFF)
def test_a_switch_that_is_off_is_named(name: str) -> None:
    """Each setting alone is found, with what it is and what it should be."""
    assert check() == []
    switch = next(switch for switch in SWITCHES if switch.name == name)
    switch.write(torch, OFF[name])
    found = {deviation.name: deviation for deviation in check()}
    assert (found[name].found, found[name].wanted) == (str(OFF[name]), str(switch.wanted[0]))
    assert str(found[name]) == f"{name} is {OFF[name]}, should be {switch.wanted[0]}"


def test_a_hash_seed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read when Python starts: only its absence can be told."""
    monkeypatch.setenv(HASH_SEED, "random")
    (deviation,) = check()
    assert str(deviation) == f"{HASH_SEED} is random, should be a number, set before Python starts"


def test_without_torch_nothing_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port without torch is not told about torch's settings."""
    torch.set_default_dtype(torch.float64)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        assert check() == []


@pytest.mark.parametrize("name", OFF)
def test_everything_is_put_back(name: str) -> None:
    """Inside the block all is well; after it every switch is what it was, after an error too."""
    next(switch for switch in SWITCHES if switch.name == name).write(torch, OFF[name])
    before = values()
    with reproducible(7):
        assert check(7) == []
    assert values() == before
    with pytest.raises(ZeroDivisionError), reproducible(7):
        raise ZeroDivisionError
    assert values() == before
    assert named() != []


def draws() -> list[float]:
    """Draw from every generator of the process."""
    return [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002, S311


def test_seeds() -> None:
    """One seed gives one sequence; afterwards every generator goes on where it was."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = [draws(), draws()]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert draws() == expected[0]
    with reproducible(5):
        inside = draws()
    with reproducible(5):
        assert draws() == inside
        stands = {deviation.name for deviation in check(5)}
    assert stands == {"seed of python", "seed of numpy", "seed of torch"}
    assert draws() == expected[1]


def test_threads() -> None:
    """Their number is set for a while."""
    before = torch.get_num_threads()
    with reproducible(threads=before + 1):
        assert torch.get_num_threads() == before + 1
    with thread_count(before + 2):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def with_cuda(*, initialised: bool) -> SimpleNamespace:
    """Stand in for torch on a machine with a GPU."""
    cuda = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: initialised)
    return SimpleNamespace(cuda=cuda)


def test_the_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be set before CUDA is initialised: the check says so, and it is too late after."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", with_cuda(initialised=True))
        (deviation,) = check()
        assert deviation.name == WORKSPACE
        assert deviation.wanted == ":4096:8 or :16:8, set before CUDA is initialised"
        with pytest.raises(UsageError, match="set it to :4096:8 before the process starts"):
            reproducible().__enter__()
        patch.setitem(sys.modules, "torch", with_cuda(initialised=False))
        with determinism._workspace():
            assert os.environ[WORKSPACE] == ":4096:8"
        assert WORKSPACE not in os.environ
        patch.setenv(WORKSPACE, ":16:8")
        with determinism._workspace():
            assert check() == []


def test_another_state() -> None:
    """Default dtype and grad mode are changed for a port, adapters included, and put back."""
    with gradient_mode():
        assert not torch.is_grad_enabled()
    with state("float16", gradients=True):
        assert torch.get_default_dtype() is torch.float16
        with torch.no_grad(), gradient_mode():
            assert torch.is_grad_enabled()
    with state("float64", gradients=False):
        assert not torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/determinism.md shows runs, and it knows every mode and setting of the process."""
    page = (Path(__file__).parents[2] / "docs" / "determinism.md").read_text(encoding="utf-8")
    torch.set_default_dtype(torch.float64)
    before = torch.get_num_threads()
    exec(page.partition("```python\n")[2].partition("```")[0], {})  # noqa: S102 - our own page
    assert capsys.readouterr().out == "default dtype is torch.float64, should be torch.float32\n"
    assert torch.get_num_threads() == before
    assert all(f"| `{name}` |" in page for name in (*STABILITY, HASH_SEED))


def test_float32_is_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is turned off in cuDNN for good, once, and results say that the suite did it."""
    monkeypatch.delitem(CHANGED, "tf32 cudnn", raising=False)
    torch.backends.cudnn.allow_tf32 = False
    float32_is_float32()
    assert "set by the suite" not in environment()
    torch.backends.cudnn.allow_tf32 = True
    float32_is_float32()
    assert torch.backends.cudnn.allow_tf32 is False
    assert environment()["set by the suite"] == "tf32 cudnn True -> False"


def test_results_record_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every switch that means something on a CPU is a fact of a run, and so are the variables."""
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    torch.set_default_dtype(torch.float64)
    facts = environment()
    expected = {switch.name: str(switch.read(torch)) for switch in SWITCHES if not switch.cuda}
    expected |= {HASH_SEED: "0", "LC_ALL": "C.UTF-8", "gradients": "True"}
    expected |= {"default dtype": "torch.float64", "sdpa kernels": "flash, efficient, math, cudnn"}
    assert {name: facts.get(name) for name in expected} == expected
