"""Ports with channels last, and ports of fixed shapes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from conformance.case import find_case
from conformance.execution import Execution
from conformance.layout import channels_first, channels_last
from conformance.port import Hello, resolve
from conformance.runner import Runner

NEEDS_TORCH = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="needs the oracle: install extra `oracle`"
)


def to_last(name: str, array: np.ndarray) -> np.ndarray:
    """Do what a port in NHWC would hand out: maps with channels last, pixels in one axis or two."""
    if array.ndim >= 4:
        return np.moveaxis(array, -3, -1)
    return np.moveaxis(array, 1, -1) if name.endswith(".group_norm") else array


class Last:
    """sd1_impl, seen by itself as a port with channels last."""

    def __init__(self, *, honest: bool = True) -> None:
        """Keep the layout that it claims."""
        self.right = resolve("sd1_impl")
        self.layout = "NHWC" if honest else "NCHW"

    def hello(self) -> Hello:
        """Offer what sd1_impl offers."""
        return replace(self.right.hello(), layout=self.layout)

    def load(self, *arguments):
        """Load and turn everything that crosses the border."""
        loaded = self.right.load(*arguments)

        class Turned:
            def run(self, inputs, probes=(), values=None):
                first = {n: np.moveaxis(a, -1, -3) if a.ndim >= 4 else a for n, a in inputs.items()}
                given = None
                if values is not None:
                    given = {
                        n: np.moveaxis(a, -1, -3) if a.ndim >= 4 else a for n, a in values.items()
                    }
                outputs, seen = loaded.run(first, probes, given)
                return tuple({n: to_last(n, a) for n, a in d.items()} for d in (outputs, seen))

        return Turned()


@NEEDS_TORCH
@pytest.mark.parametrize("mode", ["trace", "splice"])
@pytest.mark.parametrize(
    "name", ["unet/tiny/base", "vae_decoder/tiny/base", "vae_encoder/tiny/base"]
)
def test_networks(name: str, mode: str) -> None:
    """Inputs, outputs, probes and values are turned: the port conforms in both modes."""
    case = find_case(name)
    result = Runner(Last()).run(case, Execution(mode=mode))
    assert result.verdict == "pass", result.message
    asked = {r.name for r in result.records}
    assert len(asked) > 60


@NEEDS_TORCH
def test_schedulers() -> None:
    """Every step of a scheduler is turned too."""
    case = find_case("scheduler/ddim/-/steps7")
    assert Runner(Last()).run(case, Execution().for_case(case)).verdict == "pass"


@NEEDS_TORCH
def test_layout_has_to_be_said() -> None:
    """The same port without the word fails, and does not crash."""
    result = Runner(Last(honest=False)).run(find_case("vae_decoder/tiny/base"), Execution())
    assert result.verdict in {"fail", "error"}


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7, 2, 3, 4, 5), (2, 64, 64, 64)])
def test_there_and_back(shape: tuple[int, ...]) -> None:
    """Moving channels to the end and back changes nothing, whatever the sizes."""
    array = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(channels_first("x", channels_last(array)), array)


@pytest.mark.parametrize("name", ["image_uint8", "tokens"])
def test_left_alone(name: str) -> None:
    """Pixels of a picture and tokens are no maps."""
    array = np.zeros((2, 4, 5, 3) if name == "image_uint8" else (2, 77, 64))
    assert channels_first(name, array) is array


@pytest.mark.parametrize(
    ("allowed", "layout", "verdict"),
    [
        ([[2, 4, 16, 16]], "NCHW", "pass"),
        ([[1, 4, None, None], [2, None, None, None]], "NCHW", "pass"),
        ([[1, 4, 16, 16]], "NCHW", "skip"),
        ([[2, 4, 16]], "NCHW", "skip"),
        ([[2, 16, 16, 4]], "NCHW", "skip"),
    ],
)
def test_fixed_shapes(fake, allowed: list, layout: str, verdict: str) -> None:
    """A case of another shape than the port takes is a skip that says which it takes."""
    port = fake()
    port.offers = replace(port.offers, shapes={"unet": {"sample": allowed}}, layout=layout)
    result = Runner(port).run(find_case("unet/tiny/base"), Execution())
    assert result.verdict == verdict
    if verdict == "skip":
        assert "takes sample of shape (" in result.message
        assert "not (2, 4, 16, 16)" in result.message


@pytest.mark.parametrize(("offered", "verdict"), [("tiny*", "pass"), ("sd1*", "skip")])
def test_variants_offered(fake, offered: str, verdict: str) -> None:
    """A variant that is not offered is a skip; what has no variant is always offered."""
    port = fake()
    port.offers = replace(port.offers, variants=(offered,))
    result = Runner(port).run(find_case("unet/tiny/base"), Execution())
    assert result.verdict == verdict
    text = find_case("tokenizer/-/plain")
    assert Runner(port).run(text, Execution().for_case(text)).verdict == "pass"


def test_pictures_that_go_in_are_left_alone() -> None:
    """Bytes have their channels last in every port; the noise beside them is turned."""
    pixels, noise = np.zeros((2, 64, 48, 3), np.uint8), np.zeros((2, 4, 8, 6), np.float32)
    assert channels_last(pixels) is pixels
    assert channels_last(noise).shape == (2, 8, 6, 4)
