"""What a result depends on beside the port: the machine, the libraries and their settings."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from pathlib import Path

from conformance.port import EXEC


def environment() -> dict[str, str]:
    """Describe the machine; torch is asked only where a port has already imported it."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "numpy": sys.modules["numpy"].__version__ if "numpy" in sys.modules else "",
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["torch"] = torch.__version__
        facts["torch threads"] = str(torch.get_num_threads())
        facts["cpu capability"] = torch.backends.cpu.get_cpu_capability()
        facts["onednn"] = str(torch.backends.mkldnn.enabled)
        facts["float32 matmul precision"] = torch.get_float32_matmul_precision()
    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            facts[name] = getattr(sys.modules[name], "__version__", "?")
    return facts


def source_digest(port_spec: str) -> str:
    """Return the SHA-256 of the files that a PORT argument names; empty where it names none."""
    words = port_spec.removeprefix(EXEC).split() if port_spec.startswith(EXEC) else [port_spec]
    paths = [Path(re.sub(r":\w+$", "", word)) for word in words]
    files = [path for path in paths if path.is_file()]
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.read_bytes())
    return whole.hexdigest() if files else ""
