"""Running cases against a port and judging what comes back."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from conformance import spec, tolerance
from conformance.case import Case
from conformance.compare import Record
from conformance.contract import call, check_contract, require_unchanged, where_raised
from conformance.divergence import Local, describe, first_divergence
from conformance.errors import PortError, RaisedError, SuiteError, UnsupportedError
from conformance.evidence.collect import Answer, Evidence
from conformance.execution import Execution
from conformance.golden import SPLICE, Golden
from conformance.golden_files import drawn_inputs, load_golden
from conformance.judge import (
    ISLAND,
    TIME_PROJ,
    judge_outputs,
    judge_probes,
    time_proj_values,
    token_lists,
    watching,
)
from conformance.layout import NHWC, ChannelsLast, require_shapes
from conformance.port import Arrays, Component, Port, greet
from conformance.recipe import SEED
from conformance.report.text import one_line
from conformance.segments import ignores_values, spliced
from conformance.tensors import rounded
from conformance.terms import explain_steps
from conformance.traces import Traces, Values, find_traces, judged_by
from conformance.trajectory import trajectory

MESSAGE = 600
"""Longest message kept, in characters."""


@dataclass
class Result:
    """What came of one case.

    Attributes:
        case: The case.
        execution: How it was run.
        verdict: `pass`, `warn`, `fail`, `error` or `skip`.
        records: Judged probes in execution order, then outputs.
        message: Why, in one line.
        first_divergence: The first failing record, as in summary.json.
        seconds: Wall time.
        detail: What a reader wants to see below the message, in several lines.
        block: The named block that this is about; empty for the whole case.
        missing: Probes that a port that has some was asked for and did not hand out.
        evidence: Makes what a report shows beside the numbers; None where there is nothing.
    """

    case: Case
    execution: Execution
    verdict: str
    records: list[Record] = field(default_factory=list)
    message: str = ""
    first_divergence: dict[str, Any] | None = None
    seconds: float = 0.0
    detail: str = ""
    block: str = ""
    missing: list[str] = field(default_factory=list)
    evidence: Callable[[Result], dict[str, Any]] | None = None

    @property
    def item_id(self) -> str:
        """Return the id of the item of the matrix."""
        own = self.execution.item_id(self.case)
        return f"{own}::{self.block}" if self.block else own

    @property
    def worst(self) -> Record | None:
        """Return the record with the worst ratio."""
        return max(self.records, key=lambda r: tolerance.badness(r.ratio), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the case line of results.jsonl, its evidence not yet in files."""
        worst = self.worst
        evidence = self.evidence(self) if self.evidence is not None else {}
        return {
            "type": "case",
            "case": self.item_id,
            "component": self.case.component,
            "variant": self.case.variant.name,
            "scenario": self.case.scenario.name,
            "dtype": self.execution.dtype,
            "device": self.execution.device,
            "backend": self.execution.backend,
            "mode": self.execution.mode,
            "verdict": self.verdict,
            "ratio": worst.ratio if worst else None,
            "worst_probe": worst.name if worst else None,
            "first_divergence": self.first_divergence,
            "seconds": round(self.seconds, 3),
            "message": self.message,
            "detail": self.detail,
            "hunts": self.case.scenario.hunts,
            "missing": self.missing,
            **({"trajectory": trajectory(self.records)} if self.case.is_pipeline else {}),
            **({"evidence": evidence} if evidence else {}),
            "probes": [record.as_json() for record in self.records],
        }


class Runner:
    """Runs cases on one port; keeps the component that was loaded last."""

    def __init__(self, port: Port, traces: Traces | None = None) -> None:
        """Ask the port what it offers.

        Args:
            port: The port.
            traces: Gives splice mode its values; None to look for the oracle when they are needed.
        """
        self.port = port
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
            with redirect_stdout(sys.stderr):  # what a port prints is no part of the report
                result = self._run(case, execution)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a port may raise anything
            declined = type(error).__name__ == UnsupportedError.__name__  # a port's own, too
            verdict = "skip" if declined else "error"
            if declined or isinstance(error, SuiteError):
                message = one_line(error, MESSAGE)
            else:
                message = (
                    f"the port raised {type(error).__name__}: {one_line(error)} "
                    f"({where_raised(error)})"
                )
            result = Result(case, execution, verdict, message=message)
        result.seconds = time.perf_counter() - start
        return result

    def _run(self, case: Case, execution: Execution) -> Result:
        self._require_offer(case, execution)
        if case.refused:
            return self._expect_refusal(case, execution)
        recorded = self.golden(case)
        golden = recorded.in_mode(execution.mode)
        reason = None if case.exact else golden.why_not_offered(execution.dtype)
        if reason is not None:
            raise UnsupportedError(reason)
        inputs, digests = drawn_inputs(case, golden)
        require_shapes(self.hello, case.component, inputs)
        if execution.mode == SPLICE:
            result = self._run_spliced(case, execution, recorded, inputs)
            require_unchanged(case, inputs, digests)
            return result
        component = self.load(case, execution)
        supplied = self._supply(case, golden, execution, inputs)
        plain, _ = call(component, inputs, (), supplied)
        plain = {name: array.copy() for name, array in plain.items()}
        watched: Arrays = plain
        probes: Arrays = {}
        asked = golden.asked
        if self.hello.probes and asked:
            watched, probes = call(component, inputs, asked, supplied)
        require_unchanged(case, inputs, digests)
        check_contract(golden, plain, probes, execution.dtype)
        records = judge_probes(golden, probes, execution.dtype)
        self._refuse_island(records, golden, execution)
        records += judge_outputs(golden, plain, execution.dtype)
        if not case.is_network:
            records.sort(key=lambda record: spec.place(case.component, record.name))
        result = Result(case, execution, "pass", records)
        if self.hello.probes:
            result.missing = [name for name in asked if name not in probes]
        if case.is_scheduler:
            explain_steps(golden, inputs, plain, records)
        self._conclude(result, golden)
        self._keep_evidence(result, Answer(golden, plain, probes))
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

    def _run_spliced(
        self, case: Case, execution: Execution, recorded: Golden, inputs: Arrays
    ) -> Result:
        """Run once, every probe overwritten by the oracle: each error is the layer's own."""
        if not (self.hello.probes and self.hello.replace):
            message = f"{self.hello.name} has no `replace`: splice mode needs it"
            raise UnsupportedError(message)
        values = self.values(case, recorded)
        component = self.load(case, execution)
        given = rounded(values.probes, execution.dtype)
        outputs, probes = call(component, inputs, recorded.asked, given)
        if not probes or self._is_deaf(component, case, inputs, recorded, given, outputs):
            what = "overwrites none of its probes" if probes else "hands out no probe"
            flag = "replace" if probes else "probes"
            message = f"{self.hello.name} {what}: let hello() say {flag}: false; no splice mode"
            raise UnsupportedError(message)
        golden = judged_by(spliced(case, recorded, probes), values)
        check_contract(golden, outputs, probes, execution.dtype)
        records = judge_probes(golden, probes, execution.dtype)
        records += judge_outputs(golden, outputs, execution.dtype)
        if not case.is_network:
            records.sort(key=lambda record: spec.place(case.component, record.name))
        result = Result(case, execution, "pass", records)
        result.missing = [name for name in recorded.asked if name not in probes]
        self._conclude(result, recorded)
        self._keep_evidence(result, Answer(golden, outputs, probes, values))
        self._local[_without_mode(case, execution)] = Local.of(records)
        return result

    def _is_deaf(
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

    def _require_offer(self, case: Case, execution: Execution) -> None:
        needs = [("component", case.component, self.hello.components)]
        if not case.exact:
            needs += [
                ("arithmetic", execution.dtype, self.hello.arithmetics),
                ("device", execution.device, self.hello.devices),
            ]
        for kind, wanted, offered in needs:
            if wanted not in offered:
                message = f"{self.hello.name} does not offer {kind} {wanted}"
                raise UnsupportedError(message)
        variant = case.variant.name
        if not self.hello.offers_variant(variant):
            message = f"{self.hello.name} does not offer variant {variant}"
            raise UnsupportedError(message)

    def load(self, case: Case, execution: Execution) -> Component:
        """Load the component of a case, or return the one that was loaded last."""
        key = (case.component, case.variant, execution.dtype, execution.device, case.seed)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # the old weights go before the new ones come
            component = self.port.load(
                case.component, case.variant, case.weights(), execution.dtype, execution.device
            )
            if not callable(getattr(component, "run", None)):
                message = (
                    f"load() of the port returned {type(component).__name__}: "
                    "it needs run(inputs, probes, replace)"
                )
                raise PortError(message)
            if self.hello.layout == NHWC:
                component = ChannelsLast(component)
            self._loaded = (key, component)
        return self._loaded[1]

    def release(self) -> None:
        """Let go of the component that was loaded last."""
        self._loaded = None

    def _supply(
        self, case: Case, golden: Golden, execution: Execution, inputs: Arrays
    ) -> Arrays | None:
        """In float64 the timestep embedding is supplied, so that a float32 island stays one."""
        if execution.dtype != "float64" or TIME_PROJ not in golden.probes or not self.hello.replace:
            return None
        return {TIME_PROJ: time_proj_values(case, inputs)}

    def _refuse_island(self, records: list[Record], golden: Golden, execution: Execution) -> None:
        """Without `replace`, a float32 timestep embedding would spoil everything after it."""
        if execution.dtype != "float64" or TIME_PROJ not in golden.probes or self.hello.replace:
            return
        own = next((record for record in records if record.name == TIME_PROJ), None)
        if own is None or own.note == ISLAND:
            message = (
                f"{self.hello.name} {'computes' if own else 'may compute'} its timestep embedding "
                "in float32 and has no `replace`: float64 would judge that alone"
            )
            raise UnsupportedError(message)

    def _conclude(self, result: Result, golden: Golden) -> None:
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
        result.first_divergence = first_divergence(result, golden, local)
        result.message = describe(result.first_divergence) + result.message

    def _keep_evidence(self, result: Result, answer: Answer) -> None:
        """Keep what a report shows of a failure or a picture; not of ports wrong on purpose."""
        if self.asks_for_age and (result.verdict == "fail" or result.case.is_pipeline):
            local = self._local.get(_without_mode(result.case, result.execution))
            explained = local is not None and local.fault is not None
            answer = replace(answer, explained=explained)
            result.evidence = partial(self._evidence.of, answer=answer)

    def _golden_age(self, case: Case, golden: Golden) -> str | None:
        """Ask the oracle, where it is installed, whether a failing golden still holds."""
        if not (importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch")):
            return None
        if case.seed != SEED or not self.asks_for_age:
            return None
        if self._live_age is None:
            live = importlib.import_module("conformance.live").LiveTraces
            own = self._traces if isinstance(self._traces, live) else None
            self._live_age = importlib.import_module("conformance.verify").LiveAge(own)
        return self._live_age(case, golden)


def _without_mode(case: Case, execution: Execution) -> str:
    """Name a case and how it is run, the mode left out: both modes of it share the name."""
    return replace(execution, mode="").item_id(case)
