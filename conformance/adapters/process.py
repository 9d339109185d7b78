"""A port in a process of its own, in any language: `exec:COMMAND` (docs/protocol.md)."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import weakref
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import protocol
from conformance.adapters.process_component import ExecComponent
from conformance.child import Child, HungError, machine_memory
from conformance.command_files import require_files
from conformance.errors import PortError, RaisedError, UnsupportedError, UsageError
from conformance.execution import SDPA
from conformance.export import LAYOUTS, write_compvis
from conformance.port import Hello
from conformance.spec import ASSEMBLED, CHECKPOINT_FOLDERS, FOLDER_COMPONENTS
from sd1_weights.layouts import COMPVIS

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

PREFIX = "exec:"

TIMEOUT = 300.0
"""Seconds that a call may take."""

FIRST = 4
"""Loading, and the first run after it, may take so many times longer."""

PATIENCE = 3
"""So many times in a row a component may hang, or a port fail to start: then it is given up."""

_MEMORY_SHARE = 0.75


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        seconds: Longest time of a call; loading and the first run have `FIRST` times as long.
        memory: Bytes that it may hold; None for three quarters of the machine's.
        children: So many share the machine's memory, where none is given.
    """

    seconds: float = TIMEOUT
    memory: int | None = None
    children: int = 1

    @property
    def most(self) -> int:
        """Return how many bytes a child may hold."""
        return self.memory or int(_MEMORY_SHARE * machine_memory() / self.children)


class ExecPort:
    """A port behind the protocol. A child that fails is ended, and started anew when needed."""

    def __init__(self, command: str, limits: Limits | None = None) -> None:
        """Keep the command; it is started by the first question.

        Args:
            command: Program and arguments, as in a shell.
            limits: What it may use.

        Raises:
            UsageError: The command cannot be read.
        """
        try:
            self.command = shlex.split(command)
        except ValueError as error:
            message = f"exec: the command {command!r} cannot be read: {error}"
            raise UsageError(message) from error
        if not self.command:
            message = "exec: names no command: write exec:PROGRAM ARGUMENTS"
            raise UsageError(message)
        self.limits = limits or Limits()
        self.starts = 0
        self._failed_starts = 0
        self._hung: Counter[str] = Counter()
        self._ids = count(1)
        self._child: Child | None = None
        self._hello: Hello | None = None
        self._weights: tuple[Any, Path] | None = None
        self._folder: Path | None = None
        self._cleanup: Any = None
        self.loaded: dict[str, Any] | None = None

    def hello(self) -> Hello:
        """Say what the child offers; it is asked again whenever it was started anew."""
        if self._hello is None:
            self._start()
        assert self._hello is not None  # noqa: S101 - _start sets it or raises
        return self._hello

    def load(
        self,
        component: str,
        variant: Variant,
        weights: Weights,
        arithmetic: str,
        device: str,
        backend: str = SDPA,
    ) -> ExecComponent:
        """Hand the child the weights of a component; see `conformance.port.Port`."""
        hello = self.hello()
        path, layout = self._written(weights, hello)
        architecture = {
            folder: variant.architecture(FOLDER_COMPONENTS[folder])
            for folder in _folders(component, weights)
        }
        message = {
            "op": "load",
            "component": component,
            "variant": {"name": variant.name, "size": variant.size, "regime": variant.regime},
            "architecture": architecture,
            "weights": None if path is None else str(path),
            "layout": layout,
            "arithmetic": arithmetic,
            "device": device,
            **({} if backend == SDPA else {"backend": backend}),
        }
        loaded = ExecComponent(self, message)
        loaded.load()
        return loaded

    @property
    def is_alive(self) -> bool:
        """Whether the child runs."""
        return self._child is not None and self._child.alive

    def request(self, message: dict[str, Any], *, first: bool = False) -> dict[str, Any]:
        """Ask the child and return the `ok` of its reply, checked.

        Args:
            message: The request, without its id.
            first: Whether it is a load, or the first run after one.

        Raises:
            PortError: No reply that follows the schema; the child is dead then.
            RaisedError: The child says that the request failed.
            UnsupportedError: The child declines.
        """
        if not self.is_alive:
            self._start()
        assert self._child is not None  # noqa: S101 - _start sets it or raises
        return self._asked(self._child, message, FIRST if first else 1)

    def _asked(self, child: Child, message: dict[str, Any], times: int = 1) -> dict[str, Any]:
        op, number = message["op"], next(self._ids)
        try:
            reply = child.ask({"id": number, **message}, times * self.limits.seconds)
        except HungError as error:
            if times == 1:
                raise
            text = f"{error} ({times} times --timeout {self.limits.seconds:g}: what comes first)"
            raise HungError(text) from None
        try:
            _check_reply(reply, op, number)
        except PortError:
            child.kill()
            raise
        if "error" in reply:
            raised = RaisedError(f"the port says of {op}: {reply['error']}")
            raised.add_note(child.said)
            raise raised
        if "unsupported" in reply:
            raise UnsupportedError(reply["unsupported"])
        return dict(reply["ok"])

    def _start(self) -> None:
        """Start the child and greet it.

        Raises:
            UsageError: There is no such program, or it is to run a file that is not there.
            PortError: It does not say what it offers.
        """
        if self._failed_starts >= PATIENCE:
            message = f"the port failed to start {PATIENCE} times in a row: it is not tried again"
            raise PortError(message)
        if self._child is not None:
            self._child.kill()
        self.loaded = None
        if not self.starts:
            require_files(self.command)
        self._child = Child(self.command, self.limits.most)
        self.starts += 1
        greeting = {"op": "hello", "protocol": protocol.VERSION, "scratch": str(self.scratch())}
        try:
            offer = self._asked(self._child, greeting, FIRST)
            hello = Hello.of(offer, "the port's reply to hello")
        except UnsupportedError as error:
            self._failed_starts += 1
            self._child.kill()
            message = f"the port declines to say hello: {error}"
            raise PortError(message) from error
        except PortError:
            self._failed_starts += 1
            self._child.kill()
            raise
        self._failed_starts = 0
        if self._hello is not None and hello != self._hello:
            self._child.kill()
            message = "the port was started again and offers something else than before"
            raise PortError(message)
        self._hello = hello

    def folder(self) -> Path:
        """Return the folder of this port's files; it is removed when the port is closed."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="sd1-conformance-"))
            self._cleanup = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def scratch(self) -> Path:
        """Return the child's own folder, empty."""
        scratch = self.folder() / "scratch"
        if scratch.is_symlink() or scratch.is_file():
            scratch.unlink()
        scratch.mkdir(parents=True, exist_ok=True)
        for path in scratch.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return scratch

    def _written(self, weights: Weights, hello: Hello) -> tuple[Path | None, str | None]:
        """Write weights where the child can read them; those of the last load are kept."""
        if not len(weights):
            return None, None
        layout = next((name for name in hello.weights if name in LAYOUTS), None)
        if layout is None:
            message = (
                f"{hello.name} reads weights in layout {', '.join(hello.weights)} only: "
                f"the suite writes {', '.join(LAYOUTS)}"
            )
            raise UnsupportedError(message)
        key = (weights.component, weights.variant, weights.seed)
        if self._weights is None or self._weights[0] != key or not self._weights[1].exists():
            folder = self.folder() / "weights"
            shutil.rmtree(folder, ignore_errors=True)
            self._weights = None
            written = (
                write_compvis(weights, folder / "weights.safetensors")
                if layout == COMPVIS
                else weights.export(folder)
            )
            self._weights = (key, written)
        return self._weights[1], layout

    def count_hang(self, component: str, *, hung: bool) -> None:
        """Remember that a component hung once more, or that it did not."""
        self._hung[component] = self._hung[component] + 1 if hung else 0

    def require_patience(self, component: str) -> None:
        """Refuse to ask a component that hung every time.

        Raises:
            PortError: It did so `PATIENCE` times in a row.
        """
        if self._hung[component] >= PATIENCE:
            message = f"{component} hung {PATIENCE} times in a row: it is not asked again"
            raise PortError(message)

    def end(self) -> int | None:
        """Tell the child to end; what comes next starts it again.

        Returns:
            Its exit code; None where it had to be killed or never ran.
        """
        if self._child is None:
            return None
        self.loaded = None
        return self._child.close({"id": next(self._ids), "op": "bye"})

    def close(self) -> None:
        """End the child and remove all files."""
        self.end()
        if self._cleanup is not None:
            self._cleanup()
        self._folder = self._weights = self._cleanup = None


_REPLIES = {
    "hello": "offer",
    "load": "nothing",
    "run": "answer",
    "unload": "nothing",
    "bye": "nothing",
}


def _check_reply(reply: dict[str, Any], op: str, number: int) -> None:
    """Check that a reply follows the schema and answers this request.

    Raises:
        PortError: It does not.
    """
    what = f"the port's reply to {op}"
    protocol.check("reply", reply, what)
    if reply["id"] != number:
        told = f": {reply['error']}" if "error" in reply else ""
        message = f"{what} has id {reply['id']}, asked was {number}{told}"
        raise PortError(message)
    if "ok" in reply:
        protocol.check(_REPLIES.get(op, "nothing"), reply["ok"], what)


def _folders(component: str, weights: Weights) -> list[str]:
    """Return the folders of a checkpoint whose sizes a component needs."""
    if component in ASSEMBLED:
        return list(ASSEMBLED[component])
    return [CHECKPOINT_FOLDERS[component]] if len(weights) else []
