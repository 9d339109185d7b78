"""The port in `examples/onnxruntime`: conformant as it is, caught and named where it is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"the onnxruntime port needs {package}")

import onnxruntime
import torch
from torch import nn

from conformance.case import find_case
from conformance.execution import Execution
from conformance.golden import SPLICE, TRACE
from conformance.port import resolve
from conformance.runner import Runner
from conformance.traces import have_oracle

pytestmark = pytest.mark.xdist_group("onnxruntime")  # an export takes seconds, and is kept

PORT = Path(__file__).parents[2] / "examples" / "onnxruntime" / "port.py"
NEEDS_ORACLE = pytest.mark.skipif(not have_oracle(), reason="splice mode needs the oracle")
MODES = (TRACE, pytest.param(SPLICE, marks=NEEDS_ORACLE))
NETWORKS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")

NORM = "decoder.up_blocks.1.resnets.1.norm2"
MLP = "text_model.encoder.layers.1.mlp"
WRONG = {
    "eps": ("vae_decoder/tiny-lowvar/base", NORM, {"eps": 1e-5}, NORM),
    "gelu": ("text_encoder/tiny/base", MLP, {"coefficient": 1.0}, f"{MLP}.fc2.input"),
}
"""A case, a module, what is set in it before it is exported, and the probe where that shows."""


@pytest.fixture(scope="module")
def port():
    """Return the port; it keeps what it exports."""
    return resolve(f"{PORT}:factory")


@pytest.fixture(scope="module")
def wrong_port(port):
    """Return a function that gives the port with one wrong choice; it keeps what it exports."""
    made = {}

    def make(name: str):
        case, path, settings, _ = WRONG[name]
        component = find_case(case).component
        right = port.networks[component]

        def build(sizes: dict) -> nn.Module:
            net = right.build(sizes)
            for field, value in settings.items():
                setattr(net.get_submodule(path), field, value)
            return net

        if name not in made:
            networks = {**port.networks, component: replace(right, build=build)}
            made[name] = type(port)(networks)
        return made[name]

    return make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("component", NETWORKS)
def test_conformant(component: str, mode: str, port) -> None:
    """Each network passes with room to spare, as in use and layer by layer."""
    result = Runner(port).run(find_case(f"{component}/tiny/base"), Execution(mode=mode))
    assert (result.verdict, result.message) == ("pass", "")
    assert result.worst.ratio <= 2


def test_conformant_in_float16(port) -> None:
    """Weights and values stored in half precision pass as such."""
    result = Runner(port).run(find_case("text_encoder/tiny/base"), Execution("float16"))
    assert (result.verdict, result.message) == ("pass", "")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_choice_is_named(name: str, mode: str, wrong_port) -> None:
    """The first layer that is wrong is that of the wrong choice."""
    case, *_, probe = WRONG[name]
    result = Runner(wrong_port(name)).run(find_case(case), Execution(mode=mode))
    assert (result.verdict, result.first_divergence["probe"]) == ("fail", probe)
    if mode == SPLICE:
        assert [r.name for r in result.records if r.verdict == "fail"] == [probe]


def test_what_is_put_in_is_what_it_goes_on_with(port) -> None:
    """A value that is put in is read by all that follows; modules that share it see it in turn."""
    case = find_case("text_encoder/tiny/base")
    net = port.load(case.component, case.variant, case.weights(), "float32", "cpu")
    attention = "text_model.encoder.layers.1.self_attn"
    layer, block, norm2 = f"{attention}.out_proj", attention, f"{MLP[:-4]}.layer_norm2.input"
    before = "text_model.encoder.layers.0"
    _, own = net.run(case.inputs(), [before, layer, block])
    assert np.array_equal(own[layer], own[block])
    zeros = np.zeros_like(own[layer])
    _, seen = net.run(case.inputs(), [before, layer, block, norm2], {layer: zeros})
    assert np.array_equal(seen[layer], own[layer])
    assert np.array_equal(seen[block], zeros)
    assert np.array_equal(seen[norm2], own[before])
    outputs, _ = net.run(case.inputs(), (), {"text_model.final_layer_norm": zeros + 1})
    assert np.array_equal(outputs["last_hidden_state"], zeros + 1)
    assert np.array_equal(outputs["pooler_output"], np.ones_like(outputs["pooler_output"]))


@pytest.mark.parametrize(
    "component",
    [
        "text_encoder",
        pytest.param("unet", marks=pytest.mark.full),
        pytest.param("vae_encoder", marks=pytest.mark.full),
        pytest.param("vae_decoder", marks=pytest.mark.full),
    ],
)
def test_the_plain_graph_is_that_of_an_ordinary_export(component: str, port, tmp_path) -> None:
    """What is judged has the bits of `torch.onnx.export` as it is used, weights and all."""
    case = find_case(f"{component}/tiny/base")
    loaded = port.load(component, case.variant, case.weights(), "float32", "cpu")
    outputs, _ = loaded.run(case.inputs())

    network = port.networks[component]
    sizes = case.variant.architecture(component)
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
    net = network.build(sizes).eval()
    net.load_state_dict({name: torch.from_numpy(w) for name, w in case.weights().items()})
    call = nn.Module()
    call.net = net
    call.forward = lambda *tensors: tuple(network.call(net, *tensors).values())
    call.eval()
    inputs = case.inputs()
    if component == "unet":
        batch = len(inputs["sample"])
        inputs["timestep"] = np.full(batch, inputs["timestep"], np.float32)
    free = [
        {i: torch.export.Dim.DYNAMIC for i, n in enumerate(spec.shape) if isinstance(n, str)}
        for spec in network.inputs(sizes).values()
    ]
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        call,
        tuple(torch.from_numpy(array) for array in inputs.values()),
        path,
        input_names=list(inputs),
        dynamic_shapes=(tuple(free),),
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for ordinary, array in zip(session.run(None, inputs), outputs.values(), strict=True):
        assert np.array_equal(ordinary, array)


@NEEDS_ORACLE
def test_float64_would_fail_where_onnx_keeps_float32(port) -> None:
    """Why it is not offered: eps, and the exporter's scalars, are float32 in every graph."""
    assert "float64" not in port.hello()["arithmetics"]

    class Offering(type(port)):
        def hello(self) -> dict:
            return {**super().hello(), "arithmetics": ["float64"]}

    case = find_case("text_encoder/tiny/base")
    result = Runner(Offering()).run(case, Execution("float64", mode=SPLICE))
    wrong = {r.name.rpartition(".")[2] for r in result.records if r.verdict == "fail"}
    gelu = "fc2.input"
    assert result.verdict == "fail"
    assert wrong == {"layer_norm1", "layer_norm2", "final_layer_norm", gelu.rpartition(".")[2]}
    assert result.worst.name.endswith(gelu)
