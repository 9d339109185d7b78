"""JUnit XML for CI: one test case per case of the run."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from conformance.report.gates import Gate, gates
from conformance.report.records import Case, Divergence, Summary
from conformance.report.run import Run
from conformance.report.text import case_name, number_text, one_line
from conformance.report.words import headline, measured, rerun_command, sentence
from conformance.run_folder import write_whole

_OUTCOMES = {
    "fail": "failure",
    "xpass": "failure",
    "error": "error",
    "skip": "skipped",
    "xfail": "skipped",
}
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def write_junit(run: Run) -> Path:
    """Write `junit.xml` into a run's folder.

    Args:
        run: The run.

    Returns:
        The path of the file written. A list of expected failures that does not match, a reference
        that is wrong in the same job, and a regression against an earlier run are a failing test
        case each: `xfails`, `control`, `baseline`; the last is an error where nothing could be
        compared. Where the verdict is bad and no case says why (a run cut short), one named
        `verdict` says so: a bad run never looks green.
    """
    suite = Element("testsuite", name="sd1-conformance")
    _add_properties(suite, run)
    outcomes = Counter(_add_case(suite, case, run.summary) for case in run.cases)
    outcomes[_add_problems(suite, run.summary)] += 1
    outcomes.update(_add_gate(suite, gate) for gate in gates(run.record))
    outcomes[_add_verdict(suite, run, outcomes)] += 1
    totals = {
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(outcomes["failure"]),
        "errors": str(outcomes["error"]),
        "skipped": str(outcomes["skipped"]),
        "time": _seconds(run.summary.seconds),
    }
    suite.attrib.update(totals)
    if started := _TIMESTAMP.match(run.started):
        suite.set("timestamp", started.group())
    suites = Element("testsuites", name="sd1-conformance")
    suites.append(suite)
    indent(suites)
    path = run.out / "junit.xml"
    write_whole(path, [tostring(suites, encoding="utf-8", xml_declaration=True).decode()])
    return path


def _add_properties(suite: Element, run: Run) -> None:
    summary = run.summary
    facts = {
        "port": f"{summary.port} {summary.port_version}".strip(),
        "scope": summary.scope,
        "verdict": summary.verdict,
        "finished": str(summary.finished).lower(),
        "limit": number_text(summary.limit),
        "suite": summary.suite,
    }
    properties = SubElement(suite, "properties")
    for name, value in facts.items():
        SubElement(properties, "property", name=name, value=value)


def _add_case(suite: Element, case: Case, summary: Summary) -> str:
    """Add one test case and return its outcome: an element's name, empty for a pass."""
    classname = f"{case.component}.{case.variant}"
    seconds = _seconds(case.seconds)
    test = SubElement(suite, "testcase", classname=classname, name=case.case, time=seconds)
    outcome = _OUTCOMES.get(case.verdict, "")
    if outcome:
        message = one_line(_message(case), 600)
        element = SubElement(test, outcome, type=case.verdict, message=message)
        if outcome != "skipped":
            rerun = rerun_command(summary.port_spec, case.case, summary.options)
            element.text = "\n".join(
                filter(None, [message, case.message, case.hunts, case.detail, rerun])
            )
    elif case.verdict == "warn":
        SubElement(test, "system-out").text = f"warn: {_message(case)}"
    return outcome


def _add_problems(suite: Element, summary: Summary) -> str:
    """Add a test case for what is wrong with the expected failures, and return its outcome."""
    if summary.expected is None or not summary.expected.problems:
        return ""
    test = SubElement(suite, "testcase", classname="run", name="xfails", time="0.000")
    text = "; ".join(summary.expected.problems)
    message = one_line(f"{summary.expected.file}: {text}", 600)
    element = SubElement(test, "failure", type="xfails", message=message)
    element.text = "\n".join(summary.expected.problems)
    return "failure"


def _add_gate(suite: Element, gate: Gate) -> str:
    """Add a test case for a control or baseline that is bad, and return its outcome."""
    if not gate.bad:
        return ""
    test = SubElement(suite, "testcase", classname="run", name=gate.name, time="0.000")
    message = one_line(gate.text, 600)
    outcome = "error" if gate.unknown else "failure"
    element = SubElement(test, outcome, type=gate.name, message=message)
    element.text = "\n".join([message, *gate.lines])
    return outcome


def _add_verdict(suite: Element, run: Run, outcomes: Counter[str]) -> str:
    """Add a test case for a bad verdict that no case explains, and return its outcome."""
    summary = run.summary
    explained = outcomes["failure"] or (outcomes["error"] and summary.verdict == "incomplete")
    if summary.finished and (summary.verdict == "conformant" or explained):
        return ""
    wrong = summary.finished and summary.verdict == "nonconformant"
    outcome = "failure" if wrong else "error"
    test = SubElement(suite, "testcase", classname="run", name="verdict", time="0.000")
    message = f"{headline(summary)}: {sentence(summary)}"
    SubElement(test, outcome, type=summary.verdict, message=message)
    return outcome


def _message(case: Case) -> str:
    if case.verdict == "xfail":
        return f"expected failure: {case.message}"
    if case.verdict == "xpass":
        return f"passed, but is listed as an expected failure: {case.message}"
    if case.divergence:
        return divergence_text(case.divergence)
    return case.message or f"{case_name(case.case)}: ratio {number_text(case.ratio)}"


def divergence_text(first: Divergence) -> str:
    """Write a first divergence as one line."""
    after = f"after {first.after}" if first.after else "no good probe before it"
    text = f"first divergence at {first.probe} ({after}): {measured(first)}, {first.kind}"
    return f"{text}. {first.hint}" if first.hint and first.hint != measured(first) else text


def _seconds(value: float | None) -> str:
    """Write a time for JUnit, whose readers know no infinity."""
    return f"{value:.3f}" if value is not None and 0 <= value < float("inf") else "0.000"
