"""Tensors without an axis stay what they are on every way: timesteps of pipelines are some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conformance.case import find_case
from conformance.golden_files import load_golden
from conformance.tensors import read_tensors, rounded, write_tensors

PICTURE = "pipeline/img2img/tiny/euler"


@pytest.mark.parametrize("floating", ["float64", "float32", "float16", "bfloat16"])
def test_scalars_cross_the_border(tmp_path: Path, floating: str) -> None:
    """What a port is handed has the shape that it handed out."""
    path = tmp_path / "values.safetensors"
    arrays = {
        "timestep#0": np.array(499.5, np.float32 if floating == "bfloat16" else floating),
        "timestep#1": np.array(981),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    write_tensors(path, arrays, floating)
    read = read_tensors(path)
    assert {name: array.shape for name, array in read.items()} == {
        "timestep#0": (),
        "timestep#1": (),
        "turned": (3, 2),
    }
    assert float(read["timestep#0"]) == pytest.approx(499.5, rel=2**-8)
    assert np.array_equal(read["turned"], arrays["turned"])
    handed = rounded(arrays, floating)
    assert {name: array.shape for name, array in handed.items()} == {
        name: array.shape for name, array in arrays.items()
    }


def test_values_of_a_pipeline_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the oracle computed of a picture is read from the cache, not computed again."""
    pytest.importorskip("diffusers")
    from conformance import oracle
    from conformance.recording.live import LiveTraces

    monkeypatch.setenv("SD1_CACHE", str(tmp_path))
    case = find_case(PICTURE)
    golden = load_golden(case)
    computed = LiveTraces()(case, golden)
    monkeypatch.setattr(oracle, "evaluate", None)
    read = LiveTraces()(case, golden)
    assert read.probes["timestep#0"].shape == ()
    assert all(np.array_equal(array, read.probes[n]) for n, array in computed.probes.items())
