"""A component that a process of its own has loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.child import HungError
from conformance.port import Arrays
from conformance.sampling import read_config
from conformance.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from conformance.adapters.process import ExecPort


class ExecComponent:
    """A component that a child has loaded, or will load again when it was started anew."""

    def __init__(self, port: ExecPort, message: dict[str, Any]) -> None:
        """Keep the load message.

        Args:
            port: The port.
            message: The `load`, without its id.
        """
        self.port = port
        self.message = message
        self._first = True

    def load(self) -> None:
        """Let the child load this component in place of what it had loaded."""
        component = self.message["component"]
        self.port.require_patience(component)
        if self.port.loaded is not None:
            self.port.loaded = None
            self.port.request({"op": "unload"})
        with self._counting_hangs():
            self.port.request(self.message, first=True)
        self.port.loaded = self.message
        self._first = True

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`."""
        self.port.require_patience(self.message["component"])
        if self.port.loaded is not self.message or not self.port.is_alive:
            self.load()
        scratch = self.port.scratch()
        message = {
            "op": "run",
            "inputs": _sent_inputs(inputs, scratch),
            "probes": list(dict.fromkeys(probes)),
            "replace": None,
        }
        if replace:
            path = scratch / "replace.safetensors"
            write_tensors(path, replace, self.message["arithmetic"])
            message["replace"] = str(path)
        with self._counting_hangs():
            answer = self.port.request(message, first=self._first)
        self._first = False
        self.port.count_hang(self.message["component"], hung=False)
        try:
            outputs = read_tensors(Path(answer["outputs"]), scratch)
            seen = answer.get("probes")
            observed = read_tensors(Path(seen), scratch) if seen else {}
        finally:
            self.port.scratch()
        return outputs, observed

    @contextlib.contextmanager
    def _counting_hangs(self) -> Any:
        component = self.message["component"]
        try:
            yield
        except HungError:
            self.port.count_hang(component, hung=True)
            raise


def _sent_inputs(inputs: Mapping[str, np.ndarray], scratch: Path) -> dict[str, Any]:
    """Write the arrays among the inputs to a file; texts and settings go into the message."""
    tensors = {name: array for name, array in inputs.items() if array.dtype.kind != "U"}
    path = scratch / "inputs.safetensors"
    if tensors:
        write_tensors(path, tensors)
    strings = {
        name: array.tolist()
        for name, array in inputs.items()
        if array.dtype.kind == "U" and array.ndim
    }
    return {
        "tensors": str(path) if tensors else None,
        "strings": strings,
        "config": read_config(inputs["config"]) if "config" in inputs else None,
    }
