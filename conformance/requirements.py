"""What this package asks of others, read from its own metadata, and what of it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import operator
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conformance.devices import visible_devices
from conformance.shadowing import HOME

DISTRIBUTION = "sd1-conformance"
CORE = ""
"""The extra of what is always installed."""

TESTS = "test"
"""The dependency group of the pytest items; a wheel does not tell it."""

ORACLE = ("torch", "diffusers", "transformers")
"""Distributions that make the oracle."""

_TESTS = ("pytest", "pytest-xdist")

MISSING, OUTSIDE, THERE = "missing", "outside", "there"

_WITH_GROUPS = ">=25.1"
"""Versions of pip that install a dependency group; that of a new Python 3.11 is older."""

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(\[(?P<extras>[^\]]*)\])?\s*\(?(?P<range>[^;)]*)\)?"
    r"\s*(;.*extra\s*==\s*[\"'](?P<extra>[\w-]+)[\"'])?.*"
)
_RELEASE = re.compile(r"\d+(\.\d+)*")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([\w.+]+)")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Requirement:
    """A distribution that is asked for.

    Attributes:
        name: Its name.
        range: The versions that are supported, `>=2.11,<3`; empty for any.
        extra: The extra that asks for it; `CORE` for what is always installed.
        extras: Of our own distribution, the extras that this one includes.
    """

    name: str
    range: str
    extra: str = CORE
    extras: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str, extra: str = CORE) -> Requirement:
        """Read a requirement as metadata has it: `pillow>=11; extra == 'torch'`.

        Args:
            text: The requirement.
            extra: Of which it is, where the text does not say.

        Raises:
            ValueError: It is none.
        """
        found = _REQUIREMENT.fullmatch(text.strip())
        if found is None:
            message = f"{text!r} is no requirement"
            raise ValueError(message)
        extras = tuple(part.strip() for part in (found["extras"] or "").split(",") if part.strip())
        return cls(found["name"], found["range"].strip(), found["extra"] or extra, extras)


@dataclass(frozen=True)
class Installed:
    """A distribution and what there is of it.

    Attributes:
        name: Its name.
        version: The version that is installed; empty for none.
        range: The versions that are supported.
        extra: The extra that asks for it.
        state: `there`, `outside` of the range, or `missing`.
    """

    name: str
    version: str
    range: str
    extra: str
    state: str


def is_checkout() -> bool:
    """Say whether the code that runs lies in a checkout, not where a wheel was installed."""
    return (HOME / "pyproject.toml").is_file()


@cache
def requirements() -> tuple[Requirement, ...]:
    """Return what this package asks for: from its metadata, or a checkout's own file without it."""
    try:
        texts = importlib.metadata.requires(DISTRIBUTION) or []
        found = [Requirement.read(text) for text in texts]
    except importlib.metadata.PackageNotFoundError:
        project = _checkout().get("project", {})
        found = [Requirement.read(text) for text in project.get("dependencies", ())]
        for extra, own in project.get("optional-dependencies", {}).items():
            found += [Requirement.read(text, extra) for text in own]
    group = _checkout().get("dependency-groups", {}).get(TESTS, _TESTS)
    return (*found, *(Requirement.read(text, TESTS) for text in group))


@cache
def _checkout() -> dict[str, Any]:
    path = HOME / "pyproject.toml"
    return tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}


def python_range() -> str:
    """Return the versions of Python that are supported; empty where nobody says."""
    try:
        own = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return str(_checkout().get("project", {}).get("requires-python", ""))
    return own["Requires-Python"] or ""


def installed() -> list[Installed]:
    """Return every distribution that is asked for, each once, the core's first."""
    own = {r.name: r for r in reversed(requirements()) if r.name != DISTRIBUTION}
    names = dict.fromkeys(r.name for r in requirements() if r.name in own)
    return [_installed(own[name]) for name in names]


def _installed(wanted: Requirement) -> Installed:
    version = version_of(wanted.name)
    extra = wanted.extra and extra_with([wanted.name])
    state = state_of(version, wanted.range)
    return Installed(wanted.name, version, wanted.range, extra, state)


def version_of(name: str) -> str:
    """Return the installed version of a distribution; empty where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def state_of(version: str, supported: str) -> str:
    """Say how a version stands to a range.

    Args:
        version: `2.13.0+cpu`; empty for none. Only the numbers count: a release candidate is
            taken for the release.
        supported: `>=2.11,<3`.

    Returns:
        `there`, `outside` or `missing`.
    """
    if not version:
        return MISSING
    inside = all(
        _COMPARE[sign](*_padded(version, bound)) for sign, bound in _BOUND.findall(supported)
    )
    return THERE if inside else OUTSIDE


def _padded(*versions: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of two versions, as many of one as of the other."""
    rows = (_numbers(version) for version in versions)
    one, other = zip(*zip_longest(*rows, fillvalue=0), strict=True)
    return one, other


def _numbers(version: str) -> list[int]:
    found = _RELEASE.match(version)
    return [int(part) for part in found[0].split(".")] if found else [0]


def extra_with(names: Iterable[str]) -> str:
    """Return the smallest extra, or group, that installs some distributions; empty for none."""
    wanted = set(names)
    found = {extra: _closure(extra) for extra in dict.fromkeys(r.extra for r in requirements())}
    fitting = [extra for extra, own in found.items() if extra and wanted <= own]
    return min(fitting, key=lambda extra: len(found[extra]), default="")


def added_together(wanted: Iterable[Iterable[str]]) -> list[set[str]]:
    """Join sets of distributions that one extra installs, so that few commands install all.

    Args:
        wanted: Sets of names.
    """
    found: list[set[str]] = []
    for names in map(set, wanted):
        group = next((own for own in found if extra_with(own | names)), None)
        if group is None:
            found.append(names)
        else:
            group |= names
    return found


def _closure(extra: str) -> set[str]:
    """Return what an extra installs, with what it includes of others."""
    own = [r for r in requirements() if r.extra == extra]
    included = [_closure(other) for r in own if r.name == DISTRIBUTION for other in r.extras]
    return set().union({r.name for r in own}, *included)


def adding(names: Iterable[str], *, gpu: bool | None = None) -> str:
    """Return the command that installs some distributions, those of an extra all together.

    It is uv's where there is no pip, as in an environment that uv made. A checkout, or the folder
    that was installed, has constraints: the versions that the goldens were recorded with.

    Args:
        names: Of distributions.
        gpu: Whether to take the constraints for CUDA; None for whether a process may use a GPU.
    """
    names = list(names)
    extra = extra_with(names)
    has_pip = importlib.util.find_spec("pip") is not None
    pip = f"{'python -m' if has_pip else 'uv'} pip install"
    home = HOME if is_checkout() else _source_folder()
    if home:
        gpu = _on_gpu() if gpu is None else gpu
        constraints = home / "constraints" / ("cu130.txt" if gpu else "cpu.txt")
        pip += f" -c {shlex.quote(str(constraints))}"
    knows_groups = not has_pip or state_of(version_of("pip"), _WITH_GROUPS) == THERE
    if extra == TESTS and home and knows_groups:
        return f"{pip} --group '{home / 'pyproject.toml'}:{TESTS}'"
    if extra in {CORE, TESTS}:
        return f"{pip} {' '.join(map(_with_range, names))}"
    if home:
        return f"{pip} {'-e ' if is_checkout() else ''}'{home}[{extra}]'"
    return f"{pip} '{DISTRIBUTION}[{extra}]{_origin()}'"


def _with_range(name: str) -> str:
    """Write a distribution and its supported versions, for a shell."""
    supported = next((r.range for r in requirements() if r.name == name), "")
    return f"'{name}{supported}'" if supported else name


@cache
def _on_gpu() -> bool:
    return bool(visible_devices())


def _origin() -> str:
    """Return ` @ URL` of the wheel that was installed; empty for one of an index."""
    url = _direct_url()
    return f" @ {url}" if url else ""


def _source_folder() -> Path | None:
    """Return the folder that was installed; None where there was none, or where it is gone."""
    from urllib.request import url2pathname  # slow to import, and seldom needed

    url = urlsplit(_direct_url())
    folder = Path(url2pathname(url.path))
    there = url.scheme == "file" and (folder / "constraints" / "cpu.txt").is_file()
    return folder if there else None


def _direct_url() -> str:
    """Return the URL of what was installed; empty where an index gave it.

    Source: PEP 610, ``direct_url.json``.
    """
    text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    return str(json.loads(text)["url"]) if text else ""
