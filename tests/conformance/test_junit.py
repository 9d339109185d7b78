"""The JUnit file: its shape, and what turns it red beside the cases."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from conformance.report.junit import write_junit
from conformance.report.run import read_run

ATTRIBUTES = {
    "testsuites": {"name"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message", "type"},
    "system-out": set(),
}
CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase"],
    "properties": ["property"],
    "testcase": ["skipped", "error", "failure", "system-out"],
}
"""What Jenkins' junit-10.xsd and Surefire's report schema both allow, in this order."""


@pytest.fixture
def suite(made_up):
    """Return a function that writes a run and returns the one suite of its JUnit file."""

    def read(lines, **facts) -> ET.Element:
        root = ET.parse(write_junit(read_run(made_up.write(lines, **facts)))).getroot()  # noqa: S314
        for element in root.iter():
            assert set(element.keys()) <= ATTRIBUTES[element.tag]
            allowed = CHILDREN.get(element.tag, [])
            places = [allowed.index(child.tag) for child in element]
            assert places == sorted(places)
        (found,) = root
        tests = found.findall("testcase")
        for attribute, tag in (("failures", "failure"), ("errors", "error")):
            assert int(found.get(attribute, "")) == sum(t.find(tag) is not None for t in tests)
        assert int(found.get("tests", "")) == len(tests)
        assert all(re.fullmatch(r"\d+\.\d{3}", test.get("time", "")) for test in tests)
        return found

    return read


def test_one_test_for_each_case(suite, made_up) -> None:
    """A case is one test case however many probes it has; a block of a case is a case."""
    probes = [{"name": f"p{i}", "kind": "probe", "verdict": "pass"} for i in range(50)]
    block = made_up.line(case="unet/tiny/base[float32-cpu-sdpa-splice]::mid_block")
    found = suite([made_up.line(probes=probes), block])
    assert [test.get("name") for test in found.findall("testcase")] == [
        "unet/tiny/base[float32-cpu-sdpa-trace]",
        "unet/tiny/base[float32-cpu-sdpa-splice]::mid_block",
    ]


CONTROL = {"port": "diffusers", "cases": 2, "failing": [], "moved": [], "changed": {}}
BASELINE = {"dir": "old", "worse": 0, "regressions": [], "ratchet": []}


def test_control_and_baseline_that_are_fine(suite, made_up) -> None:
    """They add nothing where there is nothing wrong with them."""
    found = suite([made_up.line()], control=CONTROL, baseline=BASELINE)
    assert found.get("tests") == "1"


@pytest.mark.parametrize(
    ("facts", "name", "expected"),
    [
        ({"control": CONTROL | {"failing": ["unet/tiny/base"], "changed": {"torch": ["1", "2"]}}},
         "control", ["unet/tiny/base", "torch 1 to 2"]),
        ({"control": CONTROL | {"moved": [{"text": "quiet got worse", "case": "x"}]}},
         "control", ["quiet got worse"]),
        ({"control": CONTROL | {"broke": [{"case": "unet/tiny/base", "message": "no memory"}]}},
         "control", ["unet/tiny/base: no memory"]),
        ({"baseline": BASELINE | {"worse": 1, "regressions": [
            {"case": "unet/tiny/base", "probe": "conv_in", "before": 1.0, "after": "nan"}]}},
         "baseline", ["unet/tiny/base conv_in: 1 to not a number"]),
    ],
    ids=["control-fails", "control-moved", "control-broke", "baseline"],
)  # fmt: skip
def test_control_and_baseline_that_are_bad(suite, made_up, facts, name, expected) -> None:
    """Each is one failing test case that names the cases and what changed."""
    found = suite([made_up.line()], verdict="nonconformant", **facts)
    tests = found.findall("testcase")
    assert [test.get("name") for test in tests[1:]] == [name]
    failure = tests[1].find("failure")
    assert failure is not None
    assert (failure.text or "").split("\n")[1:] == expected
    assert found.get("failures") == "1"


def test_a_baseline_with_which_nothing_was_compared(suite, made_up) -> None:
    """A check that was not made is an error, whatever the verdict."""
    found = suite([made_up.line()], baseline=BASELINE | {"cases": 0, "new": 1})
    (error,) = found.iter("error")
    assert "NOTHING COMPARED" in error.get("message", "")
    assert (found.get("errors"), found.get("failures")) == ("1", "0")


def test_a_missing_shard_is_named(suite, made_up) -> None:
    """Where no case explains an incomplete run, one of its own says why."""
    found = suite([made_up.line()], verdict="incomplete", missing_shards=["2/2"])
    (error,) = found.iter("error")
    assert "shard 2/2 is missing; merge again with it" in error.get("message", "")


def test_hostile_control(suite, made_up) -> None:
    """Whatever the summary holds there is text, or nothing."""
    bad = "<script>\x00\ud800]]>"
    for control in ([bad], bad, 7, {"port": bad, "failing": bad, "moved": {bad: 1}, "changed": 3}):
        suite([made_up.line()], control=control, baseline={"dir": [bad], "regressions": 5})
    facts = {"port": bad, "failing": [bad, {"case": bad}, None], "changed": {bad: bad}}
    found = suite([made_up.line()], control=facts)
    assert found.findall("testcase")[-1].get("name") == "control"
