"""Seeds, threads and the switches that decide whether a run gives the same bits again.

Everything that sets one of them goes through this module, and whatever it sets it puts back, or
records. Torch is asked only where it is there; importing this module does not import it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.errors import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Values with which cuBLAS sums in one order."""

HASH_SEED = "PYTHONHASHSEED"

CHANGED: dict[str, str] = {}
"""Switches that the suite has set for good, by name: `True -> False`."""


@dataclass(frozen=True)
class Switch:
    """A setting of torch that changes how numbers are rounded, or whether that repeats.

    Attributes:
        name: As a run's environment has it.
        wanted: What it may be in a run that is to repeat; the first is what `reproducible` sets.
        read: Gets its value, given torch.
        write: Sets it, given torch and a value; None where another switch sets it too.
        cuda: It means something only where there is a CUDA device.
    """

    name: str
    wanted: tuple[Any, ...]
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None] | None = None
    cuda: bool = False


@dataclass(frozen=True)
class Deviation:
    """What keeps a run from repeating.

    Attributes:
        name: The setting.
        found: What it is.
        wanted: What it should be.
    """

    name: str
    found: str
    wanted: str

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{self.name} is {self.found}, should be {self.wanted}"


def _attribute(path: str) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
    """Return what reads and what sets an attribute of torch, `backends.cudnn.benchmark`."""
    *owners, name = path.split(".")

    def owner(torch: Any) -> Any:
        for part in owners:
            torch = getattr(torch, part)
        return torch

    return (
        lambda torch: getattr(owner(torch), name),
        lambda torch, value: setattr(owner(torch), name, value),
    )


def _flushes_denormals(torch: Any) -> bool:
    """Say whether the smallest float64 becomes zero when it is computed with."""
    smallest = torch.full((1,), 5e-324, dtype=torch.float64)
    return not bool((smallest * 1.0).view(torch.int64).item())


_EXACT = ("ieee", "none")
_SUMS = "backends.cuda.matmul.allow_{}_reduced_precision_reduction"

SWITCHES = (
    Switch(
        "default dtype",
        ("torch.float32",),
        lambda torch: str(torch.get_default_dtype()),
        lambda torch, name: torch.set_default_dtype(getattr(torch, name.partition(".")[2])),
    ),
    Switch(
        "deterministic",
        (True,),
        lambda torch: torch.are_deterministic_algorithms_enabled(),
        lambda torch, on: torch.use_deterministic_algorithms(on),
    ),
    Switch(
        "denormals flushed",
        (False,),
        _flushes_denormals,
        lambda torch, on: torch.set_flush_denormal(on),
    ),
    # The older switch comes first: setting it sets some of the newer ones too.
    Switch(
        "float32 matmul precision",
        ("highest",),
        lambda torch: torch.get_float32_matmul_precision(),
        lambda torch, value: torch.set_float32_matmul_precision(value),
    ),
    Switch("fp32 precision", _EXACT, *_attribute("backends.fp32_precision")),
    Switch("onednn matmul precision", _EXACT, *_attribute("backends.mkldnn.matmul.fp32_precision")),
    Switch("onednn conv precision", _EXACT, *_attribute("backends.mkldnn.conv.fp32_precision")),
    Switch("cudnn benchmark", (False,), *_attribute("backends.cudnn.benchmark"), cuda=True),
    Switch("cudnn deterministic", (True,), *_attribute("backends.cudnn.deterministic"), cuda=True),
    Switch("tf32 cudnn", (False,), *_attribute("backends.cudnn.allow_tf32"), cuda=True),
    Switch(
        "tf32 matmul", (False,), _attribute("backends.cuda.matmul.allow_tf32")[0], None, cuda=True
    ),
    *(
        Switch(
            f"{kind} reduced-precision sums",
            (False, (False, False), (False, True)),
            *_attribute(_SUMS.format(kind)),
            cuda=True,
        )
        for kind in ("fp16", "bf16")
    ),
    Switch(
        "fp16 accumulation",
        (False,),
        *_attribute("backends.cuda.matmul.allow_fp16_accumulation"),
        cuda=True,
    ),
)
"""In the order in which they are set and put back."""


def has_cuda(torch: Any) -> bool:
    """Say whether torch sees a CUDA device; False without torch, or where its driver is broken."""
    try:
        return bool(torch.cuda.is_available())
    except Exception:  # noqa: BLE001 - torch raises anything where a driver is broken
        return False


def _value(switch: Switch, torch: Any) -> Any:
    """Read a switch; None where this torch has none, or cannot say."""
    try:
        return switch.read(torch)
    except Exception:  # noqa: BLE001 - older versions lack some; mixed settings raise
        return None


def check(seed: int | None = None) -> list[Deviation]:
    """Return what differs from what a run needs to give the same bits again on this machine.

    Args:
        seed: The generators must stand at the beginning of this seed; None asks nothing of them.

    Returns:
        One entry a setting, in a fixed order; torch's only where it has been imported, CUDA's only
        where there is a device.
    """
    torch = sys.modules.get("torch")
    cuda = has_cuda(torch)
    found = []
    if not os.environ.get(HASH_SEED, "").isdigit():
        text = os.environ.get(HASH_SEED) or "not set"
        found.append(Deviation(HASH_SEED, text, "a number, set before Python starts"))
    if cuda and os.environ.get(WORKSPACE) not in WORKSPACES:
        wanted = f"{' or '.join(WORKSPACES)}, set before CUDA is initialised"
        found.append(Deviation(WORKSPACE, os.environ.get(WORKSPACE) or "not set", wanted))
    for switch in SWITCHES if torch else ():
        value = _value(switch, torch)
        if (cuda or not switch.cuda) and value is not None and value not in switch.wanted:
            found.append(Deviation(switch.name, str(value), str(switch.wanted[0])))
    if seed is not None:
        found += [
            Deviation(f"seed of {name}", "another, or numbers were drawn", str(seed))
            for name, stands in _stand_at(seed, torch)
            if not stands
        ]
    return found


def _stand_at(seed: int, torch: Any) -> Iterator[tuple[str, bool]]:
    """Yield each generator of the process, and whether it has just been given a seed."""
    yield "python", random.getstate() == random.Random(seed).getstate()  # noqa: S311
    now, new = np.random.get_state(), np.random.RandomState(seed).get_state()  # noqa: NPY002
    yield "numpy", all(np.array_equal(a, b) for a, b in zip(now, new, strict=True))
    if torch:
        state = torch.Generator().manual_seed(seed).get_state()
        yield "torch", bool(torch.equal(torch.get_rng_state(), state))
    if has_cuda(torch) and torch.cuda.is_initialized():
        yield "cuda", torch.cuda.initial_seed() == seed


@contextmanager
def reproducible(seed: int = 0, threads: int | None = None) -> Iterator[None]:
    """Let what runs inside the block give the same bits again, and put everything back after it.

    Args:
        seed: Of Python's, NumPy's and torch's generators, CUDA's among them.
        threads: Of torch; None leaves their number. Another number may give other bits.

    Yields:
        Nothing. `check(seed)` is empty inside, but for what is read when a process starts:
        `PYTHONHASHSEED`.

    Raises:
        UsageError: CUDA has been initialised without `CUBLAS_WORKSPACE_CONFIG`.
    """
    with ExitStack() as stack:
        stack.enter_context(_workspace())
        stack.enter_context(_seeded(seed))
        if importlib.util.find_spec("torch"):
            torch = importlib.import_module("torch")
            stack.enter_context(_switched(torch))
            if threads is not None:
                stack.enter_context(thread_count(threads))
        yield


@contextmanager
def _workspace() -> Iterator[None]:
    """Let cuBLAS sum in one order, if there is a CUDA device to be initialised yet."""
    torch = sys.modules.get("torch")
    before = os.environ.get(WORKSPACE)
    if before in WORKSPACES:
        yield
        return
    if has_cuda(torch) and torch is not None and torch.cuda.is_initialized():
        message = (
            f"{WORKSPACE} is {before or 'not set'} and CUDA is initialised: set it to "
            f"{WORKSPACES[0]} before the process starts"
        )
        raise UsageError(message)
    os.environ[WORKSPACE] = WORKSPACES[0]
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = before


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every generator of the process, and let each go on afterwards where it was."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    own = torch.get_rng_state() if torch else None
    cuda = torch.cuda.get_rng_state_all() if torch and has_cuda(torch) else None
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - ports may draw from it
    if torch:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch:
            torch.set_rng_state(own)
        if torch and cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _switched(torch: Any) -> Iterator[None]:
    """Give every switch the value of a reproducible run, and put all of them back."""
    before = [(switch, _value(switch, torch)) for switch in SWITCHES]
    try:
        for switch, value in before:
            if value is not None:
                _set(switch, torch, switch.wanted[0], unless=switch.wanted)
        yield
    finally:
        for switch, value in before:
            if value is not None:
                _set(switch, torch, value, unless=(value,))


def _set(switch: Switch, torch: Any, value: Any, unless: tuple[Any, ...]) -> None:
    if switch.write is not None and _value(switch, torch) not in unless:
        switch.write(torch, value)


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_GRADIENTS: ContextVar[bool] = ContextVar("gradients", default=False)


@contextmanager
def gradient_mode() -> Iterator[None]:
    """Let an adapter call a network with grad mode off, unless `state` turns it on.

    Weights need no gradients in either: nothing is recorded, but code that asks can tell.
    """
    with importlib.import_module("torch").set_grad_enabled(_GRADIENTS.get()):
        yield


@contextmanager
def state(default_dtype: str, *, gradients: bool) -> Iterator[None]:
    """Let a port run in another state of torch than it would expect.

    Args:
        default_dtype: `float32`, `float64`, `float16`.
        gradients: Whether grad mode is on, for callers of the port and inside adapters.
    """
    torch = importlib.import_module("torch")
    before = torch.get_default_dtype()
    token = _GRADIENTS.set(gradients)
    torch.set_default_dtype(getattr(torch, default_dtype))
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        torch.set_default_dtype(before)
        _GRADIENTS.reset(token)


def float32_is_float32() -> None:
    """Turn off TF32 in cuDNN, which torch turns on by default, and record that it was on.

    A port that turns it on while it builds its networks keeps it: it is judged as it is.
    """
    cudnn = importlib.import_module("torch").backends.cudnn
    if cudnn.allow_tf32:
        cudnn.allow_tf32 = False
        CHANGED["tf32 cudnn"] = "True -> False"
