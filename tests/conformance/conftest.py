"""What several tests of the engine need: a golden folder to damage, and ports without torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from conformance import cli
from conformance.case import Case, find_case, select_cases
from conformance.golden import Golden, golden_root, load_golden
from conformance.port import Hello
from conformance.runner import Execution, Result, Runner
from conformance.tolerance import ARITHMETICS

if TYPE_CHECKING:
    from pathlib import Path

CASES = ("unet/tiny/base", "unet/tiny/batch1", "unet/tiny/quiet")

PORT = '''
"""Answers with what the goldens store; $FAKE_PORT says what it does wrong."""
import os

import numpy as np

from conformance.case import find_case
from conformance.golden import load_golden, manifest
from conformance.port import Hello


class Stored:
    def run(self, inputs, probes=(), replace=None):
        fault = os.environ.get("FAKE_PORT", "")
        if fault == "raises":
            raise RuntimeError("first line\\nsecond line")
        if fault == "exits":
            raise SystemExit(0)
        if fault == "surrogate":
            raise RuntimeError("\\ud800")
        if fault == "prints":
            print("a print of the port")
        for name in manifest()["goldens"]:
            case = find_case(name)
            if np.array_equal(case.inputs()["sample"], inputs["sample"]):
                sample = load_golden(case).outputs["sample"].astype(np.float32)
        return {"sample": -sample if fault == "negates" else sample}, {}


class Port:
    def hello(self):
        if os.environ.get("FAKE_PORT") == "hello":
            raise RuntimeError("no hello today")
        return Hello("fake", "1.0", ("unet",), probes=False, replace=False)

    def load(self, component, variant, weights, arithmetic, device):
        return Stored()


def make():
    fault = os.environ.get("FAKE_PORT", "")
    if fault == "factory":
        raise RuntimeError("first line\\nsecond line")
    if fault == "factory-exits":
        raise SystemExit(0)
    return 1 if fault == "no-port" else Port()
'''


@dataclass
class GoldenCopy:
    """A complete golden folder of few cases, which a test may damage."""

    root: Path

    def path(self, case_id: str = CASES[0]) -> Path:
        """Return the file of a case."""
        return self.root / f"{case_id}.safetensors"

    def manifest(self) -> dict:
        """Read the manifest."""
        return json.loads((self.root / "manifest.json").read_text("utf-8"))

    def write_manifest(self, manifest: object) -> None:
        """Write the manifest."""
        (self.root / "manifest.json").write_text(json.dumps(manifest), "utf-8")

    def write(self, golden: Golden) -> None:
        """Write a golden with the digest that protects it: only its contents are wrong."""
        data = golden.to_bytes()
        self.path(golden.case).write_bytes(data)
        manifest = self.manifest()
        digest = hashlib.sha256(data).hexdigest()
        manifest["goldens"][golden.case] |= {"sha256": digest, "bytes": len(data)}
        self.write_manifest(manifest)


@pytest.fixture
def golden_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoldenCopy:
    """Copy spec and three goldens, and let the suite read the copy."""
    source, copy = golden_root(), GoldenCopy(tmp_path / "golden")
    shutil.copytree(source / "spec", copy.root / "spec")
    manifest = json.loads((source / "manifest.json").read_text("utf-8"))
    manifest["goldens"] = {name: manifest["goldens"][name] for name in CASES}
    for name in CASES:
        copy.path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{name}.safetensors", copy.path(name))
    copy.write_manifest(manifest)
    (copy.root / "cases.lock").write_text("".join(f"{name}\n" for name in CASES), "utf-8")
    monkeypatch.setenv("SD1_GOLDEN", str(copy.root))
    return copy


@pytest.fixture
def port_file(tmp_path: Path) -> str:
    """Write a port in plain NumPy that is always right, and return its PORT argument."""
    path = tmp_path / "stored_port.py"
    path.write_text(PORT, "utf-8")
    return f"{path}:make"


@pytest.fixture
def case() -> Case:
    """Return the case with every probe."""
    return find_case(CASES[0])


@pytest.fixture
def golden(case: Case) -> Golden:
    """Load its golden, anew for each test."""
    return load_golden(case)


def rounded(array: np.ndarray, arithmetic: str) -> np.ndarray:
    """Round to an arithmetic; bfloat16 as float32 arrays, to nearest even."""
    if arithmetic != "bfloat16":
        return array.astype(arithmetic)
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@dataclass
class Fake:
    """A port that answers with `answer(inputs, probes, replace)` and remembers what it was asked.

    Without `answer` it hands back what the golden of the case stores.
    """

    answer: object = None
    offers: Hello = field(
        default_factory=lambda: Hello("fake", "1", ("unet",), ARITHMETICS, probes=False)
    )
    loads: list = field(default_factory=list)
    runs: list = field(default_factory=list)

    def hello(self):
        """Offer the UNet in every arithmetic."""
        return self.offers

    def load(self, component, variant, weights, arithmetic, device):
        """Remember what was loaded."""
        self.loads.append((component, variant.name, arithmetic, device, weights))
        return self

    def run(self, inputs, probes=(), replace=None):
        """Answer."""
        self.runs.append((inputs, tuple(probes), replace))
        if self.answer is not None:
            return self.answer(inputs, probes, replace)
        for case in select_cases(variants=[self.loads[-1][1]]):
            if np.array_equal(case.inputs()["sample"], inputs["sample"]):
                sample = load_golden(case).outputs["sample"]
        return {"sample": rounded(sample, self.loads[-1][2])}, {}


@pytest.fixture
def fake() -> type[Fake]:
    """Return the class of ports that answer as a test wishes."""
    return Fake


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs one case, without asking the live oracle for the golden's age."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)

    def run(port: object, case: Case, **how: str) -> Result:
        runner = Runner(port if isinstance(port, Fake) else Fake(port))
        return runner.run(case, Execution(**how))

    return run


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command and returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def run_stored(main, port_file: str, tmp_path: Path, golden_copy: GoldenCopy, monkeypatch):
    """Return a function that runs `base` on the port of `port_file` with a fault."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    arguments = ["run", port_file, "--variant", "tiny", "--scenario", "base"]

    def call(fault: str = "") -> tuple[int, str, str]:
        assert golden_copy.root.exists()
        monkeypatch.setenv("FAKE_PORT", fault)
        return main(*arguments, "--out", tmp_path / "out")

    return call
