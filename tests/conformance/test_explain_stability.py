"""Causes that failures tell themselves, and ports that differ from themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance import explain as explaining
from conformance.adapters import sd1_impl
from conformance.case import find_case
from conformance.compare import Record
from conformance.divergence import zeros
from conformance.execution import Execution
from conformance.explain import explain, explain_merged, in_short
from conformance.fingerprint import Known
from conformance.golden_files import load_golden
from conformance.mutants.answer import Reference, answer, load
from conformance.mutants.catalogue import find_mutants
from conformance.mutants.mutant import Mutant
from conformance.mutants.port import MutantPort
from conformance.report.causes import cause_name
from conformance.report.records import parse_summary
from conformance.runner import Runner
from conformance.told_causes import told_causes

TEXT = find_case("text_encoder/tiny/base")
ITEM = "vae_decoder/tiny/base[float32-cpu-sdpa-{}]".format
SECOND = "the second call differs from the first"
LEAK = "sample 0 changes where the other samples are replaced"
TF32 = "about 10 bits: TF32 or float16 in one convolution, not float32"
NOTE = "9 of 12 elements differ"
BLOCK = "decoder.up_blocks.1.resnets.1"


def line(
    mode: str, *wrong: str, hint: str = "", kind: str = "fault", note: str = ""
) -> dict[str, Any]:
    """Build the line of an item, which fails where anything is wrong."""
    first = {"probe": wrong[0], "ratio": 9.0, "kind": kind, "hint": hint} if wrong else None
    probes = [
        {"name": name, "kind": "probe", "verdict": "fail", "ratio": 9.0, "note": note}
        for name in wrong
    ]
    return {
        "case": ITEM(mode), "component": "vae_decoder", "variant": "tiny", "scenario": "base",
        "mode": mode, "dtype": "float32", "device": "cpu", "backend": "sdpa", "message": "",
        "verdict": "fail" if wrong else "pass", "probes": probes, "first_divergence": first,
    }  # fmt: skip


def unstable(mode: str, cause: str, *wrong: str) -> dict[str, Any]:
    """Build the failing line of a stability item."""
    return line(mode, *wrong, hint=f"{cause}: {NOTE}", note=NOTE)


@pytest.fixture(autouse=True)
def _no_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test no mutant here: nothing is run."""
    monkeypatch.setattr(explaining, "_testable", lambda _: False)


def faults_of(lines: list[dict[str, Any]], fake: Any) -> list[dict[str, Any]]:
    """Explain lines both ways, which must tell the same."""
    found = explain(lines, Runner(fake(None)))
    merged = explain_merged(lines, [])
    assert [in_short(f) for f in merged.faults] == [in_short(f) for f in found.faults]
    assert merged.hints == found.hints
    return found.faults


def test_a_port_that_differs_from_itself(fake) -> None:
    """All modes of a case, and its trace where splice mode passed, have the one cause."""
    lines = [
        *(line("splice"), line("trace", f"{BLOCK}.conv2", "image")),
        unstable("threads", "two threads against one", BLOCK),
        unstable("repeat", SECOND, BLOCK, "image"),
        unstable("batch", "sample 0 alone differs from the same in its batch", BLOCK),
    ]
    (fault,) = faults_of(lines, fake)
    assert (fault["text"], fault["mutant"], fault["confirmed"]) == (SECOND, None, False)
    assert fault["names"] == sorted([BLOCK, f"{BLOCK}.conv2"])


def test_what_splice_mode_finds_too_is_another_cause(fake) -> None:
    """A trace is not excused where splice mode fails: that is a fault by itself."""
    lines = [line("splice", "decoder.conv_in"), line("trace", "decoder.conv_in")]
    found = faults_of([*lines, unstable("repeat", SECOND, BLOCK)], fake)
    assert [(f.get("text"), f["probes"]) for f in found] == [
        (SECOND, BLOCK),
        (None, "decoder.conv_in"),
    ]


def test_a_leak_explains_what_is_wrong_there(fake) -> None:
    """A sample that depends on the others is told in the hint of the first divergence."""
    lines = [line("splice", BLOCK), line("trace", BLOCK), unstable("batch", LEAK, BLOCK)]
    (fault,) = faults_of(lines, fake)
    assert (fault["text"], fault["names"]) == (LEAK, [BLOCK])
    assert explain(lines, Runner(fake(None))).hints == {"vae_decoder": f"{LEAK} (`--mode batch`)"}


def test_nothing_is_said_twice(fake) -> None:
    """Where the first divergence is the stability item's, its hint has it already."""
    found = explain([unstable("repeat", SECOND, BLOCK)], Runner(fake(None)))
    assert found.hints == {"vae_decoder": ""}
    assert [f["text"] for f in found.faults] == [SECOND]


def test_a_precision_names_its_cause(fake) -> None:
    """The group has the text of the hint, and threads that differ there are no other cause."""
    conv = f"{BLOCK}.conv1"
    lines = [
        *(line(mode, conv, hint=TF32, kind="precision") for mode in ("splice", "trace")),
        unstable("threads", "two threads against one", conv),
    ]
    (fault,) = faults_of(lines, fake)
    assert (fault["text"], fault["count"], fault["mutant"]) == (TF32, 1, None)
    (told,) = parse_summary({"faults": [in_short(fault)]}).faults
    assert cause_name(told) == f"{TF32}, at {conv}"


BF16 = "about 7 bits: bfloat16 in 4 of 5 probes, not float32"


def test_a_precision_of_blocks_is_overruled_by_what_lies_inside(fake) -> None:
    """Whole blocks may err by as much for a formula: a case that sees one is believed."""
    conv = f"{BLOCK}.conv1"
    blocks = line("trace", BLOCK, hint=BF16, kind="precision")
    formula = line("trace", f"{BLOCK}.norm2") | {
        "case": "vae_decoder/tiny/loud[float32-cpu-sdpa-trace]"
    }
    formula["probes"].append({"name": conv, "kind": "probe", "verdict": "pass", "ratio": 1.0})
    (fault,) = faults_of([blocks, formula], fake)
    assert (fault.get("text"), fault["names"]) == (None, [f"{BLOCK}.norm2"])
    inside = line("trace", conv, hint=BF16, kind="precision") | {"case": formula["case"]}
    for others in ([], [inside], [formula | {"dtype": "bfloat16"}], [formula, inside]):
        assert [t.text for t in told_causes([blocks, *others], "vae_decoder")] == [BF16]


def test_a_note_with_colons() -> None:
    """What differs is read whole, though it and what is noted of it have colons."""
    cause, note = "depends on PYTHONHASHSEED: on a set", "shape (1,), expected (2,); layout: NHWC"
    (told,) = told_causes([line("fresh", "a", hint=f"{cause}: {note}", note=note)], "vae_decoder")
    assert told.text == cause


class Second:
    """sd1_impl, of which every call but some is spoiled."""

    def __init__(self, mutant: Mutant, right: range) -> None:
        """Keep a mutant, and the calls that are right."""
        self.ports = MutantPort(mutant), sd1_impl.port()
        self.hello, self.right, self.calls = self.ports[1].hello, right, 0

    def load(self, *arguments: Any) -> Second:
        """Load both."""
        self.loaded = [port.load(*arguments) for port in self.ports]
        return self

    def run(self, *arguments: Any) -> Any:
        """Answer rightly, or as the mutant."""
        right = self.calls in self.right
        self.calls += 1
        return self.loaded[right].run(*arguments)


def confirmed(port: Any, mutant: Mutant) -> dict[str, float]:
    """Say where a port is confirmed to be a mutant, in splice mode."""
    values = answer(load(sd1_impl.port(), TEXT, "float64"), TEXT, load_golden(TEXT), None)
    runner = Runner(port, lambda *_: values)
    return Reference(mutant).confirm(runner, TEXT, Execution(mode="splice"))


def test_a_port_that_is_right_when_asked_again_is_no_mutant() -> None:
    """A mutant is confirmed where port and mutant are both wrong, and there alone."""
    (mutant,) = find_mutants(["clip-exact-gelu"])
    found = confirmed(Second(mutant, range(0)), mutant)
    assert found
    assert all(name.endswith("mlp.fc2.input") for name in found)
    assert confirmed(Second(mutant, range(1)), mutant) == {}


def test_a_mutant_that_a_case_cannot_tell_from_the_truth_is_not_confirmed() -> None:
    """A port agrees with it, right or wrong: that says nothing."""
    (mutant,) = find_mutants(["clip-exact-gelu"])
    nothing = replace(mutant, module=lambda _: None)
    assert confirmed(sd1_impl.port(), nothing) == {}


def test_a_mutant_that_is_confirmed_leaves_no_text(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leak that is a mutant of the catalogue is told by its name alone."""
    monkeypatch.setattr(explaining, "_testable", lambda _: True)
    known = Known("m", "vae_decoder", "Something is wrong", {})
    monkeypatch.setattr(explaining, "rank", lambda *_: [known])
    monkeypatch.setattr(explaining, "known_of", lambda _: [known])
    fault = explaining._fault({BLOCK}, "m", 1.0)
    monkeypatch.setattr(explaining, "_tested", lambda *_: [fault])
    lines = [line("splice", BLOCK), unstable("batch", LEAK, BLOCK)]
    (found,) = explain(lines, Runner(fake(None))).faults
    assert (found["mutant"], found.get("text")) == ("m", None)


class Leak:
    """sd1_impl, one of whose samples takes something of another."""

    def __init__(self, share: float, sample: int) -> None:
        """Keep how much, and which sample."""
        self.port, self.share, self.sample = sd1_impl.port(), share, sample
        self.hello = self.port.hello

    def load(self, *arguments: Any) -> Leak:
        """Load sd1_impl."""
        self.loaded = self.port.load(*arguments)
        return self

    def run(self, *arguments: Any) -> Any:
        """Let the sample leak, unless it is alone."""
        outputs, probes = self.loaded.run(*arguments)
        out = outputs["out"]
        if len(out) > 1:
            out[self.sample] += np.float32(self.share) * out[1 - self.sample]
        return outputs, probes


@pytest.mark.parametrize(
    ("share", "sample", "verdict"), [(1e-3, 0, "fail"), (1e-3, 1, "fail"), (3e-7, 0, "warn")]
)
def test_a_leak_names_the_sample(share: float, sample: int, verdict: str) -> None:
    """Which sample depends on the others is told, by a warning too."""
    case = find_case("block/time_embedding/tiny/base")
    result = Runner(Leak(share, sample)).run(case, Execution(mode="batch"))
    assert result.verdict == verdict, result.message
    assert f"sample {sample} changes where the other samples are replaced" in result.message


def record(name: str, verdict: str = "fail", max_abs: float = 0.0, err: float = 1.0) -> Record:
    """Build a record."""
    own = Record(name, "output", [2], err, 1e-6, err / 1e-6, verdict, approximate=False)
    own.max_abs = max_abs
    return own


def test_zeros() -> None:
    """Gradients that are zero are told first, by name and number; right zeros are none."""
    right = [record("a", "pass", err=0.0), record("b", max_abs=1.0), record("c", max_abs=np.nan)]
    assert zeros(right) == ""
    assert zeros([*right, record("mid")]) == "mid is all zeros: is something never written?"
    many = [record("mid"), record("grad.a"), record("grad.b")]
    assert zeros(many) == "grad.a is all zeros, and 1 more: is something detached?"


def test_a_precision_of_whole_blocks_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact GELU looks like bfloat16 where blocks alone are seen: every mutant is asked."""
    monkeypatch.undo()
    (mutant,) = find_mutants(["clip-exact-gelu"])
    known = Known(mutant.id, mutant.component, mutant.wrong, {})
    monkeypatch.setattr(explaining, "rank", lambda *_: [])
    monkeypatch.setattr(explaining, "known_of", lambda _: [known])
    case = find_case("text_encoder/tiny/short")
    values = answer(load(sd1_impl.port(), case, "float64"), case, load_golden(case), None)
    runner = Runner(MutantPort(mutant), lambda *_: values)
    runner.asks_for_age = False
    spliced = runner.run(case, Execution(mode="splice")).as_json()
    assert spliced["first_divergence"]["kind"] == "precision"
    (fault,) = explain([spliced], runner).faults
    assert (fault["mutant"], fault["confirmed"], fault.get("text")) == (mutant.id, True, None)
