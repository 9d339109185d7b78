"""The matrix: every case, judged against its golden and against the oracle that is installed."""

import importlib.util

import numpy as np
import pytest

from conformance.compare import relative_error
from conformance.errors import UnsupportedError
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.sampling import term_and_step
from conformance.tolerance import LIMIT, ratio
from conformance.training import scale_name

NEEDS_ORACLE = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="needs the oracle: install extra `oracle`"
)


def test_layers(sd1_block, sd1_judge):
    """Every layer of a block, given the oracle's values, makes no more error than the reference."""
    sd1_judge(sd1_block)


def test_golden(sd1_item, sd1_judge):
    """The port agrees with the golden at every probe, in units of noise."""
    sd1_judge(sd1_item)


def test_axes(sd1_axis, sd1_judge):
    """Other arithmetics, backends and modes change nothing but rounding, and repeat themselves."""
    sd1_judge(sd1_axis)


def test_memory(sd1_memory, sd1_judge):
    """No block holds more than its budget: predicted, and equal to what real tensors take."""
    sd1_judge(sd1_memory)


@pytest.mark.gpu
def test_memory_on_cuda(sd1_cuda_memory, sd1_judge):
    """The same on a CUDA device, and what its allocator asks of it."""
    sd1_judge(sd1_cuda_memory)


@pytest.mark.gpu
def test_golden_on_cuda(sd1_cuda_item, sd1_judge):
    """The same on a CUDA device, float32 without TF32 and the half types; and all the axes."""
    sd1_judge(sd1_cuda_item)


@NEEDS_ORACLE
def test_live_oracle(sd1_case, live_oracle, sd1_runner):
    """Golden, live oracle and port agree: whole tensors, no sketch, no stored number between."""
    golden = load_golden(sd1_case)
    if sd1_case.component not in sd1_runner.hello.components:
        pytest.skip(f"{sd1_runner.hello.name} does not offer component {sd1_case.component}")
    component = sd1_runner.load(sd1_case, Execution().for_case(sd1_case))
    try:
        outputs, probes = component.run(sd1_case.inputs(), golden.asked)
    except UnsupportedError as error:
        pytest.skip(str(error))
    if sd1_case.exact:
        wanted = live_oracle.token_ids(sd1_case)
        assert np.array_equal(golden.outputs["input_ids"], wanted), "the golden has aged"
        assert np.array_equal(outputs["input_ids"], wanted)
        return

    truth = live_oracle.values(sd1_case, golden)
    assert live_oracle.verify.age_of_values(golden, truth) is None, "the golden has aged"
    noise = dict(zip(golden.probes, golden.noise["float32"], strict=True))
    noise |= {name: values[0] for name, values in golden.output_noise["float32"].items()}
    computed = probes | {
        name: outputs[name] if name in outputs else outputs[term_and_step(name)[0]][step]
        for name in golden.probes
        if golden.sketched_output(name) is not None
        for step in [term_and_step(name)[1]]
    }
    pairs = {name: (computed[name], truth.probes[name]) for name in golden.probes}
    whole = golden.output_noise["float32"]
    pairs |= {name: (outputs[name], truth.outputs[name]) for name in whole}
    for name, (found, wanted) in pairs.items():
        assert found.size == wanted.size, name
        difference = float(np.linalg.norm(found.reshape(wanted.shape) - wanted))
        scale = pairs[scale_name(name)][1]
        error = relative_error(difference, float(np.linalg.norm(scale)))
        assert ratio(error, noise[name], "float32") <= LIMIT, name
