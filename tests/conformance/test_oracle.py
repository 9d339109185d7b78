"""The oracle is float64 to the last operation, and the honest evaluations are what they claim."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from conformance import honest, oracle, spec
from conformance.adapters.diffusers import build_unet
from conformance.adapters.torch_module import TorchComponent, assign_weights, observe
from conformance.case import find_case
from conformance.errors import GoldenError
from conformance.golden import load_golden
from conformance.noise import calibrations, measure, worst_of
from conformance.record import Reference
from conformance.tolerance import FLOAT64_FROM_FLOAT32
from conformance.variants import parse_variant
from conformance.verify import age_of

CASE = find_case("unet/tiny/small")


@pytest.fixture(scope="module")
def reference():
    """The reference networks of `tiny`."""
    return Reference("unet", CASE.variant)


def test_doubling_diffusers_is_not_float64(reference):
    """The guard names the float32 timestep embedding of a model that was merely doubled."""
    module = assign_weights(build_unet(CASE.variant), reference.weights, torch.float64)
    doubled = TorchComponent(module, oracle.call_unet, torch.float64)

    with pytest.raises(GoldenError, match=r"float32 at .*embeddings\.py:\d+"):
        oracle.evaluate(doubled, CASE, [])


def test_the_oracle_passes_its_own_guard(reference):
    """With the embedding rewritten, nothing but float64 is left, and the golden agrees."""
    assert age_of(load_golden(CASE), reference.truth(CASE)) is None


def test_an_aged_golden_is_recognised(reference):
    """A golden that differs from the installed oracle by more than float64 noise is said to."""
    golden = load_golden(CASE)
    golden.sketches[3] *= 1 + 1e-12

    assert golden.probes[3] in age_of(golden, reference.truth(CASE))


def test_probe_names_are_those_of_the_oracle():
    """The frozen names are what diffusers' modules fire, in order."""
    order, blocks = oracle.discover_probes(parse_variant("odd"))

    assert tuple(order) == spec.probe_names("unet", "odd")
    assert set(blocks) == spec.block_names("unet")


@pytest.mark.parametrize("size", spec.architectures("unet"))
def test_parameter_shapes_are_those_of_the_oracle(size):
    """The frozen shapes are what diffusers builds."""
    shapes = {n: tuple(t.shape) for n, t in build_unet(parse_variant(size)).state_dict().items()}

    assert shapes == spec.parameter_shapes("unet", size)


def test_sequential_sums_are_sequential():
    """The replaced product adds in order in float32: a plain loop gives the same bits."""
    generator = np.random.default_rng(0)
    a = generator.standard_normal((1, 3, 50)).astype(np.float32)
    b = generator.standard_normal((1, 50, 4)).astype(np.float32)
    wanted = np.zeros((3, 4), np.float32)
    for k in range(50):
        wanted += a[0, :, k, None] * b[0, k]

    found = honest._sequential_matmul(torch.from_numpy(a), torch.from_numpy(b))[0].numpy()
    assert np.abs(found - wanted).max() <= np.spacing(np.abs(wanted).max())


@pytest.mark.parametrize(
    "evaluation",
    [e for e in honest.CALIBRATION + honest.HELD_OUT if "float64" in e.arithmetics],
    ids=lambda e: e.name.replace(" ", "-"),
)
def test_an_honest_evaluation_computes_the_same_network(evaluation, reference):
    """In float64 every evaluation agrees with the oracle to rounding, so none has a bug."""
    errors = measure(reference.build("float64"), CASE, reference.truth(CASE), evaluation)

    assert max(errors.probes.values()) < 1e-13
    assert all((e < 1e-12).all() for e in errors.outputs.values())


def test_recorded_noise_is_what_the_calibration_gives(reference):
    """Measured again, float32 noise is within a factor of 2 of the recorded one at every probe."""
    truth = reference.truth(CASE)
    component = reference.build("float32")
    runs = [measure(component, CASE, truth, e) for e in calibrations(component, CASE, "float32")]
    golden = load_golden(CASE)
    found = np.array([worst_of(runs).probes[name] for name in golden.probes])

    change = np.maximum(found, 2.0**-25) / np.maximum(golden.noise["float32"], 2.0**-25)
    assert change.min() >= 1 / 2
    assert change.max() <= 2
    assert (golden.noise["float64"] >= 0.99 * golden.noise["float32"] * FLOAT64_FROM_FLOAT32).all()


def test_replacing_a_probe_reaches_what_reads_it(reference):
    """A replaced value is what the next layer sees, and what was observed is the port's own."""
    component = reference.build("float32")
    inputs = CASE.inputs()
    _, before = component.run(inputs, ["conv_in", "down_blocks.0.resnets.0.norm1"])
    zero = np.zeros_like(before["conv_in"])
    _, after = component.run(
        inputs, ["conv_in", "down_blocks.0.resnets.0.norm1"], {"conv_in": zero}
    )

    assert np.array_equal(after["conv_in"], before["conv_in"])
    bias = reference.weights["down_blocks.0.resnets.0.norm1.bias"]
    norm = after["down_blocks.0.resnets.0.norm1"]
    assert np.array_equal(norm, np.broadcast_to(bias[None, :, None, None], norm.shape))


def test_hooks_are_removed(reference):
    """Observation leaves no hook behind."""
    module = reference.build("float32").module
    with observe(module, ["conv_in", "conv_out.input"], lambda *_: None):
        assert module.conv_in._forward_hooks
        assert module.conv_out._forward_pre_hooks

    assert not module.conv_in._forward_hooks
    assert not module.conv_out._forward_pre_hooks
