"""What a run says of the machine, the libraries and their settings."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from conformance import environment as module
from conformance.environment import changes, changes_text, environment, since_recorded


def torch_with_a_gpu(**changes: Any) -> SimpleNamespace:
    """Stand in for torch on a machine with two equal GPUs."""
    matmul = SimpleNamespace(
        allow_tf32=True,
        allow_fp16_reduced_precision_reduction=False,
        allow_bf16_reduced_precision_reduction=(True, True),
    )
    backends = SimpleNamespace(
        cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2"),
        mkl=SimpleNamespace(is_available=lambda: True),
        mkldnn=SimpleNamespace(enabled=True),
        cuda=SimpleNamespace(matmul=matmul),
        cudnn=SimpleNamespace(
            enabled=True,
            version=lambda: 91002,
            benchmark=False,
            deterministic=True,
            allow_tf32=False,
        ),
    )
    facts = {
        "__version__": "2.13.0+cu130",
        "__config__": SimpleNamespace(
            show=lambda: (
                "  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 1\n"
                "  - Intel(R) MKL-DNN v3.12.0 (Git Hash 0)\n"
            )
        ),
        "_C": SimpleNamespace(_cuda_getDriverVersion=lambda: 13010),
        "backends": backends,
        "version": SimpleNamespace(cuda="13.0", hip=None),
        "cuda": SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 2,
            get_device_name=lambda _: "NVIDIA H100",
            get_device_capability=lambda _: (9, 0),
        ),
        "get_num_threads": lambda: 4,
        "get_num_interop_threads": lambda: 2,
        "get_float32_matmul_precision": lambda: "high",
        "are_deterministic_algorithms_enabled": lambda: False,
    }
    return SimpleNamespace(**(facts | changes))


def test_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Driver, runtime, devices and flags that change how numbers are rounded are told."""
    monkeypatch.setitem(sys.modules, "torch", torch_with_a_gpu())
    expected = {
        "torch": "2.13.0+cu130",
        "torch threads": "4",
        "torch interop threads": "2",
        "cpu capability": "AVX2",
        "blas": "mkl",
        "mkl": "2024.2-Product",
        "onednn": "True",
        "onednn version": "3.12.0",
        "float32 matmul precision": "high",
        "deterministic": "False",
        "cuda": "13.0",
        "cuda driver": "13.1",
        "cuda devices": "2 x NVIDIA H100 (sm_90)",
        "cudnn": "91002",
        "cudnn benchmark": "False",
        "cudnn deterministic": "True",
        "tf32 cudnn": "False",
        "tf32 matmul": "True",
        "fp16 reduced-precision sums": "False",
        "bf16 reduced-precision sums": "(True, True)",
    }
    facts = environment()
    assert {name: facts.get(name) for name in expected} == expected
    assert "rocm" not in facts


def test_a_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch raises costs one fact, and the run nothing."""

    def broken(*_: object) -> None:
        message = "CUDA error: unknown"
        raise RuntimeError(message)

    cuda = SimpleNamespace(is_available=lambda: True, device_count=broken)
    torch = torch_with_a_gpu(cuda=cuda, backends=None, get_num_threads=broken)
    monkeypatch.setitem(sys.modules, "torch", torch)
    facts = environment()
    assert facts["cuda driver"] == "13.1"
    assert not {"cuda devices", "torch threads", "cudnn"} & facts.keys()
    monkeypatch.setitem(sys.modules, "torch", torch_with_a_gpu(cuda=None))
    assert "cuda driver" not in environment()


def test_torch_is_not_imported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port without torch is described without it."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    facts = environment()
    assert "torch" not in sys.modules
    assert not {name for name in facts if name.startswith(("torch", "cuda", "tf32"))}


def test_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Processor, kernel driver and settings of the process are read without any library."""
    (tmp_path / "cpu").write_text("processor\t: 0\nmodel name\t: AMD EPYC 9554\nflags\t: a b\n")
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    (tmp_path / "driver").write_text(text)
    monkeypatch.setattr(module, "_CPUS", tmp_path / "cpu")
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "driver")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    facts = environment()
    assert facts["cpu"] == "AMD EPYC 9554"
    assert facts["nvidia driver"] == "580.65.06"
    assert facts["NVIDIA_TF32_OVERRIDE"] == "0"
    assert facts["numpy blas"]
    assert all(isinstance(value, str) for value in facts.values())
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "none")
    assert "nvidia driver" not in environment()


def test_changes() -> None:
    """What differs is told with both values, what appeared or went with an empty one."""
    before = {"torch": "2.12", "numpy": "2.4", "mkl": "2024"}
    after = {"torch": "2.13", "numpy": "2.4", "cuda driver": "13.0"}
    found = changes(before, after)
    assert found == {"torch": ["2.12", "2.13"], "cuda driver": ["", "13.0"], "mkl": ["2024", ""]}
    assert changes_text(found, 2) == "cuda driver none -> 13.0, torch 2.12 -> 2.13, 1 more"
    assert changes(after, after) == {}
    assert changes_text({}, 2) == ""


def test_since_the_goldens_were_recorded() -> None:
    """Of a golden's provenance what this environment knows is compared, and accelerators told."""
    provenance = {"torch": "2.13", "cpu": "x86_64 AVX512", "commit": "1a2b", "blas": "mkl"}
    facts = {
        "machine": "x86_64",
        "cpu capability": "AVX2",
        "cpu": "AMD EPYC",
        "torch": "2.13",
        "blas": "other",
        "tf32 matmul": "True",
    }
    assert since_recorded(provenance, facts) == {
        "cpu": ["x86_64 AVX512", "x86_64 AVX2"],
        "blas": ["mkl", "other"],
        "tf32 matmul": ["", "True"],
    }
