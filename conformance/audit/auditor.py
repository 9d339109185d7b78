"""Running an audit: every question asked of every case."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.audit.measure import check, measured_outputs, worst_output
from conformance.audit.policy import Policy
from conformance.audit.profile import Profile
from conformance.audit.profiling import take_profile
from conformance.audit.report import Kept, Report
from conformance.audit.samples import take_samples
from conformance.audit.search import Search
from conformance.audit.yardstick import Yardstick, find_oracle, yardstick
from conformance.contract import call
from conformance.environment import environment
from conformance.errors import UnsupportedError, UsageError
from conformance.execution import Execution
from conformance.offer import require_offer
from conformance.requirements import ORACLE, adding
from conformance.traces import find_traces

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.audit.measure import Output
    from conformance.audit.mixed_torch import Mixed
    from conformance.case import Case
    from conformance.port import Component
    from conformance.runner import Runner

Say = Callable[[str], None]


@dataclass(frozen=True)
class Questions:
    """What an audit asks beside the profile.

    Attributes:
        keep: Layers to keep in float32; None for none.
        target: Ratio for which the fewest layers in float32 are searched.
        policy: Arithmetics of layers; None for one arithmetic.
        samples: How many inputs to draw.
        attention: `file.py:function`; empty for torch's own.
        traces: Folder of trace packs; None for the oracle.
    """

    keep: Policy | None = None
    target: float | None = None
    policy: Policy | None = None
    samples: int = 0
    attention: str = ""
    traces: Path | None = None

    @property
    def by_layer(self) -> bool:
        """Whether layers are to be computed in arithmetics of their own."""
        return bool(self.policy or self.keep or self.target is not None)


class Auditor:
    """Audits one port in one arithmetic."""

    def __init__(
        self, runner: Runner, execution: Execution, questions: Questions, say: Say
    ) -> None:
        """Keep what is to be asked, and how progress is told.

        Raises:
            UsageError: Samples are asked for, and there is no oracle.
        """
        self.runner = runner
        self.execution = execution
        self.questions = questions
        self.say = say
        self.traces = find_traces(questions.traces)
        self.oracle = None if questions.traces else find_oracle()
        if questions.samples and self.oracle is None:
            message = f"--samples needs the oracle ({adding(ORACLE)}), no packs"
            raise UsageError(message)
        hello = runner.hello
        self.report = Report(hello.name, hello.version, execution.dtype, execution.device)
        if questions.policy:
            self.report.policy = dict(questions.policy.rules)

    def run(self, cases: list[Case]) -> Report:
        """Audit cases of networks, those of one component after another.

        Raises:
            SuiteError: The port broke its contract.
        """
        start = time.perf_counter()
        asked = self.questions.attention
        swapping: Any = importlib.import_module("conformance.audit.swap_torch") if asked else None
        with redirect_stdout(sys.stderr):  # what a port prints is no part of the report
            function = swapping.ready(asked, self.execution) if asked else None
            for case in cases:
                try:
                    self._audit(case)
                except UnsupportedError as error:
                    self.report.skipped[case.id] = str(error)
            if asked:
                self.report.attention = swapping.audit_attention(
                    asked, function, cases, self.execution, self._yardstick, self.say
                )
        self.report.environment = environment()
        if "torch" in sys.modules:
            torch_side = importlib.import_module("conformance.audit.kernels_torch")
            self.report.switches = torch_side.switches(self.execution.device)
        self.report.seconds = time.perf_counter() - start
        return self.report

    def _audit(self, case: Case) -> None:
        require_offer(self.runner.hello, case, self.execution)
        self.say(f"{case.id}: truth and noise")
        units = self._yardstick(case)
        mixed = self._mixed(case) if self.questions.by_layer else None
        with self._component(case, mixed) as component:
            self.say(f"{case.id}: profile")
            profile = take_profile(self.runner, component, case, self.execution, units, self.oracle)
            self.report.profiles.append(profile)
            if case.component not in self.report.kernels and hasattr(component, "module"):
                torch_side = importlib.import_module("conformance.audit.kernels_torch")
                self.report.kernels[case.component] = torch_side.kernels(component, case.inputs())
            if self.questions.samples:
                self._sample(case, component, units)
        if mixed is not None:
            self._widen(case, mixed, profile, units)

    def _yardstick(self, case: Case) -> Yardstick:
        return yardstick(case, self.execution.dtype, self.traces, self.oracle)

    @contextmanager
    def _component(self, case: Case, mixed: Mixed | None) -> Iterator[Component]:
        """Load the component of a case, its layers in the arithmetics of the policy."""
        policy = self.questions.policy
        if policy is None or mixed is None:
            yield self.runner.load(case, self.execution)
            return
        with mixed.computing(policy.of(mixed.layers)) as component:
            yield component

    def _mixed(self, case: Case) -> Mixed:
        torch_side: Any = importlib.import_module("conformance.audit.mixed_torch")
        mixed: Mixed = torch_side.Mixed.of(
            self.runner.port, case, self.execution.dtype, self.execution.device
        )
        return mixed

    def _sample(self, case: Case, component: Component, units: Yardstick) -> None:
        if self.oracle is None:
            return
        self.say(f"{case.id}: {self.questions.samples} samples")
        self.report.samples.append(
            take_samples(
                component,
                case,
                self.execution.dtype,
                self.questions.samples,
                units,
                self.oracle,
            )
        )

    def _widen(self, case: Case, mixed: Mixed, profile: Profile, units: Yardstick) -> None:
        """Measure what layers in float32 gain."""
        policy = self.questions.policy
        own = policy.of(mixed.layers) if policy else {}

        def outputs(layers: frozenset[str]) -> list[Output]:
            with mixed.computing({**own, **dict.fromkeys(layers, "float32")}) as component:
                found, _ = call(component, case.inputs(), (), None)
            check(units.golden, found, {}, self.execution.dtype)
            return measured_outputs(units.golden, units.values, found, self.execution.dtype)

        if self.questions.keep:
            layers = list(self.questions.keep.of(mixed.layers))
            self.say(f"{case.id}: {len(layers)} layers in float32")
            after = outputs(frozenset(layers))
            kept = Kept(case.id, layers, len(mixed.layers), profile.outputs, after)
            self.report.kept.append(kept)
        if self.questions.target is not None:

            def ratio(layers: frozenset[str]) -> float:
                found = worst_output(outputs(layers)).ratio
                self.say(f"{case.id}: {len(layers)} layers in float32: ratio {found:.3g}")
                return found

            search = Search(ratio, self.questions.target)
            self.report.targets[case.id] = search.run(profile.by_cost(list(mixed.layers)))
