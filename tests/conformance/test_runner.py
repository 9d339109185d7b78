"""Running cases against ports made of a few NumPy lines, right and wrong ones."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from conformance import runner as runner_module
from conformance.case import Case, find_case, select_cases
from conformance.compare import whole_errors
from conformance.errors import PortError, UnsupportedError
from conformance.execution import Execution, items
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.runner import Runner
from conformance.tolerance import ARITHMETICS, LIMIT


def outputs(change, dtype=np.float32):
    """Answer with a changed copy of the stored output, and no probes."""
    stored = load_golden(find_case("unet/tiny/base")).outputs["sample"].astype(dtype)
    return lambda *_: ({"sample": change(stored)}, {})


def put(value: float):
    """Overwrite one element."""

    def change(array):
        array[1, 2, 3, 4] = value
        return array

    return change


def raises(error: BaseException):
    """Answer by raising."""

    def answer(*_):
        raise error

    return answer


def spoils(change):
    """Answer with the stored output after a change of the inputs in place."""

    def answer(inputs, *_):
        change(inputs)
        return outputs(np.copy)()

    return answer


@pytest.mark.parametrize("dtype", ARITHMETICS)
def test_stored_output_passes(judge, case: Case, dtype: str) -> None:
    """A port that returns the truth, rounded, passes at its outputs; it has no probes to judge."""
    result = judge(None, case, dtype=dtype)
    assert (result.verdict, result.message, result.first_divergence) == ("pass", "", None)
    assert [(r.name, r.kind) for r in result.records] == [("sample", "output")]
    assert result.worst.ratio < 1


STORED = [c for c in select_cases(variants=["tiny*"]) if c.exact or c.is_network]


@pytest.mark.parametrize("case_", STORED, ids=lambda c: c.id)
def test_every_case_runs(judge, case_: Case) -> None:
    """Every tiny case whose outputs are stored whole can be judged without torch."""
    assert judge(None, case_).verdict == "pass"


@pytest.mark.parametrize(
    ("times", "verdict"),
    [(0.5, "pass"), (1.9, "pass"), (2.1, "warn"), (3.9, "warn"), (4.1, "fail")],
)
def test_verdict_follows_error(
    fake, judge, case: Case, golden: Golden, times: float, verdict: str
) -> None:
    """An error of so many times the noise gets the verdict that the limit says."""
    truth = golden.outputs["sample"]
    noise = golden.output_noise["float64"]["sample"]
    error = np.random.default_rng(0).standard_normal(truth.shape)
    error *= times / np.max(whole_errors(truth + error, truth) / noise)
    port = fake(lambda *_: ({"sample": truth + error}, {}))
    result = judge(port, case, dtype="float64")
    assert result.verdict == verdict
    assert result.worst.ratio == pytest.approx(times, rel=0.02)


class Tensor:
    """One of torch's, as far as its name goes."""

    __module__ = "torch"


WRONG_NUMBERS = {
    "nan": put(np.nan),
    "inf": put(np.inf),
    "one-element": put(0.123),
    "zero": np.zeros_like,
    "negated": np.negative,
    "transposed": lambda a: a.swapaxes(2, 3),
    "channels-exchanged": lambda a: a[:, [1, 0, 2, 3]],
    "batch-exchanged": lambda a: a[::-1],
    "one-percent": lambda a: a * np.float32(1.01),
}


@pytest.mark.parametrize("change", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_wrong_numbers_fail(judge, case: Case, change) -> None:
    """A wrong value is a fail, with the output as first divergence."""
    result = judge(outputs(change), case)
    assert result.verdict == "fail"
    assert not result.worst.ratio <= LIMIT
    first = result.first_divergence
    assert (first["probe"], first["after"], first["kind"]) == ("sample", None, "fault")
    assert first["case"] == "unet/tiny/base[float32-cpu-sdpa-trace]"
    assert result.message.startswith("first wrong at sample, ratio ")


WRONG_SHAPES = {
    "row-missing": (lambda a: a[:, :, 1:], "shape (2, 4, 15, 16), expected (2, 4, 16, 16)"),
    "channels-last": (lambda a: a.transpose(0, 2, 3, 1), "shape (2, 16, 16, 4), "),
    "flat": (np.ravel, "shape (2048,), "),
    "empty": (lambda a: a[:0], "shape (0, 4, 16, 16), "),
}


@pytest.mark.parametrize(("change", "note"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_wrong_shape_fails(judge, case: Case, change, note: str) -> None:
    """A wrong shape is a fail that says both shapes."""
    result = judge(outputs(change), case)
    assert result.verdict == "fail"
    assert result.records[0].note.startswith(note)
    assert note in result.message


NO_ANSWERS = {
    "other-name": (
        lambda *_: ({"out": np.zeros(1)}, {}),
        "output sample is missing; output out is none of this component: its outputs: sample ",
    ),
    "no-output": (lambda *_: ({}, {}), "output sample is missing"),
    "wide": (
        outputs(np.copy, np.float64),
        r"sample is float64, expected float32: return it as float32: \.astype\(np\.float32\), ",
    ),
    "narrow": (
        outputs(np.copy, np.float16),
        "output sample is float16, expected float32: compute in float32, or leave float32 out of ",
    ),
    "integers": (
        outputs(np.copy, np.int32),
        "sample is int32, expected float32: floating numbers ",
    ),
    "complex": (outputs(np.copy, np.complex64), "sample is complex64, .*: floating numbers are"),
    "truths": (outputs(np.copy, np.bool_), "sample is bool, .*: floating numbers are expected: "),
    "no-array": (
        lambda *_: ({"sample": [0.0]}, {}),
        r"returned sample as list, not NumPy: np.array\(x, np.float32\)",
    ),
    "scalar": (lambda *_: ({"sample": np.float32(1)}, {}), r"as float32, not NumPy: np.asarray\(x"),
    "torch": (
        lambda *_: ({"sample": Tensor()}, {}),
        r"as Tensor, not NumPy: x.detach\(\).cpu\(\).numpy\(\)$",
    ),
    "no-pair": (
        lambda *_: None,
        r"run\(\) returned NoneType, not a tuple of two dicts, .*: end it",
    ),
    "list": (lambda *_: [{}, {}], r"run\(\) returned list of dict, dict, not a tuple of two dicts"),
    "no-dict": (
        lambda *_: ({}, None),
        r"returned tuple of dict, NoneType, not a tuple of two",
    ),
    "raises": (
        raises(ValueError("two\n lines")),
        r"the port raised ValueError: two lines \(.*test_runner.py:\d+\)$",
    ),
    "port-error": (raises(PortError("it broke")), "^it broke$"),
    "out-of-memory": (raises(MemoryError()), "the port raised MemoryError"),
    "in-place": (spoils(lambda i: np.negative(i["sample"], i["sample"])), "input sample in pl"),
    "time-in-place": (
        spoils(lambda i: i["timestep"].fill(3)),
        "changed its input timestep in place",
    ),
    "input-removed": (spoils(lambda i: i.pop("timestep", 0)), "input timestep in place"),
    "input-added": (spoils(lambda i: i.update(more=np.zeros(1))), "its input more in place"),
}


@pytest.mark.parametrize(("answer", "message"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_broken_contract_is_an_error(judge, case: Case, answer, message: str) -> None:
    """A broken contract is an error of this case, in one line, and not a wrong number."""
    result = judge(answer, case)
    assert (result.verdict, result.records, result.first_divergence) == ("error", [], None)
    assert "\n" not in result.message
    assert re.search(message, result.message)


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye")], ids=["zero", "text"])
def test_exit_is_an_error(judge, case: Case, error: SystemExit) -> None:
    """A port that calls sys.exit breaks its own case only: the run must not end with exit 0."""
    assert judge(raises(error), case).verdict == "error"


def test_not_bfloat16(judge, case: Case) -> None:
    """Values that bfloat16 does not have are an error where bfloat16 was asked for."""
    result = judge(outputs(np.copy), case, dtype="bfloat16")
    assert result.verdict == "error"
    assert result.message.endswith("not bfloat16: round it to bfloat16, then widen it")


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_another_arithmetic_than_asked_for(judge, case: Case, dtype: str) -> None:
    """A float32 result, cast or not, was computed in no other arithmetic."""
    message = judge(outputs(np.copy), case, dtype=dtype).message
    assert f"output sample is float32, expected {dtype}: " in message
    assert message.endswith(f"compute in {dtype}, or leave {dtype} out of hello()'s arithmetics")


def test_a_probe_that_was_not_asked_for(fake, judge, case: Case) -> None:
    """It may be one that was, misspelt."""
    right = outputs(np.copy)
    port = fake(lambda *own: (right(*own)[0], {"conv_inn": np.zeros(1)} if own[1] else {}))
    port.offers = replace(port.offers, probes=True)
    message = judge(port, case).message
    assert message.endswith("hand out those alone that `probes` names; the nearest is conv_in")


@pytest.mark.parametrize("where", ["load", "run"])
def test_unsupported_is_a_skip(fake, judge, case: Case, where: str) -> None:
    """A port that declines skips the case, with its reason."""
    refuse = raises(UnsupportedError("fixed to 64x64"))
    port = fake(refuse)
    if where == "load":
        port.load = refuse
    result = judge(port, case)
    assert (result.verdict, result.message) == ("skip", "fixed to 64x64")


@pytest.mark.parametrize(
    ("offer", "how", "message"),
    [
        ({"components": ("vae_decoder",)}, {}, "fake does not offer component unet"),
        ({"arithmetics": ("float32",)}, {"dtype": "float16"}, "not offer arithmetic float16"),
        ({"devices": ("cuda",)}, {"device": "cpu"}, "fake does not offer device cpu"),
    ],
    ids=["component", "arithmetic", "device"],
)
def test_not_offered_is_a_skip(
    fake, judge, case: Case, offer: dict, how: dict, message: str
) -> None:
    """What the port does not offer is skipped, and it is never loaded for it."""
    port = fake()
    port.offers = replace(port.offers, **offer)
    result = judge(port, case, **how)
    assert result.verdict == "skip"
    assert message in result.message
    assert not port.loads


@pytest.mark.parametrize("component", ["text_encoder", "vae_encoder", "vae_decoder"])
def test_float64_without_replace(fake, judge, component: str) -> None:
    """Only the UNet has a timestep embedding that a port must be able to take."""
    port = fake()
    port.offers = replace(port.offers, replace=False)
    assert judge(port, find_case(f"{component}/tiny/base"), dtype="float64").verdict == "pass"


def test_dense_is_not_offered_in_half(judge) -> None:
    """Dense inputs would be rounded in half types, so they are skipped there."""
    result = judge(None, find_case("unet/tiny-dense/base"), dtype="bfloat16")
    assert result.verdict == "skip"
    assert "is not offered in bfloat16, only in float64, float32" in result.message


def test_overflow_is_a_skip(judge, case: Case, golden: Golden, monkeypatch) -> None:
    """Where the reference overflows, nothing is judged."""
    golden.noise["float16"][7] = np.inf
    monkeypatch.setattr(runner_module, "load_golden", lambda _: golden)
    result = judge(None, case, dtype="float16")
    expected = f"reference overflows in float16 at {golden.probes[7]}"
    assert (result.verdict, result.message) == ("skip", expected)


def test_overflowing_output_is_a_skip(fake, judge, case: Case, golden: Golden, monkeypatch) -> None:
    """Where only the output of the reference overflows, nothing is judged either."""
    golden.output_noise["float16"]["sample"] = np.full(3, np.inf)
    monkeypatch.setattr(runner_module, "load_golden", lambda _: golden)
    port = fake(outputs(np.zeros_like, np.float16))
    assert judge(port, case, dtype="float16").verdict == "skip"


def test_missing_golden_is_an_error(fake, judge) -> None:
    """A case without a golden is the suite's error."""
    case = find_case("unet/tiny/base")
    case = replace(case, scenario=replace(case.scenario, name="new"))
    result = judge(fake(), case)
    assert result.verdict == "error"
    assert "unet/tiny/new has no golden" in result.message


def test_aged_golden_is_an_error(fake, case: Case, monkeypatch) -> None:
    """A failing case whose golden no longer agrees with the installed oracle blames the golden."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: "probe conv_in is 9 float64 noise away")
    result = Runner(fake(outputs(np.zeros_like))).run(case, Execution())
    assert result.verdict == "error"
    assert "unet/tiny/base: the golden has aged: probe conv_in is 9" in result.message
    assert result.first_divergence is None


def test_loaded_once_per_variant(fake) -> None:
    """Cases of a variant and arithmetic share one loaded component, with the recipe's weights."""
    port = fake()
    variants = ["tiny", "tiny-lowvar"]
    cases = select_cases(["unet"], variants, ["base", "quiet"])
    runs = [Execution("float32"), Execution("bfloat16")]
    runner = Runner(port)
    seen = [runner.run(case, run) for case, run in items(cases, runs)]
    assert [(v, d) for _, v, d, _, _ in port.loads] == [
        ("tiny", "float32"),
        ("tiny", "bfloat16"),
        ("tiny-lowvar", "float32"),
        ("tiny-lowvar", "bfloat16"),
    ]
    assert {r.execution.item_id(r.case) for r in seen} == {
        run.item_id(case) for run in runs for case in cases
    }
    weights = port.loads[2][4]
    assert weights.variant.name == "tiny-lowvar"
    assert weights["conv_in.weight"].shape == (32, 4, 3, 3)


def test_case_line(judge, case: Case) -> None:
    """A case line has the promised fields, and its probes' records."""
    line = judge(outputs(put(np.nan)), case).as_json()
    assert line["verdict"] == "fail"
    assert math.isnan(line["ratio"])
    assert line["worst_probe"] == line["probes"][0]["name"] == "sample"
    assert {
        "case",
        "component",
        "variant",
        "scenario",
        "dtype",
        "device",
        "backend",
        "mode",
    } <= set(line)
    assert {"first_divergence", "seconds", "message", "probes"} <= set(line)
