#!/usr/bin/env python3
"""Serve a Python port to sd1-conformance from any environment: copy this file there, and run it.

    sd1-conformance run "exec:path/to/python serve.py my_port.py:factory"

Needs Python 3.9 and NumPy, nothing else: neither sd1-conformance nor torch nor safetensors.
`my_port.py:factory`, or `package.module:factory`, names a function without arguments that returns
the port, an object with two methods:

    hello() -> dict                          name, version, components, and what else is offered
    load(component, variant, weights, arithmetic, device) -> loaded

A port whose `hello()` has other `backends` than `sdpa` is given them as `load(..., backend=...)`.
`loaded.run(inputs, probes, replace)` returns a tuple of two dicts of arrays: outputs and probes.
`variant` has `name`, `size`, `regime` and `architecture(component)`, a dict of sizes. `weights`
maps names to float32 arrays, read from their file when asked for; `weights.part("unet")` is a part
of a whole checkpoint, and `weights.path` is where the files are. A port declines a case by raising
an exception whose class is called `UnsupportedError`. What it prints goes to standard error. The
messages are described in docs/protocol.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import struct
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

PROTOCOL = 1

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "|b1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
"""safetensors' names of dtypes, and NumPy's; BF16, which NumPy has not, is read as float32."""


class Refused(Exception):  # noqa: N818 - a request that cannot be carried out is no fault here
    """A request that cannot be carried out, and why."""


Arrays = Mapping[str, np.ndarray]
Place = tuple[str, str, list[int], int]
"""Where a tensor is: file, dtype, shape, first byte."""


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of safetensors files, by name; each is read when it is asked for."""

    HALVES: ClassVar = {
        "vae_encoder": ("encoder.", "quant_conv."),
        "vae_decoder": ("decoder.", "post_quant_conv."),
    }

    def __init__(self, places: dict[str, Place], path: str | None = None) -> None:
        """Take the place of each tensor."""
        self.places = places
        self.path = path

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor."""
        file, dtype, shape, start = self.places[name]
        return _read(file, dtype, shape, start)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of the files."""
        return iter(self.places)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.places)

    def of(self, component: str) -> Tensors:
        """Return those of a component: either half of the VAE has them in one file."""
        start = self.HALVES.get(component, ("",))
        return Tensors({n: p for n, p in self.places.items() if n.startswith(start)}, self.path)

    def part(self, folder: str) -> Tensors:
        """Return the tensors whose names begin with `folder/`, without that."""
        start = folder + "/"
        own = {n[len(start) :]: p for n, p in self.places.items() if n.startswith(start)}
        return Tensors(own, None if self.path is None else str(Path(self.path) / folder))


def _read(file: str, dtype: str, shape: list[int], start: int) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    code = "<u2" if dtype == "BF16" else DTYPES[dtype]
    with Path(file).open("rb") as opened:
        opened.seek(start)
        array = np.fromfile(opened, code, count).reshape(shape)
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def open_tensors(file: str, prefix: str = "") -> dict[str, Place]:
    """Read the header of a safetensors file: names, after a prefix, and where the tensors are."""
    with Path(file).open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return {
        prefix + name: (file, entry["dtype"], entry["shape"], 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def write_tensors(file: str, arrays: Arrays) -> None:
    """Write arrays as a safetensors file; bfloat16 of ml_dtypes (JAX) as BF16."""
    header: dict[str, Any] = {}
    pieces: list[bytes] = []
    end = 0
    names = {np.dtype(code): name for name, code in DTYPES.items()}
    for name, given in arrays.items():
        array = np.asarray(given)
        if array.dtype.name == "bfloat16":
            dtype, bits = "BF16", np.ascontiguousarray(array).view(np.uint16).astype("<u2")
        else:
            little = array.dtype.newbyteorder("<")
            if little not in names:
                kind = "%s.%s" % (type(given).__module__, type(given).__name__)
                raise Refused("%s is a %s, not a NumPy array of numbers: convert it" % (name, kind))
            dtype, bits = names[little], np.ascontiguousarray(array, little)
        data = bits.tobytes()
        place = [end, end := end + len(data)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": place}
        pieces.append(data)
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with Path(file).open("wb") as opened:
        opened.writelines([struct.pack("<Q", len(text)), text, *pieces])


def open_weights(path: str) -> Tensors:
    """Return the tensors of a folder of weights: of one component, or of a whole checkpoint.

    In layout `compvis` they are those of one file, under its names.
    """
    if Path(path).is_file():
        return Tensors(open_tensors(path), path)
    places: dict[str, Place] = {}
    for file in sorted(Path(path).rglob("*.safetensors")):
        folder = file.parent.relative_to(path).as_posix()
        places.update(open_tensors(str(file), "" if folder == "." else folder + "/"))
    return Tensors(places, path)


class Variant:
    """The architecture that weights are for."""

    FOLDERS: ClassVar = {"vae_encoder": "vae", "vae_decoder": "vae"}

    def __init__(self, facts: dict[str, str], architectures: dict[str, Any]) -> None:
        """Take the `variant` and the `architecture` of a load message."""
        self.name, self.size, self.regime = facts["name"], facts["size"], facts["regime"]
        self.architectures = architectures

    def architecture(self, component: str) -> dict[str, Any]:
        """Return the sizes of a component."""
        folder = "unet" if component.startswith("block/") else component
        return self.architectures[self.FOLDERS.get(folder, folder)]


class Echo:
    """Gives back what it gets."""

    def run(self, inputs: Arrays, *_: Any) -> tuple[Arrays, Arrays]:
        """Return the inputs as outputs, and no probes."""
        return dict(inputs), {}


class Server:
    """Answers the requests of sd1-conformance."""

    def __init__(self, port: Any) -> None:
        """Serve a port."""
        self.port = port
        self.loaded: Any = None
        self.components: Collection[str] = ()
        self.scratch = ""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request and return the `ok` of its reply."""
        op = request.get("op")
        if op not in ("hello", "load", "run", "unload", "bye"):
            raise Refused("unknown request %r" % (op,))
        ok: dict[str, Any] = getattr(self, op)(request)
        json.dumps(ok)  # a port may say anything of itself
        return ok

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say what the port offers."""
        if request["protocol"] != PROTOCOL:
            raise Refused("this is protocol %d, not %r" % (PROTOCOL, request["protocol"]))
        self.scratch = request["scratch"]
        _require(misfit(self.port.hello, "hello"))
        offer = self.port.hello()
        if hasattr(offer, "__dataclass_fields__"):  # a Hello of sd1-conformance
            offer = vars(offer)
        if not isinstance(offer, dict):
            raise Refused("hello() returned %s, not a dict" % type(offer).__name__)
        own = {"python": sys.version.split()[0], "numpy": np.__version__}
        self.components = offer.get("components", ())
        return dict(offer, echo=True, details={**own, **offer.get("details", {})})

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load a component."""
        self.loaded = None
        component = request["component"]
        if component == "echo":
            self.loaded = Echo()
            return {}
        if component not in self.components:
            raise Refused("no component %r" % (component,))
        weights = open_weights(request["weights"]) if request["weights"] else Tensors({})
        if request["layout"] == "diffusers":
            weights = weights.of(component)
        variant = Variant(request["variant"], request["architecture"])
        how = {name: request[name] for name in ("backend",) if name in request}
        _require(load_misfit(self.port.load, **how))
        loaded = self.port.load(
            component, variant, weights, request["arithmetic"], request["device"], **how
        )
        if not callable(getattr(loaded, "run", None)):
            raise Refused("load() returned %s: it needs run(%s)" % (type(loaded).__name__, RUN))
        _require(misfit(loaded.run, "run", RUN))
        self.loaded = loaded
        return {}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Evaluate the loaded component."""
        if self.loaded is None:
            raise Refused("nothing is loaded")
        asked = request["inputs"]
        inputs = {} if asked["tensors"] is None else dict(Tensors(open_tensors(asked["tensors"])))
        for name, texts in asked["strings"].items():
            inputs[name] = np.array(texts)
        if asked["config"] is not None:
            inputs["config"] = np.array(json.dumps(asked["config"]))
        values = request["replace"] and dict(Tensors(open_tensors(request["replace"])))
        answer = self.loaded.run(inputs, tuple(request["probes"]), values)
        _require(no_answer(answer))
        files = {}
        for name, arrays in (("outputs", answer[0]), ("probes", answer[1])):
            files[name] = str(Path(self.scratch) / (name + ".safetensors"))
            write_tensors(files[name], arrays)
        return files

    def unload(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - called like the others
        """Forget the loaded component."""
        self.loaded = None
        return {}

    bye = unload


LOAD = "component, variant, weights, arithmetic, device"
RUN = "inputs, probes, replace"
ADVICE = 'end it with `return {"NAME": array}, {}`'


def misfit(function: Any, name: str, given: str = "", **keywords: Any) -> str:
    """Say how a function of a port has to be declared; empty where it can be called as it is.

    It is called with what `given` names, by position, and with `keywords`, shown as defaults.
    """
    names = given.split(", ") if given else []
    is_method = inspect.ismethod(function)
    try:
        inspect.signature(function).bind(*names, **keywords)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not is_method:
            return ""  # of something compiled nothing can be read off; a method may lack `self`
    else:
        return ""
    declared = getattr(function, "__func__", function)
    own = inspect.signature(declared)
    bare = [p.replace(annotation=p.empty) for p in own.parameters.values()]
    own = own.replace(parameters=bare, return_annotation=own.empty)
    needed = [*(["self"] if is_method else []), *names, *("%s=%r" % kv for kv in keywords.items())]
    code = getattr(inspect.unwrap(declared), "__code__", None)
    where = " (%s:%s)" % (code.co_filename, code.co_firstlineno) if code else ""
    return "%s%s has to be %s(%s)%s" % (name, own, name, ", ".join(needed), where)


def load_misfit(load: Any, backend: str | None = None) -> str:
    """Say how a port's `load` has to be declared, with a backend if one is named to it."""
    wrong = misfit(load, "load", LOAD)
    if wrong or backend is None:
        return wrong
    wrong = misfit(load, "load", LOAD, backend="sdpa")
    return wrong and "hello() offers backend %s, but %s" % (backend, wrong)


def no_answer(answer: Any) -> str:
    """Say why something is not what `run` has to return; empty where it is."""
    parts = answer if isinstance(answer, (tuple, list)) else ()
    if isinstance(answer, tuple) and [isinstance(part, dict) for part in parts] == [True, True]:
        return ""
    kinds = ", ".join(type(part).__name__ for part in parts)
    what = type(answer).__name__ + (" of " + kinds if kinds else "")
    return "run() returned %s, not a tuple of two dicts, outputs and probes: %s" % (what, ADVICE)


def _require(wrong: str) -> None:
    if wrong:
        raise Refused(wrong)


def reply_to(server: Server, line: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the reply to one line, and the request that it was."""
    request: dict[str, Any] = {}
    number = None
    try:
        request = json.loads(line)
        number = request["id"]
        return {"id": number, "ok": server.answer(request)}, request
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a port raises, the server goes on
        if type(error).__name__ == "UnsupportedError" and request.get("op") in {"load", "run"}:
            return {"id": number, "unsupported": str(error) or "it does not say why"}, request
        told = str(error) if isinstance(error, Refused) else _described(error)
        return {"id": number, "error": told}, request


def is_library(file: str) -> bool:
    """Say whether a file of a traceback is Python's own, was installed, or is this one."""
    apart = (str(Path(os.__file__).parent), "site-packages", "dist-packages", "<frozen", __file__)
    return any(part in file for part in apart)


def _described(error: BaseException) -> str:
    """Say in one line what was raised, and where in the port; the whole goes to standard error."""
    last = error.__traceback__
    while last is not None and last.tb_frame.f_code.co_filename == __file__:
        last = last.tb_next
    traceback.print_exception(type(error), error, last, file=sys.stderr)
    frames = traceback.extract_tb(last)
    own = [frame for frame in frames if not is_library(frame.filename)] or frames
    where = " (%s:%s)" % (own[-1].filename, own[-1].lineno) if own else ""
    text = " ".join(str(error).split()) or "without a message"
    return "%s: %s%s" % (type(error).__name__, text, where)


def find_port(spec: str) -> Any:
    """Import the port that `file.py:factory` or `package.module:factory` names."""
    source, _, attribute = spec.rpartition(":")
    if not source:
        raise SystemExit("serve.py: %r is not file.py:factory or module:factory" % spec)
    if source.endswith(".py"):
        path = Path(source).resolve()
        if not path.is_file():
            raise SystemExit("serve.py: port file %s does not exist" % path)
        sys.path.insert(0, str(path.parent))
        module_spec: Any = importlib.util.spec_from_file_location("sd1_port_" + path.stem, path)
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        module_spec.loader.exec_module(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        module = importlib.import_module(source)
    factory = getattr(module, attribute)
    if callable(factory) and (wrong := misfit(factory, attribute)):
        raise SystemExit("serve.py: " + wrong)
    port = factory() if callable(factory) else factory
    if isinstance(port, type):
        raise SystemExit("serve.py: the port is the class %s: return %s()" % (2 * (port.__name__,)))
    return port


def main() -> None:
    """Serve until `bye` or the end of standard input."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the script and the port
        raise SystemExit("usage: serve.py my_port.py:factory")
    own = Path(__file__).resolve().parent  # nothing beside this file is to be imported by chance
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != own]
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what anybody prints, in any language, goes to standard error
    sys.stdout = sys.stderr
    server = Server(find_port(sys.argv[1]))
    for line in sys.stdin:
        reply, request = reply_to(server, line)
        print(json.dumps(reply), file=messages, flush=True)
        if request.get("op") == "bye":
            return


if __name__ == "__main__":
    main()
