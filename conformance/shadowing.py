"""Are `sd1_impl` and `sd1_weights` those that belong to this `conformance`, whole and unmixed?

Python takes the first package of a name on its path, and `python -m` puts the folder that it is
started in there first, as PYTHONPATH does with others. Another distribution may also install into
the same folders. Only the standard library is needed: this is asked before the rest is imported.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conformance.errors import SuiteError

HOME = Path(__file__).resolve().parent.parent
"""The folder that holds this `conformance`: the others lie beside it."""

IMPORTED = ("sd1_weights", "sd1_impl")
"""Packages beside `conformance` that are imported by name, and so may be shadowed."""

DATA = "golden"
"""Read from beside `sd1_weights`, never imported: a package of that name shadows nothing."""

PACKAGES = ("conformance", *IMPORTED, DATA)

_OWN = "sd1_conformance-"
_INFO = ".dist-info"


@dataclass(frozen=True)
class Found:
    """A package by its name, as Python finds it.

    Attributes:
        name: Its name.
        path: The folder or file that is taken; None where there is none.
        own: Whether it is the one that belongs to this `conformance`.
    """

    name: str
    path: Path | None
    own: bool


def find(name: str) -> Found:
    """Find a package without importing it.

    Args:
        name: One of `PACKAGES`.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return Found(name, None, own=False)
    places = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    if spec.origin and not places:  # one file, not a folder
        places = [Path(spec.origin).resolve()]
    if HOME / name in places:
        return Found(name, HOME / name, own=True)
    return Found(name, places[0] if places else None, own=False)


def require_own_packages() -> None:
    """Check that what is imported by name is our own.

    A package that was deleted from beside `conformance` is another matter: whatever needs it says
    that it is not there.

    Raises:
        SuiteError: Another package of that name comes first on Python's path.
    """
    for name in IMPORTED:
        found = find(name)
        if found.path is not None and not found.own and (HOME / name).is_dir():
            message = f"{name} is taken from {found.path}, not from {HOME / name}: {_advice(found)}"
            raise SuiteError(message)


def _advice(found: Found) -> str:
    """Say how to let our own package come first."""
    folder = found.path.parent if found.path else HOME
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder in [Path(text).resolve() for text in given if text]:
        return f"take {folder} out of PYTHONPATH"
    if folder == Path.cwd().resolve():
        return "start from another folder, or by `sd1-conformance` instead of `python -m`"
    return f"{folder} comes before {HOME} on Python's path (sys.path): take it out, or move it back"


def in_the_way(folder: Path) -> list[Path]:
    """Return what in a folder `python -m conformance` would take instead of ours.

    Args:
        folder: Where Python would be started.
    """
    if folder.resolve() == HOME:
        return []
    names = [name for name in PACKAGES if name != DATA]
    tried = [
        path for name in names for path in (folder / name / "__init__.py", folder / f"{name}.py")
    ]
    return [path.parent if path.name == "__init__.py" else path for path in tried if path.is_file()]


def mixed() -> Iterator[tuple[str, list[str]]]:
    """Yield the other distributions that installed into our folders.

    Yields:
        Name and version, and into which folders.
    """
    for record in sorted(HOME.glob(f"*{_INFO}/RECORD")):
        if record.parent.name.startswith(_OWN):
            continue
        text = b"\n" + record.read_bytes()
        names = [name for name in PACKAGES if f"\n{name}/".encode() in text]
        if names:
            yield record.parent.name.removesuffix(_INFO), names


def altered() -> list[str]:
    """Return the files of the program that are not those that were installed.

    Returns:
        Their names within the installation; none in a checkout, where the files are to be edited.
        Goldens are left out: the manifest protects them.
    """
    records = sorted(HOME.glob(f"{_OWN}*{_INFO}/RECORD"))
    rows = csv.reader(io.StringIO(records[0].read_text("utf-8"))) if records else ()
    own = tuple(f"{name}/" for name in PACKAGES if name != DATA)
    return [
        name
        for name, digest, _ in rows
        if digest and name.startswith(own) and _digest(HOME / name) != digest
    ]


def _digest(path: Path) -> str:
    """Return a file's digest as RECORD has it; empty where there is no file."""
    try:
        whole = hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return ""
    return f"sha256={base64.urlsafe_b64encode(whole).rstrip(b'=').decode()}"
