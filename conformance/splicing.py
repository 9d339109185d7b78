"""Splice mode: a run in which every probe is set right, so that each error is a layer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance import spec
from conformance.contract import call, check_contract
from conformance.divergence import Local
from conformance.errors import UnsupportedError
from conformance.evidence.collect import Answer
from conformance.judge import judge_outputs, judge_probes
from conformance.result import Result
from conformance.segments import spliced
from conformance.tensors import rounded
from conformance.traces import judged_by

if TYPE_CHECKING:
    from conformance.case import Case
    from conformance.execution import Execution
    from conformance.golden import Golden
    from conformance.port import Arrays
    from conformance.runner import Runner


def judge_spliced(
    runner: Runner, case: Case, execution: Execution, recorded: Golden, inputs: Arrays
) -> Result:
    """Run a case once, every probe overwritten by the oracle's value, and judge what is left.

    Args:
        runner: Holds the port.
        case: The case.
        execution: How to run it.
        recorded: The golden, as recorded.
        inputs: Of the case.

    Returns:
        The result.

    Raises:
        UnsupportedError: The port hands out no probes, or does not overwrite them.
    """
    name = runner.hello.name
    if not execution.shows_probes:
        message = f"backend {execution.backend} shows no probes: splice mode needs them"
        raise UnsupportedError(message)
    if not (runner.hello.probes and runner.hello.replace):
        message = f"{name} has no `replace`: splice mode needs it"
        raise UnsupportedError(message)
    values = runner.values(case, recorded)
    component = runner.load(case, execution)
    given = rounded(values.probes, execution.dtype)
    outputs, probes = call(component, inputs, recorded.asked, given)
    if not probes or runner.is_deaf(component, case, inputs, recorded, given, outputs):
        what = "overwrites none of its probes" if probes else "hands out no probe"
        flag = "replace" if probes else "probes"
        message = f"{name} {what}: let hello() say {flag}: false; no splice mode"
        raise UnsupportedError(message)
    golden = judged_by(spliced(case, recorded, probes), values)
    check_contract(golden, outputs, probes, execution.dtype)
    records = judge_probes(golden, probes, execution.dtype)
    records += judge_outputs(golden, outputs, execution.dtype)
    if not case.is_network:
        records.sort(key=lambda record: spec.place(case.component, record.name))
    result = Result(case, execution, "pass", records)
    result.missing = [name for name in recorded.asked if name not in probes]
    runner.conclude(result, recorded, Answer(golden, outputs, probes, values))
    runner.keep_local(case, execution, Local.of(records, result.rounding))
    return result
