"""What a port or a mutant answers in one case: where two differ, and whether they agree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from conformance import spec
from conformance.adapters import sd1_impl
from conformance.case import Case
from conformance.compare import Record
from conformance.execution import Execution
from conformance.golden import SPLICE, Golden
from conformance.golden_files import load_golden
from conformance.judge import judge_outputs, judge_probes
from conformance.mutants.mutant import Mutant
from conformance.mutants.port import MutantPort
from conformance.port import Arrays, Component, Port
from conformance.runner import Runner
from conformance.sampling import term_and_step
from conformance.tensors import rounded
from conformance.tolerance import LIMIT, badness
from conformance.traces import Values, judged_by
from conformance.training import scale_name

DIFFERENT = 1e-9
"""Relative difference from which a mutant is not the clean model any more."""

PIXELS = "image_uint8"


def load(port: Port, case: Case, arithmetic: str) -> Component:
    """Load the component of a case on the CPU."""
    return port.load(case.component, case.variant, case.weights(), arithmetic, "cpu")


def answer(
    component: Component,
    case: Case,
    golden: Golden,
    replace: Arrays | None,
    *,
    probes_too: bool = True,
) -> Values:
    """Run a component once and gather what it hands out, steps of outputs one by one.

    Args:
        component: Loaded.
        case: The case.
        golden: Says what is asked for.
        replace: Values for splice mode, or None.
        probes_too: Whether to ask for probes, which a port may not hand out.

    Returns:
        Probes (and steps) and outputs.
    """
    asked = golden.asked if probes_too else []
    outputs, probes = component.run(case.inputs(), asked, replace)
    return with_steps(golden, Values(probes, outputs))


def with_steps(golden: Golden, values: Values) -> Values:
    """Add the steps of outputs, one by one, to what a component hands out.

    Args:
        golden: Says which steps are judged.
        values: Probes and outputs; its probes are extended.
    """
    probes, outputs = values.probes, values.outputs
    for name in golden.probes:
        own = golden.sketched_output(name)
        if own is None:
            continue
        _, step = term_and_step(name)
        if name in outputs:
            probes[name] = outputs[name]
        elif own in outputs and step is not None and step < len(outputs[own]):
            probes[name] = outputs[own][step]
    return Values(probes, outputs)


def expected_probe(mutant: Mutant, case: Case, replace: Arrays | None) -> str | None:
    """Compute where a mutant first differs from the clean model.

    Args:
        mutant: The mutant.
        case: A case that hunts it.
        replace: The oracle's values, so that only a layer's own difference shows; None where the
            component has no splice mode.

    Returns:
        The first canonical probe, output or step at which they differ by more than 1e-9 in
        float64, else in the mutant's own arithmetic; None if they do nowhere, or if the mutant
        does not answer.
    """
    golden = load_golden(case)
    for arithmetic in dict.fromkeys(("float64", mutant.dtype)):
        clean = answer(load(sd1_impl.port(), case, arithmetic), case, golden, replace)
        try:
            wrong = answer(load(MutantPort(mutant), case, arithmetic), case, golden, replace)
        except Exception:  # noqa: BLE001 - a mutant may raise anything
            return None
        names = {**clean.probes, **_judged(golden, clean.outputs)}
        for name in sorted(names, key=lambda n: _place(case, golden, n)):
            before, after = _value(clean, name), _value(wrong, name)
            scale = _value(clean, scale_name(name))
            if before is None or after is None or _differ(before, after, scale):
                return name
    return None


def _judged(golden: Golden, outputs: Arrays) -> Arrays:
    """Return the outputs that stand for themselves: those kept as sketches stand as steps."""
    return {name: array for name, array in outputs.items() if name not in golden.sketched}


def _place(case: Case, golden: Golden, name: str) -> tuple[tuple[int, ...], int]:
    outputs = list(golden.output_shapes)
    return spec.place(case.component, name), outputs.index(name) if name in outputs else -1


def _value(values: Values, name: str) -> np.ndarray | None:
    return values.probes.get(name, values.outputs.get(name))


def _differ(a: np.ndarray, b: np.ndarray, scale: np.ndarray | None) -> bool:
    if a.shape != b.shape:
        return True
    if a.dtype.kind != "f":
        return bool(np.any(a != b))
    with np.errstate(all="ignore"):
        wide = a.astype(np.float64)
        difference = float(np.linalg.norm(b.astype(np.float64) - wide))
        own = wide if scale is None else scale.astype(np.float64)
        return not difference <= DIFFERENT * float(np.linalg.norm(own))


Asked = tuple[int, int, str]
"""The key of what a port answered: runner, seed and item."""


def answered(runner: Runner, case: Case, execution: Execution) -> Asked:
    """Return the key of what a port answers in an item."""
    return id(runner), case.seed, execution.item_id(case)


class Reference:
    """A mutant, evaluated in float64, in the place of the oracle."""

    def __init__(self, mutant: Mutant, answers: dict[Asked, Values] | None = None) -> None:
        """Take the mutant's place.

        Args:
            mutant: The mutant.
            answers: What ports answered, by `answered`: shared among references, so that a port
                is asked once. In trace mode they are kept here.
        """
        self.port = MutantPort(mutant)
        self._answers = {} if answers is None else answers
        self._loaded: tuple[tuple[Any, ...], Component] | None = None

    def judge(self, runner: Runner, case: Case, execution: Execution) -> list[Record]:
        """Judge a port by the mutant.

        Args:
            runner: Holds the port.
            case: A case in which the port is wrong.
            execution: How it was run.

        Returns:
            The records; none where the mutant does not answer, or not with the same names.
        """
        both = self._both(runner, case, execution)
        if both is None:
            return []
        golden, own, reference = both
        return _by_mutant(golden.in_mode(execution.mode), own, reference, execution.dtype)

    def confirm(self, runner: Runner, case: Case, execution: Execution) -> dict[str, float]:
        """Return where the port is the mutant and neither is the truth.

        The port is asked anew: a port that answers otherwise now than when it was judged may be
        right, and then it agrees with all that the case cannot tell from the truth.

        Args:
            runner: Holds the port.
            case: A case in which the port is wrong.
            execution: How it was run.

        Returns:
            By name, the ratio of the port against the mutant, within the limit. In a trace there is
            none unless the two agree everywhere.
        """
        both = self._both(runner, case, execution)
        if both is None:
            return {}
        golden, own, reference = both
        truth = golden.in_mode(execution.mode)
        records = _by_mutant(truth, own, reference, execution.dtype)
        ratios = {record.name: badness(record.ratio) for record in records}
        if execution.mode != SPLICE and any(ratio > LIMIT for ratio in ratios.values()):
            return {}
        if execution.mode == SPLICE:  # judged by the very values that were put in
            truth = judged_by(truth, runner.values(case, golden))
        wrong = _failing(truth, own, execution.dtype) & _failing(truth, reference, execution.dtype)
        return {name: ratio for name, ratio in ratios.items() if ratio <= LIMIT and name in wrong}

    def _both(
        self, runner: Runner, case: Case, execution: Execution
    ) -> tuple[Golden, Values, Values] | None:
        """Ask the port and the mutant; None where the mutant does not answer."""
        golden = runner.golden(case)
        replace = runner.values(case, golden).probes if execution.mode == SPLICE else None
        try:
            reference = answer(self._load(case), case, golden, replace)
        except Exception:  # noqa: BLE001 - a mutant may raise anything
            return None
        item = answered(runner, case, execution)
        own = self._answers.get(item)
        if own is None:
            component = runner.load(case, execution)
            given = rounded(replace, execution.dtype) if replace else None
            own = answer(component, case, golden, given, probes_too=runner.hello.probes)
            if not replace:
                self._answers[item] = own
        return golden, own, reference

    def _load(self, case: Case) -> Component:
        key = (case.component, case.variant, case.seed)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = (key, load(self.port, case, "float64"))
        return self._loaded[1]

    def agreement(self, runner: Runner, items: Iterable[tuple[Case, Execution]]) -> float:
        """Return the worst ratio of a port against the mutant; infinite for no items."""
        return max((worst(self.judge(runner, c, e)) for c, e in items), default=math.inf)


def _by_mutant(golden: Golden, own: Values, reference: Values, dtype: str) -> list[Record]:
    """Judge a port's answers by a mutant's; no records where the names are not the same."""
    with np.errstate(all="ignore"):  # a mutant may overflow
        judged = judged_by(golden, reference)
    outputs = {n: a for n, a in own.outputs.items() if n in judged.output_shapes}
    if PIXELS in outputs:
        pixels = (outputs.pop(PIXELS), reference.outputs[PIXELS])
        judged.output_names = [n for n in judged.output_names if n != PIXELS]
        if not _same_pixels(*pixels):
            return []
    if set(judged.output_shapes) - set(outputs):
        return []
    with np.errstate(all="ignore"):
        records = judge_probes(judged, own.probes, dtype)
        return records + judge_outputs(judged, outputs, dtype)


def _failing(truth: Golden, values: Values, dtype: str) -> set[str]:
    """Return the names at which values are farther from the truth than the limit."""
    with np.errstate(all="ignore"):
        records = judge_probes(truth, values.probes, dtype)
        records += judge_outputs(truth, values.outputs, dtype)
    return {record.name for record in records if record.verdict == "fail"}


_ROUNDED_OTHERWISE = 1e-2


def _same_pixels(a: np.ndarray, b: np.ndarray) -> bool:
    """Say whether two pictures are the same but for pixels that lie between two levels."""
    if a.shape != b.shape:
        return False
    difference = np.abs(a.astype(int) - b.astype(int))
    return bool(difference.max() <= 1 and (difference > 0).mean() <= _ROUNDED_OTHERWISE)


def worst(records: Iterable[Record]) -> float:
    """Return the worst ratio of records; infinite where there are none."""
    ratios = [badness(record.ratio) for record in records]
    return max(ratios) if ratios else math.inf
