"""Mistakes that a newcomer made, and what they are told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.adapters import serve
from conformance.case import find_case
from conformance.child import _last_words
from conformance.execution import Execution
from conformance.runner import Runner

SERVE = Path(serve.__file__)

PORT = '''
class Foreign:
    """An array of another library."""


class Port:
    def hello(self):
        return {"name": "p", "version": "1", "components": ["unet"], "probes": False,
                "replace": False, "variants": VARIANTS}

    def load(self, *_):
        return None if FAULT == "load" else self

    def run(self, inputs, probes=(), replace=None):
        if FAULT == "array":
            return {"sample": Foreign()}, {}
        return {"sample": inputs["sample"]}


VARIANTS = ["*"]


def factory():
    return Port()
'''

SERVED = {
    "load": ("load", "load() returned NoneType: it needs run(inputs, probes, replace)"),
    "array": ("array", "sample is a sd1_port_p.Foreign, not a NumPy array of numbers: convert it"),
    "tuple": ("tuple", "run() returned dict, not a tuple of two dicts, outputs and probes"),
    "syntax": ("syntax", "SyntaxError: invalid syntax (File"),
}


@pytest.fixture
def write(tmp_path: Path):
    """Return a function that writes a port with a fault and returns its PORT argument."""

    def make(fault: str, text: str = PORT) -> str:
        broken = "FAULT = \n" if fault == "syntax" else f"FAULT = {fault!r}\n"
        (tmp_path / "p.py").write_text(broken + text, "utf-8")
        return f"{tmp_path}/p.py:factory"

    return make


@pytest.mark.parametrize(("fault", "message"), SERVED.values(), ids=SERVED)
def test_served(write, main, tmp_path, fault: str, message: str) -> None:
    """Across the border too, a message says what was returned and what is wanted."""
    port = f"exec:{sys.executable} {SERVE} {write(fault)}"
    code, out, err = main("run", port, "-k", "unet/tiny/base", "--out", tmp_path / "out")
    assert (code, message in out + err) == (3, True), out + err


def test_not_served(write, main) -> None:
    """A Python file without serve.py reads no request."""
    path = write("none").rpartition(":")[0]
    code, _, err = main("run", f"exec:{sys.executable} {path}")
    assert (code, "exec:python serve.py my_port.py:factory" in err) == (3, True), err


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            PORT,
            ("--component", "text_encoder"),
            "p does not offer text_encoder: it offers unet; name",
        ),
        (PORT.replace('["*"]', '["sd1"]'), (), "p offers unet, variants sd1"),
    ],
    ids=["component", "variant"],
)
def test_nothing_of_it_is_selected(write, main, text: str, arguments: tuple, message: str) -> None:
    """Where a port offers nothing of what is selected, that is one line and not a list of skips."""
    code, out, err = main("run", write("none", text), *arguments)
    assert (code, out) == (2, "")
    assert message in err


BROKEN = {
    "import": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "name-of-a-module": ("from json import no_such", "ImportError: cannot import name 'no_such' "),
    "syntax": ("x = = 1", "SyntaxError: invalid syntax"),
    "name": ("no_such_name", "NameError: name 'no_such_name' is not defined"),
    "exit": ("raise SystemExit", "SystemExit: without a message"),
}


@pytest.mark.parametrize(("text", "told"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_imported(tmp_path: Path, main, text: str, told: str) -> None:
    """Whatever the reason, the port is broken: exit 3, and its own file and line."""
    (tmp_path / "p.py").write_text(f"import json\n\n{text}\n", "utf-8")
    code, out, err = main("run", f"{tmp_path}/p.py:factory")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert f"p.py:factory' cannot be imported: {told}" in err
    assert f" ({tmp_path}/p.py:3)" in err
    other = "; a port of another environment is served from there: exec:path/to/python serve.py "
    assert (other in err) == told.startswith(("ModuleNotFound", "Import"))


def test_a_module_that_is_not_there(tmp_path: Path, main, monkeypatch) -> None:
    """A module that was named wrongly is bad usage; one that it lacks itself breaks it."""
    (tmp_path / "my_package_hb").mkdir()
    (tmp_path / "my_package_hb/port.py").write_text("import no_such_library\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name, expected in (("my_package_hb.prt", 2), ("no.such", 2), ("my_package_hb.port", 3)):
        code, _, err = main("run", f"{name}:factory")
        assert (code, "cannot be imported: " in err) == (expected, True), err


def test_a_factory_of_another_name(tmp_path: Path, main) -> None:
    """The one that is there is named."""
    (tmp_path / "p.py").write_text("def factory():\n    return 1\n", "utf-8")
    code, _, err = main("run", f"{tmp_path}/p.py:factry")
    assert code == 2
    assert f"p.py has no 'factry': write {tmp_path}/p.py:factory" in err


def test_exec_forgotten(main) -> None:
    """A command without `exec:` is taken for a file."""
    code, _, err = main("run", "python serve.py my_port.py:factory")
    assert (code, "write exec:python serve.py my_port.py" in err) == (2, True), err


def test_program_without_exec(tmp_path: Path, main) -> None:
    """A file that is no Python port may be a program."""
    (tmp_path / "my_port").write_text("#!/bin/sh\n", "utf-8")
    code, _, err = main("run", f"{tmp_path}/my_port")
    assert (code, f"a program is named exec:{tmp_path}/my_port" in err) == (2, True), err


def test_echo_alone(tmp_path: Path, main) -> None:
    """A harness that offers nothing but echo yet is sound, and nothing was computed."""
    text = PORT.replace('["unet"]', "[]")
    (tmp_path / "p.py").write_text(f"FAULT = None\n{text}", "utf-8")
    port = f"exec:{sys.executable} {SERVE} {tmp_path}/p.py:factory"
    code, out, _ = main("smoke", port)
    assert (code, "The harness is sound; nothing was computed yet" in out) == (0, True), out
    code, _, err = main("run", port)
    assert (code, "p offers no component" in err) == (2, True), err


def test_channels_last_is_guessed(fake) -> None:
    """A map whose channels come last is told what to say."""
    case = find_case("unet/tiny/base")
    outputs = {"sample": np.zeros((2, 16, 16, 4), np.float32)}
    result = Runner(fake(lambda *_: (outputs, {}))).run(case, Execution())
    assert "channels last? let hello() say layout: NHWC" in result.message


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (b"x\nError: boom\n    at run (p.js:3)\n\nNode.js v20.20.2\n", "Error: boom"),
        (b"thread 'main' panicked at src/main.rs:4:5:\nboom\n", "thread 'main' panicked at"),
        (b"one\nlast words\n", "last words"),
    ],
)
def test_last_words(log: bytes, words: str) -> None:
    """Of a log the line that names an error is told, whatever the language prints after it."""
    assert _last_words(log).startswith(words)


def test_nearest_case(main) -> None:
    """A misspelt case is told its neighbours."""
    code, _, err = main("show", "text_encoder/tiny/bse")
    assert (code, "text_encoder/tiny/base" in err) == (2, True)


def test_every_probe_is_listed(main) -> None:
    """`show --probes` prints one a line, in order of execution."""
    code, out, _ = main("show", "text_encoder/tiny/base", "--probes")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 45)
    assert lines[0] == "text_model.embeddings.token_embedding"
