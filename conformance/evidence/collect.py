"""What a report shows of an item beside its numbers: the first wrong tensor, and pictures."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.errors import UnsupportedError
from conformance.evidence.choice import Choice
from conformance.evidence.tensor_facts import tensor_facts, unit_of
from conformance.evidence.triptych import triptychs
from conformance.golden import SPLICE, Golden
from conformance.judge import IMAGE, TIME_PROJ
from conformance.layout import PIXELS
from conformance.pixels import LEVELS
from conformance.report.text import one_line
from conformance.sampling import term_and_step
from conformance.scenarios import BASE

if TYPE_CHECKING:
    from conformance.case import Case
    from conformance.port import Arrays
    from conformance.result import Result
    from conformance.traces import Traces, Values

FEW = 6
"""Items of a pipeline for whose pictures the oracle is asked, where its values are not at hand."""

MOST_VALUES = 2**25
"""Of a tensor that is looked into: what is made of a larger one might not fit the memory."""


@dataclass(frozen=True)
class Answer:
    """What a port answered in one case, and what it was judged by.

    Attributes:
        golden: What it was judged by.
        outputs: Of the port.
        probes: Of the port.
        values: The oracle's whole values, where they are at hand.
        explained: Whether splice mode has found the fault already.
    """

    golden: Golden
    outputs: Arrays
    probes: Arrays
    values: Values | None = None
    explained: bool = False

    def got(self, name: str) -> np.ndarray | None:
        """Return what the port computed: a probe, an output, or a step of one."""
        _, step = term_and_step(name)
        whole = self.golden.sketched_output(name)
        if name not in self.outputs and whole in self.outputs and step is not None:
            return self.outputs[whole][step]
        return self.outputs.get(name, self.probes.get(name))

    def truth(self, name: str) -> np.ndarray | None:
        """Return what is right, whole, where it is at hand."""
        if name == PIXELS:
            image = self.outputs[IMAGE].astype(np.float64)
            return np.rint(np.moveaxis(image, 1, -1) * LEVELS)  # as pixels are judged
        if name == TIME_PROJ and self.golden.embedding is not None:
            return self.golden.embedding
        kept = self.golden.tables | self.golden.outputs
        return kept.get(name, None if self.values is None else whole_value(self.values, name))


def whole_value(values: Values, name: str) -> np.ndarray | None:
    """Return a probe or output of the oracle."""
    return values.probes.get(name, values.outputs.get(name))


class Evidence:
    """Makes the evidence of the items of one runner, not more than a report shows."""

    def __init__(self, traces: Traces) -> None:
        """Keep what gives the oracle's values where they are not at hand."""
        self._traces = traces
        self._choice = Choice()
        self._asked: Counter[str] = Counter()
        self._images: dict[Case, np.ndarray] = {}

    def of(self, result: Result, answer: Answer) -> dict[str, Any]:
        """Return the evidence of an item; never raises.

        Args:
            result: What came of it, or of one block of it.
            answer: What the port answered.

        Returns:
            `tensor` and `pictures` where there is something to see, and how many tensors are
            `left_out` because enough are shown or they could not be made.
        """
        found: dict[str, Any] = {}
        for make in (self._tensor, self._pictures):
            try:
                made = make(result, answer)
            except Exception as error:  # noqa: BLE001 - what cannot be shown costs no verdict
                sys.stderr.write(f"{result.item_id}: no picture of the error: {one_line(error)}\n")
                made = {"left_out": 1}
            both = found.get("left_out", 0) + made.get("left_out", 0)
            found |= made | ({"left_out": both} if both else {})
        return found

    def _tensor(self, result: Result, answer: Answer) -> dict[str, Any]:
        """Show the first wrong tensor, if its truth is at hand or worth asking for."""
        record = next((r for r in result.records if r.verdict == "fail"), None)
        if result.verdict != "fail" or record is None or result.case.exact:
            return {}
        got, truth = answer.got(record.name), answer.truth(record.name)
        unknown = truth is None and (answer.values is not None or answer.explained)
        if unknown or got is None or got.size != math.prod(record.shape):
            return {}
        chosen = got.size <= MOST_VALUES and self._choice.takes(_line(result))
        if chosen and truth is None:
            values = self._ask(result.case, answer.golden)
            truth = None if values is None else whole_value(values, record.name)
        if not chosen or truth is None:
            return {"left_out": 1}
        if truth.dtype.kind in "iu":
            return {}
        unit = unit_of(answer.golden, record, truth, result.execution.dtype)
        shown = tensor_facts(result.case, record, got.reshape(truth.shape), truth, unit)
        return {"tensor": {"case": result.item_id, **shown}}

    def _ask(self, case: Case, golden: Golden) -> Values | None:
        """Ask the oracle, where there is one, but not at full size: that would take minutes."""
        try:
            return None if case.full_size else self._traces(case, golden)
        except UnsupportedError:
            return None

    def _pictures(self, result: Result, answer: Answer) -> dict[str, Any]:
        """Draw a pipeline's pictures; those of splice mode are made of the oracle's terms."""
        case = result.case
        if not case.is_pipeline or PIXELS not in answer.outputs:
            return {}
        truth = None if answer.values is None else answer.values.outputs[IMAGE]
        if truth is not None:
            self._images[case] = truth
        own = [r for r in result.records if r.name in {IMAGE, PIXELS}]
        seen = own if result.execution.mode == SPLICE else result.records
        passing = all(record.verdict == "pass" for record in seen)
        if passing and (case.scenario.name != BASE or result.execution.mode == SPLICE):
            return {}
        truth = self._images.get(case)
        if truth is None and not passing and self._asked[case.component] < FEW:
            self._asked[case.component] += 1
            values = self._ask(case, answer.golden)
            if values is not None:
                truth = self._images[case] = values.outputs[IMAGE]
        wanted = answer.golden.outputs.get(PIXELS)
        if wanted is None and truth is not None:
            wanted = np.rint(np.moveaxis(truth, 1, -1) * LEVELS).astype(np.uint8)
        pixels = answer.outputs[PIXELS]
        if wanted is None or wanted.shape != pixels.shape:
            return {}
        return {"pictures": triptychs(pixels, wanted, answer.outputs[IMAGE], truth)}


def _line(result: Result) -> dict[str, Any]:
    """Return what `position` reads of a case line."""
    return {
        "case": result.item_id,
        "component": result.case.component,
        "mode": result.execution.mode,
        "first_divergence": result.first_divergence,
        "probes": [{"name": r.name, "kind": r.kind} for r in result.records if r.kind == "output"],
    }
