"""The oracle is float64 to the last operation, and the honest evaluations are what they claim."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from conformance import oracle, spec
from conformance.adapters.diffusers_networks import NETWORKS, build_unet, call_unet
from conformance.adapters.torch_module import TorchComponent, assign_weights, observe
from conformance.case import find_case
from conformance.errors import GoldenError
from conformance.golden_files import load_golden
from conformance.recording import honest, modes
from conformance.recording.calibration import calibrations
from conformance.recording.noise import measure, worst_of
from conformance.recording.record import Reference
from conformance.recording.verify import LiveAge, age_of
from conformance.tolerance import FLOAT64_FROM_FLOAT32
from conformance.variants import parse_variant

CASE = find_case("unet/tiny/small")
SMALL = [CASE, *map(find_case, (
    "text_encoder/tiny/batch3", "vae_encoder/tiny/batch3", "vae_decoder/tiny/batch3"
))]  # fmt: skip


@pytest.fixture(scope="module")
def references():
    """The reference networks of `tiny`, by component."""
    return {case.component: Reference(case.component, case.variant) for case in SMALL}


@pytest.fixture
def reference(references):
    """The reference UNet of `tiny`."""
    return references["unet"]


def test_doubling_diffusers_is_not_float64(reference):
    """The guard names the float32 timestep embedding of a model that was merely doubled."""
    module = assign_weights(build_unet(CASE.variant), reference.weights, torch.float64)
    doubled = TorchComponent(module, call_unet, torch.float64)

    with pytest.raises(GoldenError, match=r"float32 at .*embeddings\.py:\d+"):
        oracle.evaluate(doubled, CASE, [])


def test_eager_attention_of_transformers_is_not_float64(references):
    """The guard names the float32 softmax that transformers' plain attention has in any dtype."""
    component = references["text_encoder"].build("float64")
    config = component.module.text_model.config
    config._attn_implementation = "eager"
    try:
        with pytest.raises(GoldenError, match=r"float32 at .*transformers.*\.py:\d+"):
            oracle.evaluate(component, SMALL[1], [])
    finally:
        config._attn_implementation = "sdpa"


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.component)
def test_the_oracle_passes_its_own_guard(case, references):
    """With the embedding rewritten, nothing but float64 is left, and the golden agrees."""
    assert age_of(load_golden(case), references[case.component].truth(case)) is None


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.component)
def test_an_aged_golden_is_recognised(case, references):
    """A golden that differs from the installed oracle by more than float64 noise is said to."""
    golden = load_golden(case)
    golden.sketches[3] *= 1 + 1e-12

    assert golden.probes[3] in age_of(golden, references[case.component].truth(case))


def test_the_age_of_any_golden_can_be_asked():
    """Whatever was asked for before, each component is compared with its own oracle."""
    live = LiveAge()
    cases = [*SMALL, find_case("tokenizer/-/plain")]

    assert [live(case, load_golden(case)) for case in cases] == [None] * 5


def test_an_aged_tokenizer_golden_is_recognised():
    """One id that is not what transformers gives is enough."""
    case = find_case("tokenizer/-/plain")
    golden = load_golden(case)
    golden.outputs["input_ids"][0, 3] += 1

    assert LiveAge()(case, golden) == "input_ids is not what the installed oracle gives"


@pytest.mark.parametrize(
    ("component", "size"), [(name, size) for name in NETWORKS for size in spec.architectures(name)]
)
def test_parameter_shapes_are_those_of_the_oracle(component, size):
    """The frozen names and shapes are what diffusers and transformers build, in order."""
    build, _ = NETWORKS[component]
    shapes = {n: tuple(t.shape) for n, t in build(parse_variant(size)).state_dict().items()}

    assert list(shapes.items()) == list(spec.parameter_shapes(component, size).items())


def test_sequential_sums_are_sequential():
    """The replaced product adds in order in float32: a plain loop gives the same bits."""
    generator = np.random.default_rng(0)
    a = generator.standard_normal((1, 3, 50)).astype(np.float32)
    b = generator.standard_normal((1, 50, 4)).astype(np.float32)
    wanted = np.zeros((3, 4), np.float32)
    for k in range(50):
        wanted += a[0, :, k, None] * b[0, k]

    found = modes.sequential_matmul(torch.from_numpy(a), torch.from_numpy(b))[0].numpy()
    assert np.abs(found - wanted).max() <= np.spacing(np.abs(wanted).max())


@pytest.mark.parametrize(
    ("case", "evaluation"),
    [
        pytest.param(case, e, id=f"{case.component}-{e.name.replace(' ', '-')}")
        for case in SMALL
        for e in honest.CALIBRATION + honest.HELD_OUT
        if "float64" in e.arithmetics and case.component in e.components
    ],
)
def test_an_honest_evaluation_computes_the_same_network(case, evaluation, references):
    """In float64 every evaluation agrees with the oracle to rounding, so none has a bug."""
    reference = references[case.component]
    errors = measure(reference.build("float64"), case, reference.truth(case), evaluation)

    assert max(errors.probes.values()) < 1e-13
    assert all((e < 1e-12).all() for e in errors.outputs.values())


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.component)
def test_recorded_noise_is_what_the_calibration_gives(case, references):
    """Measured again, float32 noise is within a factor of 2 of the recorded one at every probe."""
    reference = references[case.component]
    truth = reference.truth(case)
    component = reference.build("float32")
    runs = [measure(component, case, truth, e) for e in calibrations(component, case, "float32")]
    golden = load_golden(case)
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
