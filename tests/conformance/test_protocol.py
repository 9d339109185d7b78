"""The port protocol: schema, page, and the file that Python ports copy."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from conformance import protocol, protocol_page
from conformance.adapters import process as adapter
from conformance.adapters import serve
from conformance.adapters.process import ExecPort
from conformance.case import find_case
from conformance.child import Child
from conformance.errors import RaisedError, UnsupportedError
from conformance.execution import Execution
from conformance.port import Hello, greet
from conformance.runner import Runner
from conformance.variants import parse_variant
from sd1_weights.schedule import schedule

SERVE = Path(serve.__file__)

PORT = '''
"""Answers with what it is given, so that a test sees what arrived."""
import json
import sys

import numpy as np


class Loaded:
    def __init__(self, backend, *facts):
        self.backend, self.facts = backend, facts

    def run(self, inputs, probes=(), replace=None):
        component, variant, weights, arithmetic, device = self.facts
        print("a print of the port")
        told = {
            "component": component,
            "variant": [variant.name, variant.size, variant.regime],
            "sizes": variant.architecture(component) if len(weights) else None,
            "weights": {n: list(a.shape) for n, a in list(weights.items())[:2]},
            "count": len(weights),
            "arithmetic": arithmetic,
            "device": device,
            "backend": self.backend,
            "inputs": {n: [a.dtype.name, list(a.shape)] for n, a in inputs.items()},
            "config": json.loads(inputs["config"].item()) if "config" in inputs else None,
            "text": inputs["text"].tolist() if "text" in inputs else None,
            "probes": list(probes),
            "replace": {n: [a.dtype.name, a.tolist()] for n, a in (replace or {}).items()},
            "modules": sorted({"torch", "conformance", "safetensors"} & set(sys.modules)),
        }
        text = json.dumps(told).encode()
        return {"told": np.frombuffer(text, np.uint8)}, {"p": np.zeros((0, 2), np.float16)}


class Port:
    def hello(self):
        return {"name": "told", "version": "1", "components": COMPONENTS,
                "arithmetics": ["float32", "bfloat16"], "details": {"compiler": "none"},
                "backends": ["sdpa", "plain"]}

    def load(self, *facts, backend="its own"):
        return Loaded(backend, *facts)


COMPONENTS = ["tokenizer", "unet", "vae_decoder", "scheduler/ddim", "pipeline/txt2img"]


def factory():
    return Port()
'''


@pytest.fixture
def port(tmp_path: Path):
    """Serve that port from a copy of serve.py in a folder where nothing else is."""
    shutil.copy(SERVE, tmp_path / "serve.py")
    (tmp_path / "told_port.py").write_text(PORT, "utf-8")
    port = ExecPort(f"{sys.executable} -I {tmp_path}/serve.py {tmp_path}/told_port.py:factory")
    yield port
    port.close()


def told(port: ExecPort, case_id: str, *, arithmetic: str = "float32", how=(), **asked) -> dict:
    """Run the inputs of a case and return what the port was told."""
    case = find_case(case_id)
    loaded = port.load(case.component, case.variant, case.weights(), arithmetic, "cpu", *how)
    outputs, probes = loaded.run(case.inputs(), **asked)
    assert probes["p"].dtype == np.float16
    assert probes["p"].shape == (0, 2)
    return json.loads(outputs["told"].tobytes())


def test_page_is_current() -> None:
    """docs/protocol.md is what the schema says today."""
    again = "python -m conformance.protocol_page"
    assert protocol_page.PAGE.read_text("utf-8") == protocol_page.page(), again


def test_network(port: ExecPort) -> None:
    """A network gets its weights, sizes, inputs, probes and values; nobody imports torch."""
    values = {"conv_in": np.array([1 / 3, 1.0])}
    seen = told(port, "unet/tiny/base", probes=["conv_in"], replace=values)
    assert seen["variant"] == ["tiny", "tiny", "unit"]
    assert seen["sizes"]["block_out_channels"] == [32, 64, 128, 128]
    assert seen["count"] == 686
    assert seen["weights"]["conv_in.weight"] == [32, 4, 3, 3]
    assert seen["inputs"]["sample"] == ["float32", [2, 4, 16, 16]]
    assert seen["inputs"]["timestep"] == ["int64", []]
    assert seen["probes"] == ["conv_in"]
    assert seen["replace"]["conv_in"] == ["float32", [float(np.float32(1 / 3)), 1.0]]
    assert seen["modules"] == []


def test_backends(port: ExecPort) -> None:
    """They are offered over the wire; a port is told of another than its own, and of no other."""
    assert port.hello().backends == ("sdpa", "plain")
    for backend, heard in (("sdpa", "its own"), ("plain", "plain")):
        assert told(port, "scheduler/ddim/-/base", how=[backend])["backend"] == heard


def test_a_load_that_knows_no_backend(tmp_path: Path) -> None:
    """A port that offers backends and cannot be told of one hears what to add to `load`."""
    text = PORT.replace(', backend="its own"', "").replace("(backend, *f", '("its own", *f')
    (tmp_path / "narrow_port.py").write_text(text, "utf-8")
    port = ExecPort(f"{sys.executable} -I {SERVE} {tmp_path}/narrow_port.py:factory")
    wanted = r"hello\(\) offers backend plain, but load\(self, \*facts\) has to be load\(self, .*"
    wanted += r", device, backend='sdpa'\) \(.*narrow_port.py:\d+\)"
    try:
        assert told(port, "scheduler/ddim/-/base")["backend"] == "its own"
        with pytest.raises(RaisedError, match=wanted):
            told(port, "scheduler/ddim/-/base", how=["plain"])
    finally:
        port.close()


def test_a_backend_is_handed_on(port: ExecPort) -> None:
    """The runner asks for what a case is run by, loads anew for it, and skips what is not there."""
    runner, case = Runner(port), find_case("vae_decoder/tiny/base")
    heard = []
    for backend in ("sdpa", "plain"):
        outputs, _ = runner.load(case, Execution(backend=backend)).run(case.inputs())
        heard.append(json.loads(outputs["told"].tobytes())["backend"])
    assert heard == ["its own", "plain"]
    skipped = runner.run(case, Execution(backend="math"))
    assert (skipped.verdict, skipped.message) == ("skip", "told does not offer backend math")


def test_half_of_the_vae(port: ExecPort) -> None:
    """The decoder gets its own weights, as in process, though the file holds both halves."""
    seen = told(port, "vae_decoder/tiny/base")
    assert seen["count"] == len(find_case("vae_decoder/tiny/base").weights())


def test_values_in_bfloat16(port: ExecPort) -> None:
    """Values to put in have the precision of the arithmetic: bfloat16, widened."""
    values = {"conv_in": np.array([1 / 3, -np.inf])}
    seen = told(port, "unet/tiny/base", arithmetic="bfloat16", replace=values)
    assert seen["replace"]["conv_in"] == ["float32", [0.333984375, -np.inf]]


def test_texts_settings_and_checkpoints(port: ExecPort) -> None:
    """Texts are lists of strings, a configuration is JSON, a pipeline has a whole checkpoint."""
    assert told(port, "tokenizer/-/plain")["text"] == ["a photo of a cat"]
    seen = told(port, "scheduler/ddim/-/steps7")
    assert seen["config"]["num_inference_steps"] == 7
    assert (seen["count"], seen["variant"][0]) == (0, "-")
    names = {name.partition("/")[0] for name in find_case("pipeline/txt2img/tiny/ddim").weights()}
    assert names == {"text_encoder", "unet", "vae"}


def test_same_port_in_process(port: ExecPort, tmp_path: Path) -> None:
    """What `hello` says is the same on both sides of the border, but for echo and details."""
    hello = greet(port)
    assert hello.components == tuple(greet(_in_process(tmp_path)).components)
    assert hello.echo
    assert hello.details["compiler"] == "none"
    assert set(hello.details) == {"compiler", "python", "numpy"}


def _in_process(folder: Path):
    from conformance.port import resolve

    return resolve(f"{folder}/told_port.py:factory")


def test_requests_follow_the_schema(port: ExecPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the suite says follows its own schema."""
    sent = []
    ask = Child.ask
    monkeypatch.setattr(Child, "ask", lambda c, m, s: sent.append(m) or ask(c, m, s))
    told(port, "unet/tiny/base", probes=["conv_in"], replace={"conv_in": np.zeros(1)})
    told(port, "tokenizer/-/plain")
    port.end()
    assert [m["op"] for m in sent] == ["hello", "load", "run", "unload", "load", "run", "bye"]
    for message in sent:
        protocol.check("request", message, "the suite's request")


SERVED = """
from conformance.port import resolve


def factory():
    return resolve("sd1_impl")
"""


def test_ports_of_the_suite_are_served(tmp_path: Path) -> None:
    """serve.py in its place serves torch ports too: what lies beside it is not imported."""
    pytest.importorskip("torch")
    (tmp_path / "served_port.py").write_text(SERVED, "utf-8")
    port = ExecPort(f"{sys.executable} {SERVE} {tmp_path}/served_port.py:factory")
    try:
        case = find_case("text_encoder/tiny/base")
        result = Runner(port).run(case, Execution(dtype="bfloat16"))
        assert (result.verdict, len(result.records) > 20) == ("pass", True), result.message
    finally:
        port.close()


def test_serve_is_one_old_file() -> None:
    """serve.py is Python 3.9, of the standard library and NumPy."""
    tree = ast.parse(SERVE.read_text("utf-8"), feature_version=(3, 9))
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    } | {
        str(node.module).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert imported <= {*sys.stdlib_module_names, "numpy"}
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage"), (["port.py"], "is not file.py:factory"), (["nowhere.py:f"], "nowhere.py")],
)
def test_serve_says_what_is_wrong(arguments: list[str], message: str) -> None:
    """A wrong argument is told on standard error, with an exit code."""
    done = subprocess.run(
        [sys.executable, SERVE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert not done.stdout


def test_weights_in_compvis_layout(port: ExecPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that reads single files is handed one, with its network and no other."""
    hello = port.hello()
    monkeypatch.setattr(port, "hello", lambda: Hello(**vars(hello) | {"weights": ("compvis",)}))
    variant = parse_variant("tiny")
    for component in ("unet", "vae_decoder", "pipeline/txt2img", "block/time_embedding"):
        weights = variant.weights(component)
        path, layout = port._written(weights, port.hello())
        assert (path.suffix, layout) == (".safetensors", "compvis")
        prefixes = {key.split(".")[0] for key in load_file(path)}
        networks = {
            "pipeline/txt2img": {"model", "first_stage_model", "cond_stage_model"},
            "vae_decoder": {"first_stage_model"},
        }
        assert prefixes - set(schedule()) == networks.get(component, {"model"})
        assert port._written(weights, port.hello()) == (path, layout)
    (name,) = (n for n in load_file(path) if n.endswith("time_embed.0.bias"))
    assert np.array_equal(load_file(path)[name], weights["linear_1.bias"])


def test_a_layout_that_is_not_written(port: ExecPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that reads another layout of weights declines networks, with the reason."""
    hello = port.hello()
    monkeypatch.setattr(port, "hello", lambda: Hello(**vars(hello) | {"weights": ("gguf",)}))
    with pytest.raises(UnsupportedError, match="layout gguf only: the suite writes compvis, diff"):
        told(port, "unet/tiny/base")


def test_refusal_is_a_pass(port: ExecPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reference has no answer, an `error` reply is as good as an exception."""
    case = find_case("scheduler/pndm/-/steps1")
    assert case.refused

    def refuse(*_args, **_kwargs):
        raise RaisedError("the port says of run: ValueError: one step")

    monkeypatch.setattr(adapter.ExecComponent, "run", refuse)
    monkeypatch.setattr(port, "load", lambda *_: adapter.ExecComponent(port, {}))
    runner = Runner(port)
    runner.hello = Hello("told", "1", ("scheduler/pndm",))
    assert runner.run(case, Execution().for_case(case)).verdict == "pass"


def test_without_torch(tmp_path: Path) -> None:
    """A port in a process of its own is judged, and explained, where torch is not installed."""
    (tmp_path / "zero_port.py").write_text(
        PORT.replace(
            'return {"told"', 'return {"sample": inputs["sample"]}, {}\n        return {"told"'
        ).replace('"arithmetics"', '"probes": False, "replace": False, "arithmetics"'),
        "utf-8",
    )
    command = f"exec:{sys.executable} {SERVE} {tmp_path}/zero_port.py:factory"
    out = str(tmp_path / "out")
    script = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "from conformance.cli import main\n"
        f"sys.exit(main(['run', {command!r}, '-k', 'unet/tiny/base', '--out', {out!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT CONFORMANT: told 1" in done.stdout
