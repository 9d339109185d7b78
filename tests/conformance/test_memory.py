import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.adapters import memory
from conformance.adapters.sd1_impl_networks import NETWORKS
from conformance.adapters.torch_module import TorchPort
from conformance.case import find_case
from conformance.determinism import gradient_mode
from conformance.errors import UnsupportedError
from conformance.execution import MEMORY, Execution
from conformance.memory.budgets import budgets
from conformance.memory.cases import config_id, configurations
from conformance.port import resolve

PORTS = ("sd1_impl", "diffusers")
CONFIGURATIONS = {
    config_id(case, execution): (case, execution) for case, execution in configurations()
}
TINY = [
    "text_encoder/tiny/batch2[float32-sdpa]",
    "text_encoder/tiny/batch2[float16-plain]",
    "unet/tiny/latent16-batch2[float32-sdpa]",
    "unet/tiny/latent16-batch2[bfloat16-plain]",
    "vae_encoder/tiny/image64-batch2[float16-sdpa]",
    "vae_decoder/tiny/latent8-batch2[float32-by_sample]",
    "training/tiny/latent16-batch2[float32-sdpa]",
    "training/tiny/latent16-batch2[float32-recompute]",
]
SD1 = [
    "text_encoder/sd1/batch2[float32-sdpa]",
    "unet/sd1/latent32-batch1[float32-sdpa]",
    "vae_decoder/sd1/latent32-batch1[float32-sdpa]",
]


SCALARS = 96
"""Bytes of Python's numbers that torch wraps on the way into an operation, and nobody sees."""


def unseen(port, key):
    """Return the bytes of the random generator's states that diffusers keeps to recompute."""
    return 4 * 5056 if port.name == "diffusers" and "recompute" in key else 0


@pytest.fixture(scope="module", params=PORTS)
def predictor(request):
    """Return what predicts for a port."""
    return memory.Predictor(resolve(request.param))


def run(port, key):
    """Return what tensors hold in a real call, and what the allocator gave out."""
    case, execution = CONFIGURATIONS[key]
    component = memory.loaded(port, case, execution, "cpu")
    return memory.footprint(component, case, case.inputs()), allocated(component, case)


class Marks(TorchDispatchMode):
    """Leaves a mark in the profile after every operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        with record_function("mark"):
            return result


def allocated(component, case):
    """Return the most that torch's CPU allocator had given out after any operation."""
    tensors = component.tensors(case.inputs())
    held = sum(t.nbytes for t in tensors.values() if isinstance(t, torch.Tensor))
    grad = torch.enable_grad() if case.is_training else gradient_mode()
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with profiler as profiled, grad, Marks():
        component.traced(tensors, (), lambda *_: None)
    live = peak = held
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
        elif event.name() == "mark":
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("key", TINY)
def test_a_prediction_is_what_tensors_hold(predictor, key):
    """Shapes alone tell the bytes, the operation and the module at the peak."""
    predicted = predictor.predict(*CONFIGURATIONS[key])
    counted, given_out = run(predictor.port, key)
    assert predicted == counted
    assert predicted.peak <= given_out - unseen(predictor.port, key) <= predicted.peak + SCALARS


@pytest.mark.full
@pytest.mark.parametrize("key", SD1)
def test_a_prediction_is_what_tensors_hold_at_full_size(predictor, key):
    """The same of SD v1 itself, against torch's own allocator."""
    predicted = predictor.predict(*CONFIGURATIONS[key])
    counted, given_out = run(predictor.port, key)
    assert (predicted.peak, predicted.weights) == (counted.peak, counted.weights)
    assert predicted.peak <= given_out <= predicted.peak + SCALARS


def test_the_published_size_is_predicted_without_weights(predictor):
    """130.006 MiB and the inputs: fused attention, float16, guided, 64 by 64, by diffusers."""
    case, execution = CONFIGURATIONS["unet/sd1/latent64-batch2[float16-sdpa]"]
    found = predictor.predict(case, execution)
    inputs = sum(array.size * 2 for name, array in case.inputs().items() if name != "timestep") + 8
    assert found.weights == 2 * 859_520_964
    assert found.peak <= 130.006 * 2**20 + inputs + 2**9
    if predictor.port.name == "diffusers":
        assert found.peak >= 130.006 * 2**20 + inputs - 2**9


def peak(key, port="sd1_impl"):
    """Return a recorded peak."""
    return budgets().of(key, port, "2.13").peak


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("unet/sd1/latent64-batch1[float16-sdpa]", "unet/sd1/latent64-batch1[float16-sliced]"),
        ("unet/sd1/latent64-batch2[float16-sliced]", "unet/sd1/latent64-batch2[float16-plain]"),
        ("unet/sd1/latent64-batch1[float16-sdpa]", "unet/sd1/latent64-batch2[float16-sdpa]"),
        (
            "vae_decoder/sd1/latent128-batch1[float16-tiled]",
            "vae_decoder/sd1/latent128-batch1[float16-sdpa]",
        ),
        (
            "vae_encoder/sd1/image1024-batch1[float32-tiled]",
            "vae_encoder/sd1/image1024-batch1[float32-sdpa]",
        ),
        (
            "vae_decoder/sd1/latent64-batch2[float16-by_sample]",
            "vae_decoder/sd1/latent64-batch2[float16-sdpa]",
        ),
        (
            "training/sd1/latent64-batch1[float32-recompute]",
            "training/sd1/latent64-batch1[float32-sdpa]",
        ),
    ],
    ids=[
        "fused-sliced",
        "sliced-plain",
        "batch",
        "decode-tiled",
        "encode-tiled",
        "by-sample",
        "recompute",
    ],
)
def test_what_saves_memory_does(port, less, more):
    """Recorded peaks are in the order that their names promise."""
    assert peak(less, port) < peak(more, port)


@pytest.mark.parametrize("port", PORTS)
def test_bfloat16_holds_what_float16_does(port):
    """Bytes know no exponents."""
    pairs = [key for key in CONFIGURATIONS if "[bfloat16-" in key]
    assert pairs
    for key in pairs:
        assert peak(key, port) == peak(key.replace("bfloat16", "float16"), port)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("component", ["vae_encoder", "vae_decoder"])
def test_half_precision_holds_half(port, component):
    """Exactly: the autoencoder has no integers and no float32 in it."""
    keys = [k for k in CONFIGURATIONS if k.startswith(component) and "[float16-sdpa]" in k]
    assert keys
    for key in keys:
        assert 2 * peak(key, port) == peak(key.replace("float16", "float32"), port)


def test_no_port_of_ours_holds_more_than_the_reference():
    """In none of the configurations, on none of the versions recorded."""
    for version, own in budgets().records.items():
        for key, ports in own.items():
            if "diffusers" in ports:
                assert ports["sd1_impl"].peak <= ports["diffusers"].peak, (version, key)


def test_every_configuration_is_recorded():
    """None is new, none has gone."""
    for own in budgets().records.values():
        assert set(own) == set(CONFIGURATIONS)
        assert all("sd1_impl" in ports for ports in own.values())


def own_port():
    """Return a user's port: its network is built with values, its call looks at some."""
    build, call = NETWORKS["vae_decoder"]

    def build_with_values(variant):
        module = build(variant).to_empty(device="cpu")
        module.register_buffer("table", torch.arange(8.0), persistent=False)
        return module

    def call_and_look(module, tensors):
        steps = [float(step) for step in torch.linspace(0, 1, 3)]
        if module.table.max().item() != 7 or steps[-1] != 1:
            raise AssertionError
        return call(module, tensors)

    return TorchPort("own", "1", {"vae_decoder": (build_with_values, call_and_look)})


@pytest.mark.parametrize("size", ["tiny/latent8-batch2", "sd1/latent64-batch1"])
def test_a_port_of_a_users_own_is_predicted(size):
    """Buffers and small tables have their values, and nothing large is ever allocated."""
    pair = CONFIGURATIONS[f"vae_decoder/{size}[float32-sdpa]"]
    found, ours = (memory.Predictor(p).predict(*pair) for p in (own_port(), resolve("sd1_impl")))
    assert found.peak == pytest.approx(ours.peak, abs=64)
    assert found.weights == ours.weights + 8 * 4


def test_what_no_port_can_save_is_declined():
    """A port without a switch of its own says so."""
    predictor = memory.Predictor(resolve("sd1_impl"))
    with pytest.raises(UnsupportedError, match="no way to compute unet tiled"):
        predictor.predict(
            find_case("unet/tiny/latent16-batch2"), Execution("float32", "cpu", "tiled", MEMORY)
        )


def test_a_port_that_is_no_torch_port_is_declined():
    """Nothing is loaded into it."""

    class Other:
        def load(self, *_):
            raise AssertionError

    with pytest.raises(UnsupportedError, match=r"Other.* is no TorchPort"):
        memory.Predictor(Other())
