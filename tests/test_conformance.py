"""The matrix: every case, judged against its golden and against the oracle that is installed."""

import importlib.util

import numpy as np
import pytest

from conformance.golden import load_golden
from conformance.runner import Execution
from conformance.tolerance import LIMIT, ratio

NEEDS_ORACLE = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="needs the oracle: install extra `oracle`"
)


def test_golden(sd1_item, sd1_judge):
    """The port agrees with the golden at every probe, in units of noise."""
    sd1_judge(sd1_item)


@pytest.mark.gpu
def test_golden_on_cuda(sd1_cuda_item, sd1_judge):
    """The same on a CUDA device, float32 without TF32 and the half types."""
    sd1_judge(sd1_cuda_item)


@NEEDS_ORACLE
def test_live_oracle(sd1_case, live_oracle, sd1_runner):
    """Golden, live oracle and port agree: whole tensors, no sketch, no stored number between."""
    golden = load_golden(sd1_case)
    truth = live_oracle(sd1_case)
    assert live_oracle.verify.age_of(golden, truth) is None, "the golden has aged"

    component = sd1_runner._load(sd1_case, Execution())
    outputs, probes = component.run(sd1_case.inputs(), golden.probes)
    for name, noise in zip(golden.probes, golden.noise["float32"], strict=True):
        wanted = truth.probes[name].numpy()
        error = np.linalg.norm(probes[name] - wanted) / np.linalg.norm(wanted)
        assert ratio(error, noise, "float32") <= LIMIT, name
    for name, wanted in truth.outputs.items():
        error = np.linalg.norm(outputs[name] - wanted.numpy()) / np.linalg.norm(wanted.numpy())
        assert ratio(error, golden.output_noise["float32"][name][0], "float32") <= LIMIT, name
