"""`run --control`: the reference in the same job tells the port from the environment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import parse

import pytest

from conformance import cli_run, explain, results
from conformance.case import find_case
from conformance.errors import PortError, UsageError
from conformance.execution import Execution
from conformance.parallel import Job
from conformance.regression import control as module
from conformance.regression.control import Control, control_of, watch
from conformance.result import Result
from conformance.runner import Runner

if TYPE_CHECKING:
    from pathlib import Path

BASE, QUIET = "unet/tiny/base", "unet/tiny/quiet"
HEADER = {"control": "ref", "environment": {"torch": "9.9", "tf32 matmul": "True"}}
ALONE = """
import multiprocessing
import sys

if multiprocessing.parent_process() is not None:
    sys.modules["diffusers"] = None  # nobody asks whether the golden has aged
"""


def line(case: str = BASE, ratio: float = 0.5, verdict: str = "", **changes: Any) -> dict[str, Any]:
    """Build a line of one probe."""
    name, verdict = f"{case}[float32-cpu-sdpa-splice]", verdict or ("fail" if ratio > 4 else "pass")
    record = {"name": "conv_in", "kind": "probe", "ratio": ratio, "noise": 1e-7}
    first = {"case": name, "probe": "conv_in", "after": None, "ratio": ratio, "limit": 4.0}
    own = {
        "case": name, "component": "unet", "variant": "tiny", "scenario": "base", "mode": "splice",
        "dtype": "float32", "device": "cpu", "backend": "sdpa", "verdict": verdict, "ratio": ratio,
        "message": "", "probes": [record | {"verdict": "fail" if ratio > 4 else "pass"}],
        "first_divergence": {**first, "kind": "fault", "hint": ""} if ratio > 4 else None,
    }  # fmt: skip
    return {**own, **changes}


def test_without_control() -> None:
    """A run without control says nothing of its environment."""
    found = watch({"control": None}, [], [line(ratio=9.0)])
    assert found.facts is found.divergence is None
    assert not found.excused


def test_an_honest_control() -> None:
    """Where the reference is right, what is wrong is the port's."""
    found = watch(HEADER, [line()], [line(ratio=9.0)])
    empty = {"failing": [], "moved": [], "broke": [], "changed": {}}
    assert {key: found.facts[key] for key in empty} == empty
    assert (found.divergence, found.faults, found.excused) == (None, [], frozenset())


def test_a_failing_control() -> None:
    """A reference over the limit shows that the environment is wrong, and what of it is known."""
    found = watch(HEADER, [line(ratio=9.0), line(QUIET)], [line(), line(QUIET)])
    assert found.divergence["kind"] == "environment"
    assert found.divergence["probe"] == "conv_in"
    hint = found.divergence["hint"]
    assert "the reference itself (control ref) is over the limit" in hint
    assert "since the goldens were recorded: tf32 matmul none -> True, torch 2." in hint
    assert "-> 9.9" in hint
    assert [item["case"] for item in found.facts["failing"]] == [line()["case"]]


def test_failures_that_the_control_shares() -> None:
    """Where the reference fails as badly, a failure is no fault of the port's."""
    control = [line(ratio=90.0), line(QUIET)]
    found = watch(HEADER, control, [line(ratio=95.0), line(QUIET, 95.0)])
    assert found.excused == {line()["case"]}
    (fault,) = found.faults
    assert (fault["cause"], fault["count"], fault["mutant"]) == ("environment", 1, None)


def test_failures_beyond_the_control() -> None:
    """A port that is more than twice as far off as the reference has a fault of its own too."""
    assert not watch(HEADER, [line(ratio=9.0)], [line(ratio=19.0)]).excused


def test_a_control_that_broke() -> None:
    """A reference that gave no answer, in one item or in all, is told."""
    error = line(verdict="error", message="out of memory")
    assert watch(HEADER, [error, line(QUIET)], []).facts["broke"][0]["message"] == "out of memory"
    skips = [line(verdict="skip", message="no float16"), line(QUIET, verdict="skip")]
    assert watch(HEADER, skips, []).facts["broke"][0]["message"] == "no float16"
    assert watch(HEADER, [skips[0], line(QUIET)], []).facts["broke"] == []


ITEMS = [(find_case(name), Execution()) for name in (BASE, QUIET)]
IDS = [execution.item_id(case) for case, execution in ITEMS]


def test_a_control_that_cannot_be_run() -> None:
    """Each item that it leaves is an error; none passes unseen, none is run twice."""
    told: list[dict[str, Any]] = []

    def run(_: Job, items: list, report: Any) -> None:
        report(Result(*items[0], "pass").as_json() | {"evidence": "large"})
        message = "a worker ended before it was ready"
        raise PortError(message)

    Control("ref", Job("ref"), ITEMS).run([], run, told.append)
    assert [(t["type"], t["case"], t["verdict"]) for t in told] == [
        ("control", IDS[0], "pass"),
        ("control", IDS[1], "error"),
    ]
    assert "the control could not be run: a worker ended" in told[1]["message"]
    assert "evidence" not in told[0]
    Control("ref", Job("ref"), ITEMS).run(IDS, run, told.append)
    assert len(told) == 2


GPU = [(find_case(BASE), Execution(device="cuda")), ITEMS[0]]


@pytest.mark.parametrize(
    ("asked", "port", "items"),
    [("none", "mine", GPU), (None, "mine", ITEMS), (None, "diffusers", GPU)],
    ids=["none", "on-the-cpu", "itself"],
)
def test_no_control(asked: str | None, port: str, items: list) -> None:
    """There is none where the user wants none, on the CPU, and of the reference itself."""
    assert control_of(asked, port, items, Job("mine")) is None


def test_the_default_control(monkeypatch, fake) -> None:
    """On another device than the CPU it is diffusers, on what runs there, if it offers it."""
    port = fake()
    monkeypatch.setattr(module, "have_oracle", lambda: True)
    monkeypatch.setattr(Job, "runner", lambda _: Runner(port))
    assert control_of(None, "mine", GPU, Job("mine")) is None
    port.offers = Runner(port).hello.__class__("fake", "1", ("unet",), devices=("cpu", "cuda"))
    found = control_of(None, "mine", GPU, Job("mine", packs="packs"))
    assert (found.spec, found.items) == ("diffusers", GPU[:1])
    assert found.job == Job("diffusers", packs="packs")
    assert control_of("ref", "mine", GPU, Job("mine")).items == GPU


def test_a_control_that_does_not_offer_the_device(monkeypatch, fake) -> None:
    """One that was named has to run where the port runs."""
    monkeypatch.setattr(Job, "runner", lambda _: Runner(fake()))
    with pytest.raises(UsageError, match="--control ref offers cpu, not cuda"):
        control_of("ref", "mine", GPU, Job("mine"))


@pytest.fixture
def run(main, port_file: str, golden_copy, tmp_path: Path, monkeypatch):
    """Return a function that runs two cases with faults of the port and of the control."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    monkeypatch.setattr(explain, "_testable", lambda _: False)
    assert golden_copy.root.exists()
    text = (tmp_path / "stored_port.py").read_text("utf-8")
    text = text.replace("FAKE_PORT", "FAKE_CONTROL")
    alone = "assert multiprocessing.parent_process()  # what a port sets cannot reach it"
    text = text.replace("return Stored(component)", f"{alone}\n        return Stored(component)")
    (tmp_path / "ref.py").write_text(ALONE + text, "utf-8")
    argv = (
        "run",
        port_file,
        "-k",
        f"{BASE} or {QUIET}",
        "--control",
        f"{tmp_path / 'ref.py'}:make",
    )

    def call(fault: str = "", of_control: str = "", *options: object) -> tuple[int, str, dict]:
        monkeypatch.setenv("FAKE_PORT", fault)
        monkeypatch.setenv("FAKE_CONTROL", of_control)
        code, text, told = main(*argv, "--out", tmp_path / "out", *options)
        summary = tmp_path / "out" / "summary.json"
        return code, text + told, json.loads(summary.read_text()) if summary.exists() else {}

    return call


def rows(folder: Path) -> list[tuple[str, str | None]]:
    """Return type and case of each line of a run."""
    lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
    return [(found["type"], found.get("case")) for found in map(json.loads, lines)]


WHOLE = [
    ("header", None), *(("case", i) for i in IDS), *(("control", i) for i in IDS), ("footer", None),
]  # fmt: skip


def test_run(run, tmp_path: Path) -> None:
    """The control runs after the port, on the same items, and is not counted."""
    code, _, summary = run()
    assert (code, summary["counts"]["pass"], summary["control"]["cases"]) == (0, 2, 2)
    assert summary["first_divergence"] is None
    assert rows(tmp_path / "out") == WHOLE


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_resume(run, tmp_path: Path, kept: int) -> None:
    """A run that was broken off goes on with what is left of the port and of the control."""
    run()
    path = tmp_path / "out" / "results.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: kept + 1]))
    code, text, _ = run("", "", "--resume")
    assert code == 0
    assert text.count("[control]") == min(2, 4 - kept)
    assert rows(tmp_path / "out") == WHOLE


def test_the_environment_is_wrong(run, tmp_path: Path) -> None:
    """If the reference fails, the run does, of the kind `environment`, however good the port."""
    code, _, summary = run("", "negates")
    assert (code, summary["verdict"]) == (1, "nonconformant")
    assert summary["counts"]["pass"] == 2
    assert summary["first_divergence"]["kind"] == "environment"
    tests = parse(tmp_path / "out" / "junit.xml").getroot().iter("testcase")  # noqa: S314
    failing = [t.attrib["name"] for t in tests if t.find("failure") is not None]
    assert failing == ["control"]


def test_both_are_wrong(run) -> None:
    """What both get wrong is the environment's; no mutant is suspected."""
    code, _, summary = run("negates", "negates")
    assert code == 1
    assert summary["first_divergence"]["kind"] == "environment"
    assert [fault.get("cause") for fault in summary["faults"]] == ["environment"]


def test_the_port_is_wrong(run) -> None:
    """With an honest control a fault stays the port's."""
    code, _, summary = run("negates")
    assert code == 1
    assert summary["first_divergence"]["kind"] == "fault"
    assert all("cause" not in fault for fault in summary["faults"])


@pytest.mark.parametrize(("fault", "code"), [("", 3), ("negates", 1)])
def test_the_control_broke(run, fault: str, code: int) -> None:
    """Without an answer of the reference the run is incomplete; a wrong port stays wrong."""
    found, _, summary = run(fault, "raises")
    assert found == code
    assert len(summary["control"]["broke"]) == 2
    assert "the port raised RuntimeError: first line second line" in str(summary["control"])


def test_a_control_that_cannot_be_made(run, tmp_path: Path) -> None:
    """That is said before the long run, with the way out."""
    code, text, _ = run("", "factory")
    assert code == 3
    assert "--control none runs without one" in text
    assert not (tmp_path / "out").exists()


DRIVER = """
import os

import torch

from conformance.port import resolve


def tf32(tensor):
    \"\"\"Keep ten bits of the mantissa, as TF32 does with the operands of a product.\"\"\"
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Reference:
    def __init__(self):
        self.right = resolve("sd1_impl")

    def hello(self):
        return self.right.hello()

    def load(self, *arguments):
        component = self.right.load(*arguments)
        for module in component.module.modules() if os.environ["DRIVER"] == "new" else ():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.data.copy_(tf32(module.weight.data))
                module.register_forward_pre_hook(lambda _, given: (tf32(given[0]), *given[1:]))
        return component
"""


def here(job: Job, items: list, _: int, report: Any) -> None:
    """Run items in this process."""
    runner = job.runner()
    for item in items:
        report(runner.run(*item).as_json())


def test_a_new_driver(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that turns on TF32 is found by the control, and named by its version."""
    pytest.importorskip("torch")
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    monkeypatch.setattr(cli_run, "run_parallel", here)
    (tmp_path / "ref.py").write_text(DRIVER, "utf-8")
    summaries = []
    for driver, version in (("old", "570.86"), ("new", "580.65")):
        facts = {"torch": "2.13", "nvidia driver": version}
        monkeypatch.setattr(results, "environment", lambda facts=facts: dict(facts))
        monkeypatch.setenv("DRIVER", driver)
        baseline = ["--baseline", tmp_path / "old"] if driver == "new" else []
        argv = ("--mode", "trace", "--control", f"{tmp_path / 'ref.py'}:Reference", *baseline)
        code, _, told = main("run", "-k", "unet/tiny/batch1", "--out", tmp_path / driver, *argv)
        summaries.append(json.loads((tmp_path / driver / "summary.json").read_text("utf-8")))
        assert code == int(driver == "new"), told
    old, new = summaries
    assert (old["verdict"], new["verdict"]) == ("conformant", "nonconformant")
    assert new["counts"]["pass"] == 1
    assert new["baseline"]["regressions"] == []
    assert new["first_divergence"]["kind"] == "environment"
    hint = "changed since the baseline: nvidia driver 570.86 -> 580.65"
    assert hint in new["first_divergence"]["hint"]
    assert new["control"]["changed"] == {"nvidia driver": ["570.86", "580.65"]}
    assert new["control"]["moved"][0]["after"] > 2 * new["control"]["moved"][0]["before"]
