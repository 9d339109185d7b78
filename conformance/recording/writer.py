"""Writing goldens, their manifest and the facts beside them: each file whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.case import all_cases
from conformance.golden import FORMAT, SOURCE, Golden
from conformance.manifest import golden_path, manifest_path
from conformance.recipe import SEED
from sd1_weights.names import golden_root

try:
    import fcntl
except ImportError:  # Windows: there one records at a time
    fcntl = None  # type: ignore[assignment]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from changing the manifest between reading and writing it."""
    if fcntl is None:
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write(goldens: dict[str, Golden]) -> None:
    """Write goldens and bring the manifest and the lock up to date, atomically file by file.

    Args:
        goldens: By case id.
    """
    path = manifest_path()
    with _alone(path):
        _write(path, goldens)


def _write(path: Path, goldens: dict[str, Golden]) -> None:
    manifest: dict[str, Any] = {"format": FORMAT, "source": SOURCE, "seed": SEED, "goldens": {}}
    if path.exists():
        manifest = json.loads(path.read_text(encoding="utf-8"))
    for case_id, golden in goldens.items():
        data = golden.to_bytes()
        target = golden_path(case_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data)
        manifest["goldens"][case_id] = {
            "file": f"{case_id}.safetensors",
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "hunts": golden.hunts,
            "inputs": {name: facts["sha256"] for name, facts in golden.inputs.items()},
            "provenance": golden.provenance,
        }
    manifest["goldens"] = dict(sorted(manifest["goldens"].items()))
    replace_file(path, _manifest_text(manifest).encode())
    ids = sorted([*manifest["goldens"], *(c.id for c in all_cases() if c.refused)])
    lock = "".join(f"{case_id}\n" for case_id in ids)
    replace_file(path.with_name("cases.lock"), lock.encode())


def _manifest_text(manifest: dict[str, Any]) -> str:
    """Write one golden a line, so that a difference between two manifests can be read."""
    head = {key: value for key, value in manifest.items() if key != "goldens"}
    lines = [f"{json.dumps(name)}: {json.dumps(e)}" for name, e in manifest["goldens"].items()]
    return json.dumps(head)[:-1] + ',\n"goldens": {\n' + ",\n".join(lines) + "\n}}\n"


def write_spec(texts: dict[str, str]) -> None:
    """Replace files of `golden/spec/`.

    Args:
        texts: By file name.
    """
    for name, text in texts.items():
        replace_file(golden_root() / "spec" / name, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
