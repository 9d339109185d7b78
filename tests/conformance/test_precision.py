"""Precision: errors that look like rounding are told from those that have a cause of their own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from conformance.case import find_case
from conformance.compare import Record
from conformance.evidence.collect import Answer
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.precision import (
    Finding,
    explained,
    format_of,
    implied_bits,
    look,
    products,
    settings_on,
)
from conformance.result import Result
from conformance.traces import Values
from conformance.whiteness import fraction_bits, is_white

RANDOM = np.random.default_rng(7)
SHAPE = (2, 32, 16, 16)
CONV = "down_blocks.0.resnets.0.conv1"


def rounded(array, bits):
    """Round to fraction bits."""
    mantissas, exponents = np.frexp(array)
    return np.ldexp(np.rint(mantissas * 2 ** (bits + 1)), exponents - bits - 1)


def product(bits=None):
    """Return a 1x1 convolution of normal numbers, its operands rounded."""
    random = np.random.default_rng(3)
    image, kernel = random.normal(size=SHAPE), random.normal(size=(32, 32))
    if bits is not None:
        image, kernel = rounded(image, bits), rounded(kernel, bits)
    return np.einsum("bchw,oc->bohw", image, kernel)


@pytest.mark.parametrize("bits", [7, 10, 23])
def test_bits_are_read_off_an_error(bits):
    """A product of rounded operands implies their bits, less half a one for the second operand."""
    truth = product()
    error = product(bits) - truth
    implied = implied_bits(np.linalg.norm(error) / np.linalg.norm(truth))
    assert implied == pytest.approx(bits - 0.5, abs=0.15)
    assert format_of(implied, "float64") == bits
    assert format_of(implied, "float32") == (None if bits == 23 else bits)
    assert is_white(error, truth)


def test_other_sizes_are_no_format():
    """Between formats lie sums in half precision; below and above lies nothing."""
    assert format_of(8.2, "float32") == 8
    assert format_of(5.0, "float32") is None
    assert format_of(13.0, "float32") is None
    assert implied_bits(0.0) == np.inf


NOISE = RANDOM.normal(size=SHAPE)

STRUCTURED = {
    "a scale": lambda t: 2e-4 * t,
    "an eps": lambda t: 2e-4 * t * (1 + 0.1 * NOISE),
    "a bias": lambda t: 2e-3 * np.arange(32)[:, None, None] + 0 * t,
    "one channel": lambda t: np.where(np.arange(32)[:, None, None] == 5, NOISE, 0 * t),
    "a border": lambda t: np.where(np.arange(16) == 15, NOISE, 0 * t),
    "two rows": lambda t: np.where(np.arange(16)[:, None] < 2, NOISE, 0 * t),
    "a function": lambda t: 1e-3 * np.tanh(t),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_an_error_with_a_cause_is_not_white(name):
    """What a wrong constant, border, channel or function makes has a structure."""
    truth = product()
    assert not is_white(STRUCTURED[name](truth), truth)


def test_few_values_tell_nothing():
    """Of under 128 numbers, or of one that is not finite, nothing is said."""
    assert not is_white(RANDOM.normal(size=(2, 32)), RANDOM.normal(size=(2, 32)))
    error = RANDOM.normal(size=SHAPE)
    error[0, 0, 0, 0] = np.nan
    assert not is_white(error, product())


def test_fraction_bits_of_stored_values():
    """Values that passed through a narrower type keep its mark."""
    values = RANDOM.normal(size=1000)
    stored = {b: fraction_bits(rounded(values, b)) for b in (7, 10, 23)}
    assert stored == {7: 7, 10: 10, 23: 23}
    assert fraction_bits(values) == 52


def test_products_are_known_by_their_weights():
    """Convolutions, linear layers and attention cores; norms and embeddings are none."""
    kinds = products("unet", "tiny")
    assert kinds[CONV] == "convolution"
    assert kinds["time_embedding.linear_1"] == "linear layer"
    assert sum(kind == "attention core" for kind in kinds.values()) == 32
    assert not any("norm" in name for name in kinds)
    assert "text_model.embeddings.token_embedding" not in products("text_encoder", "tiny")


def failing(error, dtype="float32", name=CONV):
    """Return the result of a splice in which one layer errs, and what was answered."""
    truth = product()
    err = float(np.linalg.norm(error) / np.linalg.norm(truth))
    record = Record(name, "probe", list(SHAPE), err, 1e-7, err / 1e-7, "fail", approximate=False)
    case = find_case("unet/tiny/base")
    values = Values({name: truth}, {})
    answer = Answer(load_golden(case), {}, {name: truth + error}, values)
    return Result(case, Execution(dtype=dtype, mode="splice"), "fail", [record]), answer


def test_one_convolution_in_tf32_is_found():
    """A single layer, by the size and the look of its error."""
    truth = product()
    error = product(10) - truth
    assert look(*failing(error)) == Finding(10, "one convolution")
    assert look(*failing(error, dtype="bfloat16")) is None


def test_a_fault_of_the_same_size_is_none():
    """Neither a scale that happens to cost as much, nor white noise where no product is."""
    assert look(*failing(2e-4 * product())) is None
    white = 2e-4 * np.std(product()) * NOISE
    assert look(*failing(white)) is not None
    assert look(*failing(white, name="down_blocks.0.resnets.0.norm1")) is None


def test_the_message_names_format_and_setting():
    """TF32 alone where a switch of it is on; both candidates where none is."""
    found = Finding(10, "one convolution")
    assert explained(found, "float32", []) == (
        "about 10 bits: TF32 or float16 in one convolution, not float32"
    )
    assert explained(found, "float32", ["tf32 cudnn is True"]) == (
        "about 10 bits: TF32 in one convolution, not float32 (tf32 cudnn is True)"
    )
    assert explained(Finding(7, "x"), "float32", []) == "about 7 bits: bfloat16 in x, not float32"
    doubted = explained(Finding(7, "x", blocks=True), "float32", [])
    assert doubted.endswith("not float32; a wrong formula within these blocks may look so")


def test_settings_that_lower_precision():
    """Those of CUDA count on CUDA alone; what is exact, or not known, is not named."""
    facts = {
        "tf32 cudnn": "True",
        "tf32 matmul": "False",
        "float32 matmul precision": "medium",
        "onednn conv precision": "none",
    }
    assert settings_on(facts, "cpu") == ["float32 matmul precision is medium"]
    assert settings_on(facts, "cuda:0") == [
        "float32 matmul precision is medium",
        "tf32 cudnn is True",
    ]
    assert settings_on({}, "cuda") == []


def silently_in(arithmetic):
    """Return sd1_impl that says float32 and computes in another arithmetic."""
    sd1_impl = pytest.importorskip("conformance.adapters.sd1_impl", exc_type=ImportError)
    own = sd1_impl.port()

    def load(component, variant, weights, _arithmetic, device):
        return own.load(component, variant, weights, arithmetic, device)

    return SimpleNamespace(hello=own.hello, load=load)


@pytest.mark.parametrize(("arithmetic", "bits"), [("tf32", 10), ("bf16-matmul", 7)])
def test_a_port_that_computes_in_less_is_told_so(arithmetic, bits):
    """A trace alone suffices where the golden knows the noise of what the port computes in."""
    from conformance.runner import Runner

    runner = Runner(silently_in(arithmetic))
    runner.asks_for_age = False
    result = runner.run(find_case("text_encoder/tiny/base"), Execution())
    assert result.first_divergence["kind"] == "precision"
    assert result.first_divergence["hint"].startswith(f"about {bits} bits: ")
