"""What a result depends on beside the port: the machine, the libraries and their settings."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from conformance.determinism import CHANGED, HASH_SEED, SWITCHES, WORKSPACE, has_cuda
from conformance.port import EXEC
from conformance.report.text import one_line

Facts = dict[str, str]
Changes = dict[str, list[str]]
"""By name of a fact: what it was, and what it is; empty where there was none."""

SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    HASH_SEED,
    "LC_ALL",
    WORKSPACE,
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUDA_VISIBLE_DEVICES",
)
"""Variables of the process that change which kernels run, or in which order things come."""

ACCELERATOR = ("nvidia driver", "cuda", "cudnn", "rocm", "tf32", "fp16 ", "bf16 ")
"""What the names of facts about an accelerator begin with: goldens are recorded without one."""

_TEXT = 60
_DRIVER = Path("/proc/driver/nvidia/version")
_CPUS = Path("/proc/cpuinfo")
_TORCH: dict[str, Callable[[Any], Any]] = {
    "torch": lambda torch: torch.__version__,
    "torch threads": lambda torch: torch.get_num_threads(),
    "torch interop threads": lambda torch: torch.get_num_interop_threads(),
    "cpu capability": lambda torch: torch.backends.cpu.get_cpu_capability(),
    "blas": lambda torch: "mkl" if torch.backends.mkl.is_available() else "other",
    "mkl": lambda torch: _version(r"Math Kernel Library Version (\S+)", torch.__config__.show()),
    "onednn": lambda torch: torch.backends.mkldnn.enabled,
    "onednn version": lambda torch: _version(r"MKL-DNN v(\S+)", torch.__config__.show()),
    "gradients": lambda torch: torch.is_grad_enabled(),
    "sdpa kernels": lambda torch: _sdpa_kernels(torch.backends.cuda),
    **{switch.name: switch.read for switch in SWITCHES if not switch.cuda},
}
_CUDA: dict[str, Callable[[Any], Any]] = {
    "cuda": lambda torch: torch.version.cuda,
    "rocm": lambda torch: torch.version.hip,
    "cuda driver": lambda torch: _dotted(torch._C._cuda_getDriverVersion()),  # noqa: SLF001
    "cuda devices": lambda torch: _devices(torch.cuda),
    "cudnn": lambda torch: torch.backends.cudnn.enabled and torch.backends.cudnn.version(),
    **{switch.name: switch.read for switch in SWITCHES if switch.cuda},
}


def environment() -> Facts:
    """Describe the machine, the libraries and their settings.

    Returns:
        Facts by name. Torch is asked only where a port has already imported it, its CUDA only where
        there is a device. A fact that cannot be had is left out: nothing is raised.
    """
    facts: Facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }
    _add(facts, "cpu", lambda: _version(r"model name\s*:\s*(.+)", _CPUS.read_text("utf-8")))
    _add(facts, "cpus allowed", lambda: len(os.sched_getaffinity(0)))
    _add(facts, "nvidia driver", lambda: _version(r"\s(\d+\.[\d.]+)\s", _DRIVER.read_text("utf-8")))
    facts |= {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    numpy = sys.modules.get("numpy")
    facts["numpy"] = numpy.__version__ if numpy else ""
    _add(facts, "numpy blas", lambda: _numpy_blas(numpy))
    torch = sys.modules.get("torch")
    asked = {**(_TORCH if torch else {}), **(_CUDA if has_cuda(torch) else {})}
    for name, ask in asked.items():
        _add(facts, name, partial(ask, torch))
    if CHANGED:
        facts["set by the suite"] = ", ".join(f"{name} {how}" for name, how in CHANGED.items())
    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            facts[name] = getattr(sys.modules[name], "__version__", "?")
    return facts


def _add(facts: Facts, name: str, ask: Callable[[], Any]) -> None:
    """Add a fact, if it can be had: a broken driver is no reason to judge nothing."""
    try:
        value = ask()
    except Exception:  # noqa: BLE001 - torch raises anything where a driver is broken
        return
    if value not in {None, ""}:
        facts[name] = str(value)


def _version(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else ""


def _numpy_blas(numpy: Any) -> str:
    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


_SDPA = {
    "flash": "flash_sdp_enabled",
    "efficient": "mem_efficient_sdp_enabled",
    "math": "math_sdp_enabled",
    "cudnn": "cudnn_sdp_enabled",
}


def _sdpa_kernels(cuda: Any) -> str:
    """Name the kernels that torch's attention may choose from, on any device."""
    return ", ".join(name for name, ask in _SDPA.items() if getattr(cuda, ask)())


def _dotted(version: int) -> str:
    """Write a version of CUDA as people do: 12040 is 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _devices(cuda: Any) -> str:
    """Name the devices that this process sees, and what each can compute."""
    found = []
    for i in range(cuda.device_count()):
        major, minor = cuda.get_device_capability(i)
        found.append(f"{cuda.get_device_name(i)} (sm_{major}{minor})")
    counts = {name: found.count(name) for name in found}
    return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items())


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Compare two environments.

    Args:
        before: Facts of the earlier one, by name.
        after: Facts of the later one.

    Returns:
        By name what differs, before and after; in the order of `after`.
    """
    names = dict.fromkeys([*after, *before])
    pairs = {name: [_text(facts.get(name)) for facts in (before, after)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def changes_text(changed: Mapping[str, Any], most: int) -> str:
    """Write changes in one line, `torch 2.12 -> 2.13`, those of an accelerator first.

    Args:
        changed: What `changes` returned, perhaps by way of a file.
        most: So many are written out.
    """
    names = sorted(changed, key=lambda name: not name.startswith(ACCELERATOR))
    texts = [
        f"{one_line(name, _TEXT)} "
        + " -> ".join(one_line(x, _TEXT) or "none" for x in changed[name])
        for name in names[:most]
    ]
    more = len(names) - most
    return ", ".join([*texts, *([f"{more} more"] if more > 0 else [])])


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def since_recorded(provenance: Mapping[str, str], facts: Mapping[str, Any]) -> Changes:
    """Compare the machine that recorded a golden with an environment.

    Args:
        provenance: What the golden says of its origin.
        facts: An `environment()`.

    Returns:
        What both know and is not the same, and all that this environment says of an accelerator.
    """
    cpu = f"{facts.get('machine', '')} {facts.get('cpu capability', '')}".strip()
    own = {**facts, "cpu": cpu}
    known = {name: text for name, text in provenance.items() if own.get(name)}
    here = {name: own[name] for name in known}
    return changes(known, here | {n: t for n, t in facts.items() if n.startswith(ACCELERATOR)})


def source_digest(port_spec: str) -> str:
    """Return the SHA-256 of the files that a PORT argument names; empty where it names none."""
    words = port_spec.removeprefix(EXEC).split() if port_spec.startswith(EXEC) else [port_spec]
    paths = [Path(re.sub(r":\w+$", "", word)) for word in words]
    files = [path for path in paths if path.is_file()]
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.read_bytes())
    return whole.hexdigest() if files else ""
