"""What several tests of the engine need: a golden folder to damage, and ports without torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from conformance import cli
from conformance.case import COMPONENTS, Case, find_case, select_cases
from conformance.execution import Execution
from conformance.explain import Explanation
from conformance.export import write_checkpoint
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.port import Hello, resolve
from conformance.result import Result
from conformance.runner import Runner
from conformance.spec import golden_root
from conformance.summary import VERDICTS
from conformance.tolerance import ARITHMETICS
from conformance.variants import parse_variant

if TYPE_CHECKING:
    from pathlib import Path

CASES = ("tokenizer/-/plain", "unet/tiny/base", "unet/tiny/batch1", "unet/tiny/quiet")
BASE = "unet/tiny/base"

PORT = '''
"""Answers with what the goldens store; $FAKE_PORT says what it does wrong."""
import os

import numpy as np

from conformance.case import find_case
from conformance.manifest import manifest
from conformance.golden_files import load_golden
from conformance.port import Hello


class Stored:
    def __init__(self, component):
        self.component = component

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
            same = (np.array_equal(a, inputs.get(n)) for n, a in case.inputs().items())
            if case.component == self.component and all(same):
                stored = load_golden(case).outputs
        sign = -1 if fault == "negates" else 1
        arrays = {n: a if a.dtype.kind == "i" else a.astype("f4") for n, a in stored.items()}
        return {name: sign * array for name, array in arrays.items()}, {}


class Port:
    def hello(self):
        if os.environ.get("FAKE_PORT") == "hello":
            raise RuntimeError("no hello today")
        return Hello("fake", "1.0", ("tokenizer", "unet"), probes=False, replace=False)

    def load(self, component, variant, weights, arithmetic, device):
        return Stored(component)


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

    def path(self, case_id: str = BASE) -> Path:
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
    """Copy spec and four goldens, and let the suite read the copy."""
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
    return find_case(BASE)


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
        default_factory=lambda: Hello("fake", "1", COMPONENTS, ARITHMETICS, probes=False)
    )
    loads: list = field(default_factory=list)
    runs: list = field(default_factory=list)

    def hello(self):
        """Offer every component in every arithmetic."""
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
        component, variant, arithmetic, *_ = self.loads[-1]
        for case in select_cases([component], [variant]):
            if all(np.array_equal(array, inputs[name]) for name, array in case.inputs().items()):
                stored = load_golden(case).outputs
        return {name: rounded(array, arithmetic) for name, array in stored.items()}, {}


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
        return runner.run(case, Execution(**how).for_case(case))

    return run


class WrongPort:
    """sd1_impl with one wrong choice, made after loading."""

    def __init__(self, spoil):
        """Keep the wrong choice, a function of the loaded module."""
        self.right = resolve("sd1_impl")
        self.spoil = spoil

    def hello(self):
        """Offer what sd1_impl offers."""
        return replace(self.right.hello(), name="wrong")

    def load(self, *arguments):
        """Load sd1_impl, then spoil it."""
        component = self.right.load(*arguments)
        self.spoil(component.module)
        return component


@pytest.fixture
def run_wrong(monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs one case on sd1_impl with one wrong choice."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)

    def run(spoil: object, case_id: str, dtype: str) -> Result:
        return Runner(WrongPort(spoil)).run(find_case(case_id), Execution(dtype=dtype))

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
    """Return a function that runs one case on the port of `port_file` with a fault."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    arguments = ["run", port_file, "--out", tmp_path / "out", "-k"]

    def call(fault: str = "", case_id: str = BASE) -> tuple[int, str, str]:
        assert golden_copy.root.exists()
        monkeypatch.setenv("FAKE_PORT", fault)
        return main(*arguments, case_id)

    return call


@pytest.fixture
def no_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for no causes: a port without probes is tested for every bug of its component."""
    monkeypatch.setattr("conformance.results.explain", lambda *_: Explanation())


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny variant in several layouts and dtypes (test_weights.WRITTEN); not to be changed."""
    out = tmp_path_factory.mktemp("files")
    tiny = parse_variant("tiny")
    write_checkpoint(tiny, "compvis", "float32", out / "a.safetensors")
    write_checkpoint(tiny, "compvis", "float16", out / "half.ckpt")
    write_checkpoint(tiny, "diffusers", "bfloat16", out / "brain")
    return out


class MadeUpRun:
    """Writes a run's folder that nobody ran, for the reports to read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def line(verdict: str = "pass", **changes: object) -> dict[str, object]:
        """Build a case line; it fails at `conv_in` where its verdict is `fail`."""
        facts = {"component": "unet", "variant": "tiny", "scenario": "base", "dtype": "float32"}
        facts |= {"device": "cpu", "backend": "sdpa", "mode": "trace", "verdict": verdict}
        facts |= {"ratio": {"fail": 48.0, "skip": None}.get(verdict, 1.2), "worst_probe": "conv_in"}
        facts |= {"seconds": 0.4, "message": "", "hunts": "eps", "detail": "", "probes": []}
        facts |= changes
        name = f"{facts['component']}/{facts['variant']}/{facts['scenario']}"
        facts.setdefault("case", f"{name}[{facts['dtype']}-{facts['device']}-sdpa-{facts['mode']}]")
        first = {"case": facts["case"], "probe": "conv_in", "after": "time_embedding"}
        first |= {"ratio": 48.0, "limit": 4.0, "kind": "fault", "hint": "the usual cause"}
        facts.setdefault("first_divergence", first if verdict == "fail" else None)
        return {"type": "case"} | facts

    def write(self, lines: list[dict[str, object]], name: str = "", **facts: object) -> Path:
        """Write results.jsonl and summary.json, and return their folder.

        Args:
            lines: Case lines.
            name: Of a folder in the fixture's own; empty for that one.
            facts: What summary.json says beside or instead of what the lines say.
        """
        out = self.folder / name
        out.mkdir(exist_ok=True)
        found = [line["verdict"] for line in lines]
        wrong = [line["first_divergence"] for line in lines if line["first_divergence"]]
        summary = {
            "suite": "0.1.0",
            "port": {"name": "mine", "version": "1.0", "spec": "mine.py:make"},
            "scope": "unet; tiny",
            "limit": 4.0,
            "goldens": "a" * 64,
            "verdict": "nonconformant" if "fail" in found else "conformant",
            "level": 1,
            "counts": {verdict: found.count(verdict) for verdict in VERDICTS},
            "worst_ratio": max((line["ratio"] or 0 for line in lines), default=None),
            "first_divergence": wrong[0] if wrong else None,
            "seconds": 12.3,
        } | facts
        header = {"type": "header", "started": "2026-11-22T20:00:00+00:00"} | summary
        records = [header, *lines, {"type": "footer", "counts": summary["counts"]}]
        rows = (json.dumps(record) + "\n" for record in records)
        (out / "results.jsonl").write_text("".join(rows), "utf-8")
        (out / "summary.json").write_text(json.dumps(summary), "utf-8")
        return out


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUpRun:
    """Runs for the reports to read, written without running anything."""
    return MadeUpRun(tmp_path)
