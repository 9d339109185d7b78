"""A torch module as an ONNX graph whose inner values can be read and overwritten, by name.

The module is exported once: for any batch and size, without its weights, and with every submodule's
value as an output of the graph. The graph of one session is made from this by hand: outputs that
nobody asked for go, and a value to be overwritten becomes an input, for all that read it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir
import onnxscript.optimizer
import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPSET = 20
"""The exporter's own default."""

EXAMPLE_SIZES = {"B": 2, "H": 48, "W": 64, "h": 6, "w": 8, "L": 77}
"""What the letters of a shape stand for while a network is traced; in the graph they are free."""

GIVEN = ".given"
"""Ends the name of the input whose value stands for the graph's own."""

Call = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class Input:
    """What a network is given.

    Attributes:
        shape: Lengths; a letter of `EXAMPLE_SIZES` is one that is free.
        dtype: Dtype of the array; None is that of the network.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Graph:
    """A network as an ONNX graph.

    Attributes:
        model: Its weights are inputs, and all that `values` names is an output.
        outputs: The network's outputs: name to value of the graph.
        values: Module paths, or a path with `.input` for what enters a module, in the order of
            execution: name to value of the graph. Some modules hand on what another one made: they
            share a value.
        weights: Names of the weights, in the graph and in the module.
        dtypes: Dtypes of inputs and outputs of the graph.
    """

    model: onnx.ModelProto
    outputs: dict[str, str]
    values: dict[str, str]
    weights: dict[str, str]
    dtypes: dict[str, np.dtype]

    def session_model(self, seen: Collection[str], given: Collection[str]) -> onnx.ModelProto:
        """Return the graph of one session.

        Args:
            seen: Values that it gives back besides the outputs.
            given: Values in whose place it takes an input, named with `GIVEN` at the end.

        Returns:
            The model. Its weights are initializers to be supplied to the session.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        values = {value.name: value for value in graph.output}
        wanted = dict.fromkeys([*self.outputs.values(), *seen])
        del graph.output[:]
        graph.output.extend(values[name] for name in wanted)
        # onnxruntime fuses by shapes that it knows: the plain graph must not lose any.
        graph.value_info.extend(values[name] for name in values if name not in wanted)

        inputs = [value for value in graph.input if value.name not in self.weights]
        weights = [value for value in graph.input if value.name in self.weights]
        del graph.input[:]
        graph.input.extend(inputs)
        graph.initializer.extend(_supplied_later(value) for value in weights)
        for name in given:
            graph.input.add(name=name + GIVEN, type=values[name].type)
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name in given:
                    node.input[i] = name + GIVEN
        return model


class _Seen:
    """The tensors that pass through a module's submodules, each under the first of its names."""

    def __init__(self, net: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.first_names: dict[str, str] = {}
        self.outputs: list[str] = []
        for path, part in net.named_modules():
            if path:
                part.register_forward_pre_hook(self._hook(f"{path}.input"))
                part.register_forward_hook(self._hook(path))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], *output: object) -> None:
            value = output[0] if output else next(iter(args), None)
            value = value[0] if isinstance(value, tuple) else value
            if isinstance(value, Tensor):
                same = (n for n, tensor in self.tensors.items() if tensor is value)
                first = self.first_names[name] = next(same, name)
                self.tensors[first] = value

        return hook


@contextmanager
def _seen_as_made() -> Iterator[None]:
    """Let activations make tensors of their own: in place, what a norm made would be lost."""
    silu = F.silu
    F.silu = lambda hidden, **_: silu(hidden)
    try:
        yield
    finally:
        F.silu = silu


class _Probed(nn.Module):
    """A network that returns its outputs, then all that passed through its submodules."""

    def __init__(self, net: nn.Module, call: Call) -> None:
        super().__init__()
        self.net = net
        self.call = call
        self.seen = _Seen(net)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return tensors whose names `seen` knows: `outputs`, then `tensors`."""
        self.seen.tensors, self.seen.first_names = {}, {}
        with _seen_as_made():
            outputs = self.call(self.net, *inputs)
        self.seen.outputs = list(outputs)
        return (*outputs.values(), *self.seen.tensors.values())


def export(net: nn.Module, call: Call, inputs: Mapping[str, Input]) -> Graph:
    """Export a network, for any weights.

    Args:
        net: The network, on the CPU, in its dtype; the weights' values are never looked at.
        call: Turns the network and its inputs into named outputs.
        inputs: What it is given, in the order of `call`.

    Returns:
        The graph.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, aloud
    dtype = next(net.parameters()).dtype
    examples = [_example(spec, dtype) for spec in inputs.values()]
    free = [
        {i: torch.export.Dim.DYNAMIC for i, n in enumerate(spec.shape) if isinstance(n, str)}
        for spec in inputs.values()
    ]
    probed = _Probed(net, call).eval().requires_grad_(requires_grad=False)
    traced = torch.export.export(
        probed, tuple(examples), dynamic_shapes=(tuple(free),), strict=False
    )
    program = torch.onnx.export(
        traced,
        input_names=list(inputs),
        opset_version=OPSET,
        dynamo=True,
        optimize=False,  # its optimizer may merge the very values that are to be told apart
        verbose=False,
    )
    model, weights = program.model, {}
    for name in net.state_dict():
        value = model.graph.initializers.pop(f"net.{name}")
        value.const_value = None
        model.graph.inputs.append(value)
        weights[value.name] = name
    onnxscript.optimizer.fold_constants_ir(model, onnx_shape_inference=True)
    onnxscript.optimizer.remove_unused_nodes(model)

    seen = probed.seen
    made = [value.name for value in model.graph.outputs]
    outputs = dict(zip(seen.outputs, made, strict=False))
    inner = dict(zip(seen.tensors, made[len(outputs) :], strict=True))
    values = {name: inner[first] for name, first in seen.first_names.items()}
    dtypes = {v.name: v.dtype.numpy() for v in (*model.graph.inputs, *model.graph.outputs)}
    return Graph(onnx_ir.to_proto(model), outputs, values, weights, dtypes)


def _example(spec: Input, dtype: torch.dtype) -> Tensor:
    shape = [EXAMPLE_SIZES[n] if isinstance(n, str) else n for n in spec.shape]
    return torch.zeros(shape, dtype=spec.dtype or dtype)


def _supplied_later(value: onnx.ValueInfoProto) -> onnx.TensorProto:
    """Return an initializer whose data is not in the model: only so may there be over 2 GB."""
    tensor_type = value.type.tensor_type
    tensor = onnx.TensorProto(
        name=value.name,
        data_type=tensor_type.elem_type,
        dims=[dim.dim_value for dim in tensor_type.shape.dim],
        data_location=onnx.TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value="supplied to the session")
    return tensor
