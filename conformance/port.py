"""The port contract: what the engine asks of an implementation under test."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from conformance import protocol
from conformance.adapters.serve import misfit
from conformance.at_work import at_work
from conformance.case import COMPONENTS
from conformance.errors import (
    PortError,
    SuiteError,
    UsageError,
    choices_text,
    nearest,
    unknown_name,
)
from conformance.execution import BACKENDS, SDPA
from conformance.port_files import factory_advice
from conformance.raised import where_raised
from conformance.report.text import one_line, with_article
from conformance.requirements import ORACLE, adding
from conformance.tolerance import EVERY_ARITHMETIC
from conformance.variants import NO_VARIANT, variant_names

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

Arrays = dict[str, np.ndarray]

ENTRY_POINTS = "sd1_conformance.ports"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
BUILTIN = {
    "sd1_impl": "conformance.adapters.sd1_impl:port",
    "diffusers": "conformance.adapters.diffusers:port",
}


@dataclass(frozen=True)
class Hello:
    """What a port says of itself.

    Attributes:
        name: The port's name.
        version: The port's version.
        components: Components that it offers.
        arithmetics: Arithmetics that it can be asked for.
        devices: Devices that it can be asked for (free names).
        probes: Whether it can hand out probes.
        replace: Whether it can overwrite a probe before anything reads it.
        details: Facts for the report, such as versions of libraries.
        variants: Globs of the variants that it offers.
        layout: Axes of its images and maps: `NCHW` or `NHWC`.
        weights: Layouts of weights that it reads from files.
        shapes: By component and input the shapes that it takes, None for any length; anything
            where nothing is said.
        echo: Whether it offers the component `echo`, which gives back its inputs.
        backends: Ways to evaluate a network that it can be asked for; `sdpa` is its own.
    """

    name: str
    version: str
    components: tuple[str, ...]
    arithmetics: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    probes: bool = True
    replace: bool = True
    details: dict[str, str] = field(default_factory=dict)
    variants: tuple[str, ...] = ("*",)
    layout: str = "NCHW"
    weights: tuple[str, ...] = ("diffusers",)
    shapes: dict[str, dict[str, list[list[int | None]]]] = field(default_factory=dict)
    echo: bool = False
    backends: tuple[str, ...] = (SDPA,)

    def offers(self, component: str, variant: str) -> bool:
        """Say whether a component is offered in a variant."""
        return component in self.components and self.offers_variant(variant)

    def offers_variant(self, variant: str) -> bool:
        """Say whether a variant is offered; what has none (`-`) always is."""
        return variant == NO_VARIANT or any(fnmatchcase(variant, glob) for glob in self.variants)

    @classmethod
    def of(cls, offer: Mapping[str, Any], what: str) -> Hello:
        """Read what a port says of itself in JSON.

        Args:
            offer: An `offer` of the protocol.
            what: What it is, for the error.

        Raises:
            PortError: It does not follow the schema.
        """
        try:
            given = json.loads(json.dumps(dict(offer)))  # tuples become lists
        except (TypeError, ValueError) as error:
            message = f"{what} is no JSON: {error}"
            raise PortError(message) from error
        protocol.check("offer", given, what)
        fields: dict[str, Any] = {k: _frozen(v) for k, v in given.items()}
        return cls(**fields)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Component(Protocol):
    """A loaded component of a port."""

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate the component once.

        Args:
            inputs: Arrays by the names of docs/contract.md; never modified.
            probes: Canonical names to observe; a port leaves out what it does not have.
            replace: Values that overwrite a probe before anything downstream reads it.

        Returns:
            Outputs and probes by name, in execution order. bfloat16 is handed over as float32
            arrays, widened exactly.
        """


class Port(Protocol):
    """An implementation under test."""

    def hello(self) -> Hello | dict[str, Any]:
        """Say name, version and what is offered; as a dict, an `offer` of docs/protocol.md."""

    def load(
        self, component: str, variant: Variant, weights: Weights, arithmetic: str, device: str
    ) -> Component:
        """Build a component with the given weights.

        A port that offers more than one backend is given another than its own by the keyword
        `backend`, and only then.

        Args:
            component: One of `hello().components`.
            variant: Gives the architecture.
            weights: Mapping of canonical name to float32 array; `weights.export(folder)` writes
                files for a port that reads them itself.
            arithmetic: One of `hello().arithmetics`.
            device: One of `hello().devices`.

        Returns:
            The loaded component.

        Raises:
            UnsupportedError: The port declines; the reason becomes that of a skip.
        """


EXEC = "exec:"


def resolve(spec: str, limits: Any = None) -> Port:
    """Find the port that a PORT argument names.

    Args:
        spec: `sd1_impl`, `diffusers`, an installed entry point, `module:factory`,
            `file.py:factory` or `exec:COMMAND`.
        limits: What a process of its own may use, `conformance.adapters.process.Limits`.

    Returns:
        The port.

    Raises:
        UsageError: Nothing of that name, or a port of the suite that is not installed.
        PortError: Importing it failed, or the factory did.
    """
    if spec.startswith(EXEC):
        adapter = importlib.import_module("conformance.adapters.process")
        port: Port = adapter.ExecPort(spec.removeprefix(EXEC), limits)
        return port
    target = _entry_points().get(spec) or BUILTIN.get(spec)
    if target is None:
        if ":" not in spec:
            raise UsageError(_no_port(spec))
        target = spec
    with at_work():
        factory = _load_factory(target, spec)
        if callable(factory) and (wrong := misfit(factory, target.rpartition(":")[2])):
            message = f"port {spec!r}: {wrong}"
            raise PortError(message)
        try:
            port = factory() if callable(factory) else factory
        except SuiteError:
            raise
        except (Exception, SystemExit) as error:
            raise PortError(_failure(f"port {spec!r} could not be made", error)) from error
    if isinstance(port, type):
        message = f"port {spec!r} is the class {port.__name__}: return {port.__name__}()"
        raise PortError(message)
    if not (callable(getattr(port, "hello", None)) and callable(getattr(port, "load", None))):
        message = (
            f"port {spec!r} is {with_article(type(port).__name__)}: it needs hello() and load(...)"
        )
        raise (PortError if callable(factory) else UsageError)(message)
    return port


def _no_port(spec: str) -> str:
    """Say what is wrong with a name of no port, and what may have been meant."""
    path = Path(spec)
    if spec and path.is_dir():
        return f"port {spec!r} is a folder: {factory_advice(path)}"
    if spec.endswith(".py"):
        if path.is_file():
            return f"port {spec!r} names no factory: {factory_advice(path)}"
        return f"port file {spec} does not exist"
    choices = choices_text(spec, [*BUILTIN, *_entry_points()])
    text = f"unknown port {spec!r}: {choices}, module:factory, file.py:factory, exec:COMMAND"
    if near := nearest(spec, COMPONENTS):
        text += f"; a component is chosen by --component {near[0]}"
    return f"{text}; a program is named exec:{spec}" if path.is_file() else text


def greet(port: Port) -> Hello:
    """Ask a port what it offers.

    Raises:
        PortError: `hello()` failed, did not return a `Hello`, or offers what is no component.
    """
    if wrong := misfit(port.hello, "hello"):
        message = f"the port's {wrong}"
        raise PortError(message)
    try:
        with at_work():
            hello = port.hello()
    except SuiteError:
        raise
    except (Exception, SystemExit) as error:
        raise PortError(_failure("hello() of the port failed", error)) from error
    if not isinstance(hello, dict | Hello):
        message = (
            f"hello() of the port returned {type(hello).__name__}, not a dict or "
            "conformance.port.Hello"
        )
        raise PortError(message)
    offer = hello if isinstance(hello, dict) else vars(hello)
    hello = Hello.of(offer, "hello() of the port")
    _require_known("component", hello.components, COMPONENTS)
    _require_known("arithmetic", hello.arithmetics, EVERY_ARITHMETIC)
    _require_known("backend", hello.backends, BACKENDS)
    variants = [*variant_names(), NO_VARIANT]
    globs = [own for own in hello.variants if not any(fnmatchcase(v, own) for v in variants)]
    _require_known("variant", globs, variants)
    return hello


def _require_known(kind: str, offered: Collection[str], known: Collection[str]) -> None:
    """Refuse a name in `hello()` that nothing has."""
    for name in offered:
        if name not in known:
            message = f"hello() of the port offers an {unknown_name(kind, name, known)}"
            raise PortError(message)


def close(port: Port) -> None:
    """End what a port has started, where it says how: a `close()` of its own."""
    ending = getattr(port, "close", None)
    if callable(ending):
        ending()


def _failure(what: str, error: BaseException) -> str:
    said = error.msg if isinstance(error, SyntaxError) else error
    text = one_line(said) or "without a message"
    return f"{what}: {type(error).__name__}: {text} ({where_raised(error)})"


def known_ports() -> dict[str, str]:
    """Return the built-in and installed ports: name to where it comes from."""
    return {**BUILTIN, **_entry_points()}


def _entry_points() -> dict[str, str]:
    return {p.name: p.value for p in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _load_factory(target: str, spec: str) -> Any:
    module_name, _, attribute = target.rpartition(":")
    if not attribute or not (module_name.endswith(".py") or _MODULE.fullmatch(module_name)):
        message = f"port {spec!r} is not module:factory or file.py:factory"
        if module_name and Path(module_name).is_dir():
            advice = factory_advice(Path(module_name))
            message = f"port {spec!r}: {module_name} is a folder; {advice}"
        raise UsageError(message)
    module = _imported(module_name, spec)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        message = f"port {spec!r}: {module_name} has no {attribute!r}"
        if module_name.endswith(".py"):
            message += f": {factory_advice(Path(module_name))}"
        raise UsageError(message) from error


def _imported(module_name: str, spec: str) -> Any:
    """Import the module or file of a port.

    Raises:
        UsageError: Nothing of it could run: it, or what a port of the suite needs, is not there.
        PortError: It broke while it was imported.
    """
    try:
        if module_name.endswith(".py"):
            return _import_file(Path(module_name))
        _find_beside(Path.cwd())
        return importlib.import_module(module_name)
    except ImportError as error:
        what = f"port {spec!r} cannot be imported"
        if error.name in ORACLE:
            hint = f" ({adding([error.name])})"
        else:
            hint = "; a port of another environment is served from there: exec:path/to/python "
            hint += f"serve.py {spec}"
        named = error.name == module_name or module_name.startswith(f"{error.name}.")
        if spec in BUILTIN or named:
            message = f"{what}: {error}{hint}"
            raise UsageError(message) from error
        raise PortError(_failure(what, error) + hint) from error
    except SuiteError:
        raise
    except (Exception, SystemExit) as error:
        raise PortError(_failure(f"port {spec!r} cannot be imported", error)) from error


def _find_beside(folder: Path) -> None:
    """Let modules in a folder be imported, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_file(path: Path) -> Any:
    if not path.is_file():
        hint = f": to start a program write exec:{path}" if " " in str(path) else ""
        message = f"port file {path} does not exist{hint}"
        raise UsageError(message)
    _find_beside(path.resolve().parent)  # what lies beside a port is imported as in a script
    name = f"sd1_port_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        message = f"port file {path} cannot be imported"
        raise UsageError(message)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    return module
