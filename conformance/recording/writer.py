"""Writing goldens, their manifest and the facts beside them: each file whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
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


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait until what belongs together is written.

    Raises:
        KeyboardInterrupt: It was asked for meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def write(golden: Golden) -> int:
    """Write a golden and bring the manifest and the lock up to date: all of it, whatever Ctrl-C.

    Args:
        golden: What was recorded.

    Returns:
        The size of its file, in bytes.
    """
    data = golden.to_bytes()
    with _alone(manifest_path()), _undisturbed():
        target = golden_path(golden.case)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data)
        manifest = _manifest()
        manifest["goldens"][golden.case] = {
            "file": f"{golden.case}.safetensors",
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "hunts": golden.hunts,
            "inputs": {name: facts["sha256"] for name, facts in golden.inputs.items()},
            "provenance": golden.provenance,
        }
        manifest["goldens"] = dict(sorted(manifest["goldens"].items()))
        replace_file(manifest_path(), _manifest_text(manifest).encode())
        _write_lock(manifest)
    return len(data)


def write_lock() -> None:
    """List every golden, and every case that the reference refuses, in `cases.lock`."""
    with _alone(manifest_path()), _undisturbed():
        _write_lock(_manifest())


def _manifest() -> dict[str, Any]:
    path = manifest_path()
    if not path.exists():
        return {"format": FORMAT, "source": SOURCE, "seed": SEED, "goldens": {}}
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _write_lock(manifest: dict[str, Any]) -> None:
    ids = sorted([*manifest["goldens"], *(c.id for c in all_cases() if c.refused)])
    text = "".join(f"{case_id}\n" for case_id in ids)
    replace_file(manifest_path().with_name("cases.lock"), text.encode())


def _manifest_text(manifest: dict[str, Any]) -> str:
    """Write one golden a line, so that a difference between two manifests can be read."""
    head = {key: value for key, value in manifest.items() if key != "goldens"}
    lines = [f"{json.dumps(name)}: {json.dumps(e)}" for name, e in manifest["goldens"].items()]
    return json.dumps(head)[:-1] + ',\n"goldens": {\n' + ",\n".join(lines) + "\n}}\n"


def write_spec(texts: dict[str, str]) -> dict[Path, bool]:
    """Replace files of `golden/spec/`.

    Args:
        texts: By file name.

    Returns:
        By file, whether it has changed.
    """
    changed = {}
    for name, text in texts.items():
        path = golden_root() / "spec" / name
        changed[path] = not path.exists() or path.read_bytes() != text.encode()
        replace_file(path, text.encode())
    return changed


def replace_file(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:  # Ctrl-C, a full disk
        temporary.unlink(missing_ok=True)
        raise
