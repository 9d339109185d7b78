"""Running cases against a port and judging what comes back."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from conformance import spec
from conformance.adapters.serve import RUN
from conformance.at_work import at_work
from conformance.case import Case
from conformance.contract import call, check_contract, require_unchanged
from conformance.divergence import Local, as_precision, describe, first_divergence
from conformance.environment import environment
from conformance.errors import PortError, RaisedError, SuiteError, UnsupportedError
from conformance.evidence.collect import Answer, Evidence
from conformance.execution import MEMORY, SDPA, STABILITY, Execution
from conformance.golden import SPLICE, Golden
from conformance.golden_files import drawn_inputs, load_golden
from conformance.headroom import facts as headroom_facts
from conformance.headroom import overflow_text
from conformance.judge import judge_outputs, judge_probes, token_lists, watching
from conformance.layout import NHWC, ChannelsLast, require_shapes
from conformance.offer import (
    refuse_island,
    require_fit,
    require_load,
    require_offer,
    supplied_embedding,
)
from conformance.port import EXEC, Arrays, Component, Port, greet
from conformance.precision import look, settings_on
from conformance.raised import traceback_of, where_raised
from conformance.recipe import SEED
from conformance.report.text import one_line, printable
from conformance.result import Result
from conformance.segments import ignores_values
from conformance.splicing import judge_spliced
from conformance.terms import explain_steps
from conformance.traces import Traces, Values, find_traces, have_oracle, judged_by

MESSAGE = 600
"""Longest message kept, in characters."""

TRACEBACK = 4000
"""Longest traceback kept, in characters."""


class Runner:
    """Runs cases on one port; keeps the component that was loaded last."""

    def __init__(self, port: Port, traces: Traces | None = None, port_spec: str = "") -> None:
        """Ask the port what it offers.

        Args:
            port: The port.
            traces: Gives splice mode its values; None to look for the oracle when they are needed.
            port_spec: The PORT argument that names it: another process makes it anew from that.
                Empty where nobody can.
        """
        self.port = port
        self.port_spec = port_spec
        self.hello = greet(port)
        self.asks_for_age = True
        self._traces = traces
        self._local: dict[str, Local] = {}
        self._deaf: dict[str, bool] = {}
        self._loaded: tuple[tuple[Any, ...], Component] | None = None
        self._live_age: Callable[[Case, Golden], str | None] | None = None
        self._evidence = Evidence(self.values)

    def run(self, case: Case, execution: Execution) -> Result:
        """Run one case and judge it. Never raises: what breaks is an `error` or a `skip`.

        Args:
            case: The case.
            execution: How to run it.

        Returns:
            The result.
        """
        start = time.perf_counter()
        try:
            with at_work():  # what a port prints is no part of the report
                result = self._run(case, execution)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a port may raise anything
            declined = type(error).__name__ == UnsupportedError.__name__  # a port's own, too
            verdict = "skip" if declined else "error"
            if declined or isinstance(error, SuiteError):
                message = one_line(error, MESSAGE)
            else:
                message = (
                    f"the port raised {type(error).__name__}: "
                    f"{one_line(error) or 'without a message'} ({where_raised(error)})"
                )
            result = Result(case, execution, verdict, message=message)
            if not declined:
                told = [traceback_of(error), *getattr(error, "__notes__", [])]
                result.traceback = printable("\n".join(filter(None, told)), TRACEBACK)
        result.seconds = time.perf_counter() - start
        return result

    def _run(self, case: Case, execution: Execution) -> Result:
        require_offer(self.hello, case, execution)
        if execution.mode in (*STABILITY, MEMORY):
            own = "memory.judge" if execution.mode == MEMORY else "stability"
            judge = importlib.import_module(f"conformance.{own}").judge
            judged: Result = judge(self, case, execution)
            return judged
        if case.refused:
            return self._expect_refusal(case, execution)
        return self._compared(case, execution)

    def _compared(self, case: Case, execution: Execution) -> Result:
        """Run a case and compare what comes back with the golden."""
        recorded = self.golden(case)
        golden = recorded.in_mode(execution.mode)
        reason = None if case.exact else golden.why_not_offered(execution.dtype)
        if reason is not None:
            raise UnsupportedError(reason)
        inputs, digests = drawn_inputs(case, golden)
        require_shapes(self.hello, case.component, inputs)
        if execution.mode == SPLICE:
            result = judge_spliced(self, case, execution, recorded, inputs)
            require_unchanged(case, inputs, digests)
            return result
        component = self.load(case, execution)
        supplied = supplied_embedding(self.hello, case, golden, execution, inputs)
        plain, _ = call(component, inputs, (), supplied)
        plain = {name: array.copy() for name, array in plain.items()}
        watched: Arrays = plain
        probes: Arrays = {}
        asked = golden.asked
        if self.shows_probes(execution) and asked:
            watched, probes = call(component, inputs, asked, supplied)
        require_unchanged(case, inputs, digests)
        check_contract(golden, plain, probes, execution.dtype)
        records = judge_probes(golden, probes, execution.dtype)
        refuse_island(self.hello, records, golden, execution)
        records += judge_outputs(golden, plain, execution.dtype)
        if not case.is_network:
            records.sort(key=lambda record: spec.place(case.component, record.name))
        result = Result(case, execution, "pass", records)
        if self.shows_probes(execution):
            result.missing = [name for name in asked if name not in probes]
        if case.is_scheduler:
            explain_steps(golden, inputs, plain, records)
        self.conclude(result, golden, Answer(golden, plain, probes))
        if case.exact:
            if result.verdict == "fail":
                result.detail = token_lists(golden, plain)
            return result
        finite = all(np.isfinite(array).all() for array in plain.values())
        seen = watching(plain, watched, golden, execution.dtype) if finite else ""
        result.message = "; ".join(text for text in (result.message, seen) if text)
        return result

    def golden(self, case: Case) -> Golden:
        """Return the golden of a case; on another seed, the oracle's values with its noise."""
        golden = load_golden(case)
        if case.seed == SEED or case.exact:
            return golden
        return judged_by(golden, self.values(case, golden))

    def values(self, case: Case, golden: Golden) -> Values:
        """Return what the oracle computes in a case, whole."""
        self._traces = self._traces or find_traces()
        return self._traces(case, golden)

    def keep_local(self, case: Case, execution: Execution, local: Local) -> None:
        """Remember what splicing a case found: a trace of it is explained by that."""
        self._local[_without_mode(case, execution)] = local

    def is_deaf(
        self,
        component: Component,
        case: Case,
        inputs: Arrays,
        recorded: Golden,
        given: Arrays,
        outputs: Arrays,
    ) -> bool:
        """Say whether a component of the port ignores values; each is asked once."""
        if case.component not in self._deaf:
            self._deaf[case.component] = ignores_values(
                component, inputs, recorded.asked, given, outputs
            )
        return self._deaf[case.component]

    def _expect_refusal(self, case: Case, execution: Execution) -> Result:
        """Run a case for which the reference has no answer: a port passes if it declines."""
        component = self.load(case, execution)
        try:
            call(component, case.inputs(), (), None)
        except (UnsupportedError, RaisedError) as error:
            return Result(case, execution, "pass", message=f"refused: {one_line(error, MESSAGE)}")
        except SuiteError:
            raise
        except Exception as error:  # noqa: BLE001 - the reference raises an IndexError
            text = f"refused with {type(error).__name__}: {one_line(error, MESSAGE)}"
            return Result(case, execution, "pass", message=text)
        message = f"the answer cannot be judged: {case.refused}; better to refuse it (ValueError)"
        raise UnsupportedError(message)

    def load(self, case: Case, execution: Execution) -> Component:
        """Load the component of a case, or return the one that was loaded last."""
        how = (execution.dtype, execution.device, execution.backend)
        key = (case.component, case.variant, *how, case.seed)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # the old weights go before the new ones come
            component = self._load_from_port(case, execution)
            if not callable(getattr(component, "run", None)):
                message = (
                    f"load() of the port returned {type(component).__name__}: it needs run({RUN})"
                )
                raise PortError(message)
            require_fit(component.run, "run", RUN)
            if self.hello.layout == NHWC:
                component = ChannelsLast(component)
            self._loaded = (key, component)
        return self._loaded[1]

    def _load_from_port(self, case: Case, execution: Execution) -> Component:
        """Let the port build the component; only other backends than its own are named to it."""
        dtype, device, backend = execution.dtype, execution.device, execution.backend
        own = (case.component, case.variant, case.weights(), dtype, device)
        load: Callable[..., Component] = self.port.load
        if backend in {"", SDPA}:
            require_load(load)
            return load(*own)
        require_load(load, backend)
        return load(*own, backend=backend)

    def shows_probes(self, execution: Execution) -> bool:
        """Say whether the port hands out probes when it is run so."""
        return self.hello.probes and execution.shows_probes

    def release(self) -> None:
        """Let go of the component that was loaded last."""
        self._loaded = None

    def conclude(self, result: Result, golden: Golden, answer: Answer) -> None:
        """Weigh the records of a result, and keep what a report shows beside them.

        Args:
            result: Gets its verdict, message, first divergence and evidence.
            golden: Of the case, as recorded.
            answer: What the port answered.
        """
        result.headroom = headroom_facts(result.records, golden, result.execution.dtype)
        self._weigh(result, golden, answer)
        self._keep_evidence(result, answer)

    def _weigh(self, result: Result, golden: Golden, answer: Answer) -> None:
        """Set verdict, message and first divergence; tell an aged golden from a wrong port."""
        verdicts = {record.verdict for record in result.records}
        if "fail" not in verdicts:
            result.verdict = "warn" if "warn" in verdicts else "pass"
            return
        try:
            aged = self._golden_age(result.case, golden)
        except Exception as error:  # noqa: BLE001 - an oracle that breaks excuses no port
            aged = None
            result.message = f"; the oracle could not be asked: {one_line(error)}"
        if aged is not None:
            result.verdict = "error"
            result.message = f"{result.case.id}: the golden has aged: {aged}; record it again"
            return
        result.verdict = "fail"
        local = self._local.get(_without_mode(result.case, result.execution))
        found = first_divergence(result, golden, local)
        inherits = local is not None and result.execution.mode != SPLICE
        result.rounding = local.rounding if local and inherits else look(result, answer)
        if result.rounding is not None:
            found = as_precision(
                found, result.rounding, result.execution.dtype, self._lowered(result)
            )
        result.first_divergence = found
        overflow = overflow_text(result.records, result.execution.dtype)
        result.message = "; ".join(t for t in (describe(found), overflow) if t) + result.message

    def _lowered(self, result: Result) -> list[str]:
        """Return the settings, as far as they are known, that make float32 less than that."""
        apart = self.port_spec.startswith(EXEC)
        facts = self.hello.details | ({} if apart else environment())
        return settings_on(facts, result.execution.device)

    def _keep_evidence(self, result: Result, answer: Answer) -> None:
        """Keep what a report shows of a failure or a picture; not of ports wrong on purpose."""
        if self.asks_for_age and (result.verdict == "fail" or result.case.is_pipeline):
            local = self._local.get(_without_mode(result.case, result.execution))
            explained = local is not None and local.fault is not None
            answer = replace(answer, explained=explained)
            result.evidence = partial(self._evidence.of, answer=answer)

    def _golden_age(self, case: Case, golden: Golden) -> str | None:
        """Ask the oracle, where it is installed, whether a failing golden still holds."""
        if case.seed != SEED or not self.asks_for_age or not have_oracle():
            return None
        if self._live_age is None:
            live = importlib.import_module("conformance.recording.live").LiveTraces
            own = self._traces if isinstance(self._traces, live) else None
            self._live_age = importlib.import_module("conformance.recording.verify").LiveAge(own)
        return self._live_age(case, golden)


def _without_mode(case: Case, execution: Execution) -> str:
    """Name a case and how it is run, the mode left out: both modes of it share the name."""
    return replace(execution, mode="").item_id(case)
