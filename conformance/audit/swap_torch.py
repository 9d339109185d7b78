"""A user's attention judged: alone, and in sd1_impl and the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from conformance.adapters.torch_module import DTYPES
from conformance.audit.attention_table_torch import SIZES, drawn, table
from conformance.audit.attention_torch import Function, Swapped, answer, load_attention
from conformance.audit.measure import check, measured_outputs, worst_output
from conformance.audit.report import Attention, Swap
from conformance.audit.yardstick import Yardstick
from conformance.case import Case
from conformance.contract import call
from conformance.errors import PortError, SuiteError, UnsupportedError, UsageError
from conformance.execution import Execution
from conformance.port import BUILTIN, resolve
from conformance.runner import Runner


def ready(spec: str, execution: Execution) -> Function:
    """Load an attention and ask it the simplest question, before anything is measured.

    Args:
        spec: `file.py:function`.
        execution: Arithmetic and device.

    Raises:
        UsageError: There is no such function, it gives no answer, or the arithmetic is no dtype.
    """
    function = load_attention(spec)
    if execution.dtype not in DTYPES:
        message = f"--attention is measured in a dtype: {', '.join(DTYPES)}, not {execution.dtype}"
        raise UsageError(message)
    simple = drawn("unit", SIZES[0], 64, causal=False, device=execution.device)
    try:
        answer(function, *(t.to(DTYPES[execution.dtype]) for t in simple), causal=False)
    except PortError as error:
        message = f"--attention {spec}: {error}"
        raise UsageError(message) from error
    return function


def audit_attention(
    name: str,
    function: Function,
    cases: list[Case],
    execution: Execution,
    units: Callable[[Case], Yardstick],
    say: Callable[[str], None],
) -> Attention:
    """Judge an attention.

    Args:
        name: As the user gave it.
        function: What `ready` returned.
        cases: Those of the audit.
        execution: Arithmetic and device.
        units: Gives truth and noise of a case.
        say: Told each step.

    Returns:
        The table, and the components with it.
    """
    say("the attention alone")
    cells = [asdict(cell) for cell in table(function, execution.dtype, execution.device)]
    found = Attention(name, cells)
    for port in BUILTIN:
        runner = Runner(resolve(port))
        for case in cases:
            say(f"{case.id}: {port} with it")
            try:
                found.swaps.append(_swap(runner, function, case, execution, units(case)))
            except UnsupportedError as error:
                say(f"{case.id}: {port}: {error}")
        runner.release()
    return found


def _swap(
    runner: Runner,
    function: Function,
    case: Case,
    execution: Execution,
    units: Yardstick,
) -> Swap:
    """Run a component with torch's attention and with the user's."""
    golden, values, dtype = units.golden, units.values, execution.dtype
    component = runner.load(case, execution)
    plain, _ = call(component, case.inputs(), (), None)
    before = measured_outputs(golden, values, plain, dtype)
    swapped = Swapped(function)
    try:
        with swapped:
            outputs, _ = call(component, case.inputs(), (), None)
        check(golden, outputs, {}, dtype)
        after = measured_outputs(golden, values, outputs, dtype)
    except UnsupportedError:
        raise
    except SuiteError as error:
        calls, text = swapped.calls, str(error)
        return Swap(runner.hello.name, case.id, before, [], calls, "fail", text)
    verdict = worst_output(after).verdict
    return Swap(runner.hello.name, case.id, before, after, swapped.calls, verdict)
