"""What a mutant is: one wrong choice, made in `sd1_impl` from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from conformance.adapters.torch_module import TorchPort
from conformance.execution import MEMORY, SDPA

SIZES = ("catastrophic", "visible", "subtle", "dormant", "none")
"""What a person sees of it in a picture; `none` for what is right, if computed in another way."""

EVIDENCE = {
    "R": "reported, fixed or measured in public",
    "C": "read in the source of a port",
    "I": "inferred from the architecture or from neighbouring bugs",
    "own": "chosen by this project to be as quiet as possible",
    "fix": "a correction that would itself be wrong",
    "null": "another lawful way to compute the same",
}


class Patch:
    """Changes of Python objects that can be taken back."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any, bool]] = []

    def setattr(self, owner: Any, name: str, value: Any) -> None:
        """Give an attribute that exists another value.

        Args:
            owner: Class, module or instance.
            name: Its attribute.
            value: What it is until `undo`.

        Raises:
            AttributeError: There is no such attribute: the mutant would change nothing.
        """
        plain = getattr(owner, name)
        own = vars(owner)
        self._before.append((owner, name, own.get(name, plain), name in own))
        setattr(owner, name, value)

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Give an attribute the value `make(what it was)`."""
        self.setattr(owner, name, make(getattr(owner, name)))

    def undo(self) -> None:
        """Take every change back, the last first."""
        while self._before:
            owner, name, value, own = self._before.pop()
            if own:
                setattr(owner, name, value)
            else:
                delattr(owner, name)


Change = Callable[[Patch], None]


def wrapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Change:
    """Return what puts `make(what it was)` in the place of a method, or a module's function."""
    return lambda patch: patch.wrap(owner, name, make)


def replaced(owner: Any, name: str, other: Any) -> Change:
    """Return what puts another function in the place of one."""
    return lambda patch: patch.setattr(owner, name, other)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A deliberately wrong port: `sd1_impl` with one wrong choice.

    Attributes:
        id: Its name in the catalogue.
        component: The component whose cases hunt it.
        wrong: What is wrong, in one sentence.
        seen: Where it was seen: issues, commits, files; empty for the project's own.
        evidence: A key of `EVIDENCE`.
        size: One of `SIZES`.
        cases: The cases that hunt it, `tiny-lowvar/base`, the one that shows it best first.
        module: Spoils a built network of `sd1_impl`; its weights are its own. For networks, and
            for pipelines, whose module is a ModuleDict of `text_encoder`, `unet` and `vae`.
        patch: Changes code of `sd1_impl` or of its adapter for as long as the mutant lives.
        port: Makes the port that is spoiled, where it is not plainly sd1_impl's: one whose weights
            travel through files, which alone is a null mutant.
        dtype: The arithmetic in which it must die.
        backend: The backend in which it must die, where that is not the port's own.
        refuses: It ends in an exception, which kills it: the row says crash.
        dormant: It has no effect on the shapes and settings of stock SD v1.
        gpu: It needs a CUDA device.
        modes: In which it is hunted; none for trace mode, and splice mode where there is one. A
            wrong port that is right in one run has one stability mode, in which it must die; one
            that holds too much has mode `memory`.
    """

    id: str
    component: str
    wrong: str
    cases: tuple[str, ...]
    seen: str = ""
    evidence: str = "own"
    size: str = "subtle"
    module: Callable[[Any], None] | None = None
    patch: Change | None = None
    port: Callable[[], TorchPort] | None = None
    dtype: str = "float32"
    backend: str = SDPA
    refuses: bool = False
    dormant: bool = False
    gpu: bool = False
    modes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        changes = (self.module is not None) + (self.patch is not None)
        if changes != 1 and not (changes == 0 and self.null and self.port):
            raise ValueError(f"mutant {self.id} needs a module or a patch, and not both")
        if self.size not in SIZES or self.evidence not in EVIDENCE or not self.cases:
            raise ValueError(f"mutant {self.id}: size, evidence or cases are not as documented")

    @property
    def null(self) -> bool:
        """Whether it computes the same in another lawful way, and so must survive."""
        return self.evidence == "null"

    @property
    def unstable(self) -> bool:
        """Whether one run computes what is right: it is wrong in a stability mode, or in memory."""
        return bool(self.modes) and not self.null

    @property
    def heavy(self) -> bool:
        """Whether it is judged by what it holds, and not by what it computes."""
        return MEMORY in self.modes

    @property
    def case_ids(self) -> list[str]:
        """Return the ids of the cases that hunt it."""
        return [f"{self.component}/{case}" for case in self.cases]

    @contextmanager
    def living(self) -> Iterator[None]:
        """Let code that runs inside the block be wrong; networks are spoiled by `spoil`."""
        patch = Patch()
        try:
            if self.patch is not None:
                self.patch(patch)
            yield
        finally:
            patch.undo()

    def spoil(self, module: nn.Module | None) -> None:
        """Make a freshly built network wrong."""
        if self.module is not None:
            self.module(module)


@dataclass(frozen=True)
class NotRun:
    """A row of the catalogue that is no mutant here.

    Attributes:
        id: Its name in the catalogue.
        reason: Why it cannot be run, in one sentence.
    """

    id: str
    reason: str
