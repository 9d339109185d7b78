"""The manifest of the goldens: digests, inputs and provenance of every file. No torch."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import GoldenError
from sd1_weights.names import golden_root

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator


def golden_path(case_id: str) -> Path:
    """Return where the golden of a case lies."""
    return golden_root() / f"{case_id}.safetensors"


def manifest_path() -> Path:
    """Return where the manifest lies."""
    return golden_root() / "manifest.json"


@cache
def _validator() -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # late: beside Jupyter it takes over a second

    path = Path(__file__).parent / "schemas" / "manifest.schema.json"
    return Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def read_manifest() -> dict[str, Any]:
    """Read and check `golden/manifest.json`.

    Raises:
        GoldenError: It is missing, not JSON, or breaks its schema.
    """
    path = manifest_path()
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        message = f"{path}: {error}; restore it from the repository or run golden record"
        raise GoldenError(message) from error
    problem = next(_validator().iter_errors(manifest), None)
    if problem is not None:
        message = f"{path}: {problem.json_path}: {problem.message[:200]}"
        raise GoldenError(message)
    return manifest


def manifest_digest() -> str:
    """Return the SHA-256 of the manifest: which goldens a run was judged by.

    Raises:
        GoldenError: There is no valid manifest.
    """
    read_manifest()
    return hashlib.sha256(manifest_path().read_bytes()).hexdigest()


@cache
def _cached_manifest(_stamp: tuple[str, int]) -> dict[str, Any]:
    return read_manifest()


def manifest() -> dict[str, Any]:
    """Return the manifest, read again only when the file has changed."""
    path = manifest_path()
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return _cached_manifest((str(path), stamp))
