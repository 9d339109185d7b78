"""Plain functions as a port: arrays of any library, probes, what hello() says, what is refused."""

import numpy as np
import pytest

from conformance.adapters.callables import CallableComponent, CallablePort, as_own, to_numpy
from conformance.case import find_case
from conformance.errors import PortError, UnsupportedError
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.runner import Runner
from conformance.variants import parse_variant

CASE = find_case("unet/tiny/small")
TINY = parse_variant("tiny")
X = np.arange(12, dtype=np.float32).reshape(3, 4)


class Holder:
    """An array of no library: it only has what a test gives it."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class WithArray(Holder):
    """Gives a NumPy array."""

    def __array__(self, dtype=None, copy=None):
        return np.array(self.data, dtype)


class WithDlpack(Holder):
    """Gives a DLPack capsule."""

    def __dlpack__(self, **options):
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()


class Tensor(Holder):
    """Behaves as a torch tensor does: nothing but detach, cpu, float and numpy."""

    def detach(self):
        """Stay."""
        return self

    cpu = detach

    def float(self):
        """Widen."""
        return Tensor(data=self.data.astype(np.float32), dtype="torch.float32")

    def numpy(self):
        """Refuse bfloat16, as torch does."""
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.data


ARRAYS = {
    "numpy": X,
    "scalar": X[1, 2],
    "array": WithArray(data=X),
    "dlpack": WithDlpack(data=X),
    "torch": Tensor(data=X, dtype="torch.float32"),
    "torch-bfloat16": Tensor(data=X.astype(np.float64), dtype="torch.bfloat16"),
    "cupy": Holder(get=lambda: X, __cuda_array_interface__={}),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_any_library(array):
    """Whatever has one of the known ways becomes the NumPy array that it holds."""
    made = to_numpy(array)
    assert made.dtype == np.float32
    assert np.array_equal(made, X if made.ndim else X[1, 2])


class Cuda(WithArray):
    """Lies elsewhere and says so."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion\nis not allowed")


REFUSED = {
    "list": ([1.0], "a list cannot be made a NumPy array: it has neither __array__ nor __dlpack__"),
    "float": (1.0, "a float cannot be made a NumPy array"),
    "int": (1, "an int cannot be made a NumPy array"),
    "none": (None, "a NoneType cannot be made a NumPy array"),
    "elsewhere": (
        Cuda(),
        "a Cuda cannot be made a NumPy array: implicit conversion is not allowed",
    ),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_array(value, message):
    """What is no array, or will not be copied, is one clear line."""
    with pytest.raises(PortError, match=f"^{message}"):
        to_numpy(value)


def test_bfloat16_of_ml_dtypes_is_widened_exactly():
    """All bfloat16 numbers, NaN and infinities included, become the same float32; and back."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    every = np.arange(2**16, dtype=np.uint16).view(bfloat16).reshape(2, -1).T  # not contiguous
    wide = to_numpy(every)
    assert wide.dtype == np.float32
    assert np.array_equal(wide, every.astype(np.float32), equal_nan=True)
    assert not (wide.view(np.uint32) & 0xFFFF).any()
    numbers = every[np.isfinite(wide)]
    back = as_own(to_numpy(numbers).astype(np.float64), numbers)
    assert back.dtype == bfloat16
    assert np.array_equal(back, numbers)


class Own(WithArray):
    """An array of a small library: made of a NumPy array, cast by astype."""

    def __init__(self, data):
        super().__init__(data=np.asarray(data))
        self.dtype = self.data.dtype

    def astype(self, dtype):
        """Cast."""
        return Own(self.data.astype(dtype))


class Standard(Own):
    """An array of a library that follows the array API."""

    def __array_namespace__(self):
        return Holder(asarray=lambda value, dtype: Standard(value.astype(dtype)))


@pytest.mark.parametrize("like", [X, Own(X), Standard(X)], ids=["numpy", "own-type", "array-api"])
def test_values_come_back_as_the_librarys_own(like):
    """A value that is put in has the type and the dtype of the array whose place it takes."""
    own = as_own(X.astype(np.float64) + 0.5, like)
    assert (type(own), own.dtype) == (type(like), np.float32)
    assert np.array_equal(to_numpy(own), X + 0.5)


def test_values_of_torch():
    """Of a torch tensor the value has dtype and device, bfloat16 too."""
    torch = pytest.importorskip("torch")
    own = as_own(X.astype(np.float64), torch.zeros(1, dtype=torch.bfloat16))
    assert own.dtype is torch.bfloat16
    assert np.array_equal(to_numpy(own), X)


def test_no_way_back_asks_for_a_converter():
    """Where no way is known, the error says what to give; given it, it is used."""
    array = WithArray(data=X)
    with pytest.raises(PortError, match=r"no way is known to make a WithArray .*asarray=function"):
        as_own(X, array)

    def function(_, see):
        return {"out": see("probe", array)}

    asked = []
    converter = lambda value, like: asked.append(like) or WithArray(data=value)  # noqa: E731
    component = CallableComponent(function, "unet", converter)
    outputs, _ = component.run({}, ["probe"], {"probe": X + 1})
    assert np.array_equal(outputs["out"], X + 1)
    assert asked == [array]


def steps(inputs, see):
    """Compute two layers, reusing memory."""
    buffer = see("first", inputs["x"] * 2)
    see.seen = see("unasked", buffer) is buffer
    later = see("second", buffer + 1)
    buffer[:] = 0
    return {"out": later, "wanted": np.array(sorted(see.wanted)), "seen": np.array(see.seen)}


def test_probes_are_seen_then_replaced():
    """A probe is copied when it is shown; what comes back takes its place; others are untouched."""
    component = CallableComponent(steps, "unet")
    outputs, probes = component.run({"x": X}, ["first", "second"], {"first": X + 5, "later": X})
    assert np.array_equal(probes["first"], 2 * X), "the port's own value, though memory was reused"
    assert np.array_equal(probes["second"], X + 6)
    assert np.array_equal(outputs["out"], X + 6)
    assert outputs["wanted"].tolist() == ["first", "later", "second"]
    assert outputs["seen"]
    outputs, probes = component.run({"x": X}, (), {"second": X})
    assert probes == {}, "replaced, but not asked for"
    assert np.array_equal(outputs["out"], X)


def test_a_map_is_put_in_as_the_function_has_it():
    """A value whose pixels are in one axis takes the shape of the function's own map."""
    own = np.zeros((2, 3, 4, 5), np.float32)
    value = np.arange(120.0).reshape(2, 3, 20)
    component = CallableComponent(lambda _, see: {"out": see("norm", own)}, "unet")
    outputs, _ = component.run({}, (), {"norm": value})
    assert np.array_equal(outputs["out"], value.reshape(own.shape))


def test_a_probe_shown_twice_is_an_error():
    """A layer that is shown twice has no one value."""
    component = CallableComponent(lambda i, see: {"out": see("a", see("a", i["x"]))}, "unet")
    with pytest.raises(PortError, match="probe a was shown more than once in one run"):
        component.run({"x": X}, ["a"])
    assert np.array_equal(component.run({"x": X})[0]["out"], X), "unless nothing is asked for"


def plain(inputs):
    """Return what the golden stores, as an array of a library of its own."""
    assert np.array_equal(inputs["sample"], CASE.inputs()["sample"])
    return {"sample": Own(load_golden(CASE).outputs["sample"].astype(np.float32))}


def seeing(inputs, see):
    """Take `see` and show nothing."""
    assert not see.wanted & {"nothing"}
    return plain(inputs)


def declining(*_):
    """Decline."""
    raise UnsupportedError("no UNet of that size")


def broken(*_):
    """Fail."""
    raise RuntimeError("no such device")


OFFERS = {
    "plain": ({"unet": lambda *_: plain}, {}, False),
    "seeing": ({"unet": lambda *_: seeing}, {}, True),
    "one-of-two": ({"tokenizer": lambda *_: plain, "unet": lambda *_: seeing}, {}, True),
    "partly-broken": ({"vae_encoder": broken, "unet": lambda *_: seeing}, {}, True),
    "declining": ({"unet": declining}, {}, False),
    "builtin": ({"unet": lambda *_: dict}, {}, False),
    "said": ({"unet": broken}, {"probes": True}, True),
    "denied": ({"unet": lambda *_: seeing}, {"probes": False}, False),
}


@pytest.mark.parametrize(("components", "options", "probes"), OFFERS.values(), ids=OFFERS)
def test_hello_follows_from_the_functions(components, options, probes):
    """There are probes if a function takes `see`, unless the port says otherwise."""
    port = CallablePort("mine", "1", components, ("float32", "float16"), ["cpu", "npu"], **options)
    hello = port.hello()
    assert (hello.probes, hello.replace) == (probes, probes)
    assert hello.components == tuple(components)
    assert (hello.arithmetics, hello.devices) == (("float32", "float16"), ("cpu", "npu"))


def judge(load, mode="trace"):
    """Judge a UNet in one mode."""
    runner = Runner(CallablePort("mine", "1", {"unet": load}))
    runner.asks_for_age = False
    return runner.run(CASE, Execution(mode=mode))


JUDGED = {
    "plain": (lambda *_: plain, "pass", ""),
    "no-probe-shown": (lambda *_: seeing, "pass", ""),
    "wrong": (lambda *_: lambda i: {"sample": -plain(i)["sample"].data}, "fail", "first wrong at"),
    "declined": (declining, "skip", "no UNet of that size"),
    "declined-later": (lambda *_: declining, "skip", "no UNet of that size"),
    "raises": (broken, "error", "the port raised RuntimeError: no such device"),
    "bare": (
        lambda *_: lambda _: Own(X),
        "error",
        'the function of unet returned Own, not a dict of arrays: write {"sample": ...}',
    ),
    "list": (
        lambda *_: lambda _: {"sample": [1.0]},
        "error",
        "a list cannot be made a NumPy array",
    ),
    "no-function": (
        lambda *_: X,
        "error",
        "load of unet returned ndarray, not a function of (inputs) or (inputs, see)",
    ),
}


@pytest.mark.parametrize(("load", "verdict", "message"), JUDGED.values(), ids=JUDGED)
def test_judged_as_any_port(load, verdict, message):
    """A right function passes, a wrong one fails, one that breaks is an error in one clear line."""
    result = judge(load)
    assert result.verdict == verdict
    assert result.message.startswith(message)


def test_no_splice_mode_without_see():
    """A function that shows no probes is not asked to have them overwritten."""
    result = judge(lambda *_: plain, "splice")
    assert (result.verdict, result.message) == (
        "skip",
        "mine has no `replace`: splice mode needs it",
    )


def test_what_loads_nothing_is_refused_when_made():
    """A component that no function loads is named before anything runs."""
    with pytest.raises(PortError, match=r"mine: unet is 'unet', not a function load\(variant, "):
        CallablePort("mine", "1", {"unet": "unet"})


def test_jax():
    """Arrays of jax go out, bfloat16 too, and come in with their own dtype."""
    jnp = pytest.importorskip("jax.numpy")

    def function(inputs, see):
        x = see("first", jnp.asarray(inputs["x"], jnp.bfloat16))
        return {"out": x + 1}

    component = CallableComponent(function, "unet")
    outputs, probes = component.run({"x": X}, ["first"], {"first": X + 1})
    assert np.array_equal(probes["first"], X)
    assert np.array_equal(outputs["out"], X + 2)
    assert outputs["out"].dtype == np.float32
