"""The first divergence: a fault, honest errors that add up, or neither."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from conformance.case import find_case
from conformance.compare import Record
from conformance.divergence import (
    Local,
    adds_up,
    describe,
    first_divergence,
    gains,
    inherited,
)
from conformance.execution import Execution
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.port import Hello
from conformance.result import Result
from conformance.results import plain
from conformance.runner import Runner
from conformance.tolerance import LIMIT, ROUNDOFF, ratio, verdict
from conformance.traces import Values, judged_by

OWN = np.array([3e-6, 4e-6, 3e-6, 5e-6])
"""Noise of each layer itself."""
TRACE = np.array([3e-6, 5e-6, 1.3e-5, 5e-6])
"""Noise at its probe when errors add up: gains are 0, 3/3, ~12.65/5 and 0 (all its own)."""
GAINS = [0, 1, math.sqrt(13**2 - 3**2) / 5, 0]
NAMES = ("first", "second", "third", "fourth")


def golden(own=OWN, trace=TRACE, arithmetic="float32"):
    """Build a golden of four probes of which nothing matters but the noise."""
    count = len(trace)
    return Golden(
        case="unet/tiny/base",
        hunts="",
        inputs={},
        outputs={"sample": np.ones(1)},
        probes=list(NAMES[:count]),
        shapes=[(1,)] * count,
        sketches=np.zeros((count, 64)),
        norms=np.ones(count),
        max_abs=np.ones(count),
        noise={arithmetic: np.array(trace)},
        output_noise={arithmetic: {"sample": np.full(3, 1e-5)}},
        splice_noise={arithmetic: np.array(own)},
        splice_output_noise={arithmetic: {"sample": np.full(3, 2e-6)}},
    )


def records(errors, noise=TRACE, kind="probe", names=NAMES):
    """Build records of these errors, judged by noise."""
    made = []
    for name, error, unit in zip(names, errors, noise, strict=False):
        own = ratio(error, unit, "float32")
        facts = (error, unit, own, verdict(own))
        made.append(Record(name, kind, [1], *facts, approximate=True))
    return made


def result(found, mode="trace", case_id="unet/tiny/base"):
    """Build a failing result."""
    return Result(find_case(case_id), Execution(mode=mode), "fail", found)


NO_FAULT = Local(dict(zip(NAMES, OWN, strict=True)), None)


def test_gains():
    """A gain is what a probe adds to its own noise, over the largest noise before it."""
    assert gains(golden(), "float32") == pytest.approx(GAINS)


@pytest.mark.parametrize(
    ("own", "trace", "expected"),
    [
        ([0, 0], [0, 1e-6], [0, 0]),
        ([9e-6, 9e-6], [1e-6, 2e-6], [0, 0]),
        ([0, 0, 0], [4e-6, 1e-6, 2e-6], [0, 0.25, 0.5]),
        ([1e-6], [1e-6], [0]),
    ],
    ids=["nothing-before", "own-above-trace", "largest-before", "one-probe"],
)
def test_gains_at_the_edges(own, trace, expected):
    """Nothing enters the first probe; noise that is all a layer's own is not passed on."""
    with np.errstate(all="raise"):
        found = gains(golden(np.array(own, float), np.array(trace, float)), "float32")
    assert found.tolist() == expected


def bound(errors):
    """Return the largest error that adds up at each probe, given the errors before it."""
    return [
        LIMIT * (own + gain * max([0, *errors[:i]]))
        for i, (own, gain) in enumerate(zip(OWN.tolist(), GAINS, strict=True))
    ]


def test_errors_add_up_to_the_bound_and_no_further():
    """Every error may be the limit times own noise and inherited error; none may be more."""
    most = []
    for i in range(4):
        most.append(bound([*most, 0, 0, 0, 0])[i])
    assert most == pytest.approx([1.2e-5, 6.4e-5, 6.597e-4, 2e-5], rel=1e-3)
    exact = [error * (1 - 1e-9) for error in most]
    assert adds_up(records(exact), golden(), "float32")
    for i in range(4):
        over = [error * (1 + 1e-6 * (i == k)) for k, error in enumerate(most)]
        assert not adds_up(records(over), golden(), "float32"), NAMES[i]
    assert adds_up(records([1.1e-5, 1e-6, 1.2e-4]), golden(), "float32"), "the largest counts"


@pytest.mark.parametrize("error", [math.nan, math.inf], ids=str)
def test_what_is_not_finite_never_adds_up(error):
    """No gain explains NaN or infinity, at the failing probe or after it."""
    assert not adds_up(records([1e-6, error, 1e-6]), golden(), "float32")
    assert not adds_up(records([1e-6, 1e-6, error]), golden(), "float32")


def test_the_floor_counts_as_noise():
    """Half an ulp is allowed where the reference happens to be exact."""
    exact = golden(own=np.zeros(1), trace=np.zeros(1))
    most = LIMIT * ROUNDOFF["float32"] / 2
    assert adds_up(records([most]), exact, "float32")
    assert not adds_up(records([most * 1.01]), exact, "float32")


def test_probes_that_the_port_lacks():
    """The errors of the probes that are there count: the largest before each is its input."""
    found = records([9e-6, 1e-4], TRACE[[0, 2]], names=("first", "third"))
    assert adds_up(found, golden(), "float32")
    assert not adds_up(found[1:], golden(), "float32")


KINDS = {
    "fault-elsewhere": (Local({}, "first"), "fault", "splice mode finds the fault at first"),
    "fault-here": (Local({}, "third"), "fault", ""),
    "accumulation": (
        NO_FAULT,
        "accumulation",
        "each layer alone is within the limit; errors add up (gain 9)",
    ),
}


@pytest.mark.parametrize(("local", "kind", "hint"), KINDS.values(), ids=KINDS)
def test_kind_with_splice_mode(local, kind, hint):
    """Splice mode decides: a fault if it found one, else errors that add up."""
    found = first_divergence(result(records([9e-6, 1e-5, 9e-5, 1e-6])), golden(), local)
    assert (found["probe"], found["after"], found["kind"]) == ("third", "second", kind)
    assert found["ratio"] == pytest.approx(9 / 1.3)
    assert found["gain"] == pytest.approx(9)
    assert found["hint"] == hint
    assert json.loads(json.dumps(found)) == found


def test_unexplained():
    """Layers that are right alone, and errors that grow by more than the reference's."""
    errors = [9e-6, 1e-5, 5e-4]
    found = first_divergence(result(records(errors)), golden(), NO_FAULT)
    assert (found["probe"], found["kind"]) == ("third", "unexplained")
    assert found["hint"].startswith("each layer alone is within the limit, but errors grow by more")
    assert "(gain 50)" in found["hint"]


def test_a_later_probe_must_add_up_too():
    """What is unexplained after the first divergence makes the whole trace unexplained."""
    found = first_divergence(result(records([9e-6, 1e-5, 9e-5, 1e-3])), golden(), NO_FAULT)
    assert (found["probe"], found["kind"]) == ("third", "unexplained")


@pytest.mark.parametrize(
    ("error", "kind"), [(0.5, "unexplained"), (math.nan, "fault")], ids=["large", "misshapen"]
)
def test_an_output_must_add_up_too(error, kind):
    """Right probes do not excuse an output; and nothing adds up to a wrong shape."""
    found = records([1e-6, 1e-6, 1e-6, 1e-6])
    found += records([error], [1e-5], kind="output", names=("sample",))
    local = Local(NO_FAULT.errors | {"sample": 1e-6}, None)
    first = first_divergence(result(found), golden(), local)
    assert (first["probe"], first["kind"]) == ("sample", kind)


def test_splice_mode_itself_finds_faults_only():
    """In splice mode nothing is inherited, and no gain is told."""
    found = first_divergence(result(records([9e-6, 1e-5, 9e-5]), "splice"), golden(), NO_FAULT)
    assert (found["kind"], found["after"]) == ("fault", "second")
    assert not {"gain", "inherited"} & found.keys()
    assert found["case"] == "unet/tiny/base[float32-cpu-sdpa-splice]"


@pytest.mark.parametrize(
    ("golden_", "local"), [(None, NO_FAULT), (golden(), None)], ids=["no-golden", "no-splice"]
)
def test_kind_without_splice_mode(golden_, local):
    """Without splice mode a jump is a fault, gradual growth is unexplained, and no gain is told."""
    grown, jumped = records([9e-6, 1.8e-5, 9e-5]), records([1e-6, 1e-6, 9e-4])
    first, second = (first_divergence(result(r), golden_, local) for r in (grown, jumped))
    assert (first["kind"], second["kind"]) == ("unexplained", "fault")
    assert first["hint"] == "the error grows gradually up to here"
    assert not {"gain", "inherited"} & {*first, *second}


INHERITED = {
    "all": (0.0, 1e-6, 1.0),
    "most": (6e-7, 1e-6, 0.8),
    "none": (1e-6, 1e-6, 0.0),
    "more-than-all": (2e-6, 1e-6, 0.0),
    "unknown": (None, 1e-6, None),
    "no-error": (1e-6, 0.0, None),
    "nan": (1e-6, math.nan, None),
    "inf": (1e-6, math.inf, None),
}


@pytest.mark.parametrize(("own", "error", "share"), INHERITED.values(), ids=INHERITED)
def test_inherited(own, error, share):
    """The share of an error that was inherited is what its own leaves of it, by squares."""
    local = Local({} if own is None else {"first": own}, None)
    assert inherited(records([error])[0], local) == (share and pytest.approx(share))


def test_nothing_enters_the_first_probe():
    """The gain at the first probe is infinite, and written as strict JSON."""
    found = first_divergence(result(records([9e-5])), golden(), NO_FAULT)
    assert found["gain"] == math.inf
    assert json.loads(json.dumps(plain(found), allow_nan=False))["gain"] == "inf"


def test_local_of_records():
    """Splice mode is remembered by each error, and by its first failing record."""
    found = records([1e-6, 1e-3, 1e-6, 1e-2])
    assert Local.of(found) == Local(
        dict(zip(NAMES, [1e-6, 1e-3, 1e-6, 1e-2], strict=True)), "second"
    )
    assert Local.of(found[:1]) == Local({"first": 1e-6}, None)
    assert Local.of([]) == Local({}, None)


def test_hints_come_in_order():
    """What splice mode says, then what the record says, then the usual cause."""
    (own,) = records([1e-3], names=("conv_in",))
    own.note = "2 of 9 values are not finite"
    found = first_divergence(result([own]), golden(), Local({}, "time_proj"))
    first, second, third = found["hint"].split("; ", 2)
    assert (first, second) == ("splice mode finds the fault at time_proj", own.note)
    assert "channel order" in third
    line = describe(found)
    assert line.startswith("first wrong at conv_in, ratio 333, limit 4: splice mode finds")


RIGHT = (2e-6, 2e-6, 2e-6, 2e-6)
GROWN = (9e-6, 1e-5, 9e-5, 1e-6)
MODES = {
    "accumulation": (RIGHT, GROWN, "accumulation", "each layer alone is within the limit; errors"),
    "unexplained": (RIGHT, (9e-6, 1e-5, 5e-4, 1e-6), "unexplained", "each layer alone is within"),
    "fault": ((2e-6, 1e-3, 2e-6, 2e-6), GROWN, "fault", "splice mode finds the fault at second"),
    "no-splice": (None, (9e-6, 1.5e-5, 9e-5, 1e-6), "unexplained", "the error grows gradually"),
}


@pytest.mark.parametrize(("local", "errors", "kind", "hint"), MODES.values(), ids=MODES)
def test_a_trace_is_explained_by_the_splice_run_before_it(
    fake, golden_copy, monkeypatch, local, errors, kind, hint
):
    """The runner remembers what each case's layers are worth where it ran, and judges by it."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    case = find_case("unet/tiny/quiet")
    values = Values({name: np.ones(1) for name in NAMES}, dict(load_golden(case).outputs))
    rows = judged_by(golden(), values)
    parts = ("probes", "shapes", "sketches", "norms", "max_abs", "noise", "splice_noise")
    own = replace(load_golden(case), **{part: getattr(rows, part) for part in parts})
    golden_copy.write(own)

    def answer(_, probes, given):
        moved = dict(zip(NAMES, local if given else errors, strict=True))
        sample = own.outputs["sample"].astype(np.float32)
        sample *= given["first"][0] if given else 1  # it is made of what is put in
        return {"sample": sample}, {name: np.array([1 + moved[name]]) for name in probes}

    offers = Hello("fake", "1", ("unet",), devices=("cpu", "gpu"))
    runner = Runner(fake(answer, offers), lambda *_: values)
    if local is not None:
        spliced = runner.run(case, Execution(mode="splice"))
        assert [r.err for r in spliced.records[:4]] == pytest.approx(local)
        assert [r.noise for r in spliced.records[:4]] == pytest.approx(OWN)
        assert (spliced.verdict == "fail") == (kind == "fault")
    traced = runner.run(case, Execution())
    first = traced.first_divergence
    assert (traced.verdict, first["probe"], first["kind"]) == ("fail", "third", kind)
    assert first["hint"].startswith(hint)
    assert hint in traced.message
    if local is not None:
        assert first["gain"] == pytest.approx(errors[2] / errors[1])
        assert first["inherited"] == pytest.approx(1, abs=1e-3)
    elsewhere = runner.run(case, Execution(device="gpu"))
    assert elsewhere.verdict == "fail"
    assert "gain" not in elsewhere.first_divergence
