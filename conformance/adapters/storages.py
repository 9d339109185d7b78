"""Bytes of tensor storage that are alive: counted as operations make them and let them go."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from conformance.adapters.hooks import first_tensor
from conformance.memory.footprint import Footprint

BACKWARD = "backward"
"""Where no module of a forward pass runs: autograd's own sums."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument or a result, whatever holds them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))


class StorageTracker(TorchDispatchMode):
    """Counts the storages that operations make, until nobody holds them any longer.

    A view shares its storage, and an operation in place makes none. One that is resized counts
    with its new size. What a kernel needs while it runs, and no tensor holds, is not seen.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        """Take what is not counted: weights, held by whoever calls."""
        super().__init__()
        storages = [tensor.untyped_storage() for tensor in weights]
        self._weights = {storage._cdata: storage for storage in storages}  # noqa: SLF001
        self.weights = sum(storage.nbytes() for storage in self._weights.values())
        self.live = self.peak = 0
        self.at = self.where = ""
        self.blocks: dict[str, int] = {}
        self._inside: list[str] = []
        self._backward = ""
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self.count(tensor)
        self._note(str(func.overloadpacket))
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now on; those of the meta device hold nothing."""
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - equal for all its tensors
        if key in self._weights:
            return
        reference, before = self._alive.get(key, (None, 0))
        if reference is None:
            reference = weakref.ref(storage, partial(self._gone, key))
        self._alive[key] = reference, size
        self.live += size - before

    def _gone(self, key: int, _: object) -> None:
        self.live -= self._alive.pop(key)[1]

    def _note(self, operation: str) -> None:
        """Keep the most that was alive, whole and in the named blocks that run."""
        if self.live > self.peak:
            self.peak, self.at = self.live, operation
            self.where = self._inside[-1] if self._inside else self._backward
        for name in self._inside:
            if self.live > self.blocks.get(name, self.live):
                self.blocks[name] = self.live

    @contextmanager
    def watching(
        self, module: nn.Module, names: Mapping[str, str], blocks: Iterable[str]
    ) -> Iterator[None]:
        """Know which module runs.

        Args:
            module: The network.
            names: By path of a module its canonical name; modules that have none are left out.
            blocks: The canonical names of which the most is kept.
        """
        own = {*blocks}
        handles: list[RemovableHandle] = []
        for path, part in module.named_modules():
            name = names.get(path)
            if name:
                handles += [
                    part.register_forward_pre_hook(partial(self._enter, name, name in own)),
                    part.register_forward_hook(partial(self._leave, name), always_call=True),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, is_block: bool, *_: object) -> None:  # noqa: FBT001 - a hook
        self._inside.append(name)
        if is_block:
            self.blocks[name] = max(self.live, self.blocks.get(name, 0))

    def _leave(self, name: str, _module: nn.Module, _args: object, output: object) -> None:
        while self._inside and self._inside.pop() != name:
            pass
        tensor = first_tensor(output)
        if tensor is not None and tensor.grad_fn is not None:
            tensor.grad_fn.register_prehook(partial(self._go_back, name))

    def _go_back(self, name: str, _: object) -> None:
        """Know whose gradients come next: those of a module begin where its output is made."""
        self._backward = f"{name} ({BACKWARD})"

    def footprint(self) -> Footprint:
        """Return what was counted."""
        return Footprint(self.peak, self.weights, self.at, self.where, dict(self.blocks))
