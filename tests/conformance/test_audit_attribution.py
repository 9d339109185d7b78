"""The error shared out among layers: what a share says happens when the layer is made exact."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("diffusers")

from conformance.audit.mixed_torch import Mixed
from conformance.audit.oracle_torch import LiveOracle
from conformance.audit.profiling import take_profile
from conformance.audit.yardstick import yardstick
from conformance.case import find_case
from conformance.execution import Execution
from conformance.port import resolve
from conformance.runner import Runner
from conformance.spec import probe_names
from conformance.traces import find_traces

BASE = "text_encoder/tiny/base"
MAIN = "last_hidden_state"
WRONG = {  # how far each layer is moved, relative to its size
    "text_model.encoder.layers.0.mlp.fc1": 4e-3,
    "text_model.encoder.layers.1.self_attn.q_proj": 2e-2,
    "text_model.encoder.layers.1": 1e-3,
    "text_model.encoder.layers.2.layer_norm2": 3e-3,
}


@pytest.fixture(scope="module")
def oracle() -> LiveOracle:
    """One oracle for all tests."""
    return LiveOracle()


def moved(oracle: LiveOracle, layers):
    """Run the oracle with an error of a known size at some layers, each where it is observed."""
    case = find_case(BASE)
    exact, names = oracle._exact(case), probe_names(case.component, "tiny")

    def callback(name, tensor):
        if name in layers:
            noise = np.random.Generator(np.random.Philox(len(name))).standard_normal(tensor.shape)
            tensor += tensor.new_tensor(noise) * tensor.square().mean().sqrt() * layers[name]
        traced[name] = tensor.detach().numpy().copy()

    traced: dict[str, np.ndarray] = {}
    outputs = exact.traced(exact.tensors(case.inputs()), names, callback)
    return traced, {name: tensor.detach().numpy() for name, tensor in outputs.items()}


def square(oracle: LiveOracle, layers) -> float:
    """Return the squared error of the output with errors at some layers."""
    truth = oracle.values(find_case(BASE), ()).outputs[MAIN]
    return float(np.sum((moved(oracle, layers)[1][MAIN] - truth) ** 2))


def test_share_is_what_removal_gains(oracle: LiveOracle) -> None:
    """Of four layers with errors, each share is what the output loses when that one is exact."""
    traced, outputs = moved(oracle, WRONG)
    shares, rest = oracle.shares(find_case(BASE), traced, outputs, MAIN)
    assert sum(shares.values()) + rest == pytest.approx(1, abs=0.02)
    assert {name for name, share in shares.items() if abs(share) > 1e-6} == set(WRONG)
    whole = square(oracle, WRONG)
    for layer, size in WRONG.items():
        without = square(oracle, {name: WRONG[name] for name in WRONG if name != layer})
        alone = square(oracle, {layer: size})
        removed = (whole - without + alone) / 2 / whole  # what crosses with others counts half
        assert shares[layer] == pytest.approx(removed, abs=0.02)


def test_a_single_wrong_layer_has_it_all(oracle: LiveOracle) -> None:
    """The error of the one layer that is wrong is its own, however far the output is behind it."""
    layer = "text_model.encoder.layers.0.mlp.fc1"
    traced, outputs = moved(oracle, {layer: 1e-4})
    shares, rest = oracle.shares(find_case(BASE), traced, outputs, MAIN)
    assert shares.pop(layer) == pytest.approx(1, abs=1e-3)
    assert max(map(abs, shares.values())) < 1e-6
    assert abs(rest) < 1e-6


@pytest.mark.parametrize("block", ["down_blocks.0", "up_blocks.1"])
def test_share_against_a_block_in_float32(oracle: LiveOracle, block: str) -> None:
    """What a block's layers cost is what the output wins when the block runs in float32."""
    case = find_case("vae_decoder/tiny/base" if "up" in block else "vae_encoder/tiny/base")
    prefix = f"{'decoder' if 'up' in block else 'encoder'}.{block}"
    runner, execution = Runner(resolve("sd1_impl")), Execution("bfloat16")
    units = yardstick(case, "bfloat16", find_traces(), oracle)
    profile = take_profile(runner, runner.load(case, execution), case, execution, units, oracle)
    inside = [x for x in profile.layers if x.name.startswith(f"{prefix}.")]
    own = next(x.name for x in reversed(inside) if x.name.count(".") == prefix.count(".") + 2)
    cost = sum(x.share for x in inside if x.name != own)  # its output is rounded all the same
    mixed = Mixed.of(runner.port, case, "bfloat16", "cpu")
    kept = {name: "float32" for name in mixed.layers if name.startswith(f"{prefix}.")}
    with mixed.computing(kept) as component:
        outputs, _ = component.run(case.inputs())
    truth = units.values.outputs[profile.main]
    err = np.linalg.norm(outputs[profile.main] - truth) / np.linalg.norm(truth)
    assert 0.1 < cost < 0.5
    assert 1 - (err / profile.output.err) ** 2 == pytest.approx(cost, abs=0.1)


def test_shares_of_bfloat16_add_up(oracle: LiveOracle) -> None:
    """The parts of a real bfloat16 run make the whole, and local errors are splice mode's."""
    case, execution = find_case(BASE), Execution("bfloat16")
    runner = Runner(resolve("sd1_impl"))
    units = yardstick(case, "bfloat16", find_traces(), oracle)
    profile = take_profile(runner, runner.load(case, execution), case, execution, units, oracle)
    assert profile.explained == pytest.approx(1, abs=0.01)
    assert sum(profile.by("kind").values()) == pytest.approx(profile.explained)
    spliced = runner.run(case, Execution("bfloat16", mode="splice"))
    told = {r.name: r.err for r in spliced.records if r.kind == "probe"}
    for layer in profile.layers:
        assert layer.local == pytest.approx(told[layer.name], rel=0.5)  # there it is a sketch's
