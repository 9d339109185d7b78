"""The same network on many inputs: how typical is the error of one?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.audit.measure import check, measured_outputs, quantiles
from conformance.audit.names import finite, main_output
from conformance.contract import call
from conformance.judge import TIME_PROJ, time_proj_values

if TYPE_CHECKING:
    from conformance.audit.oracle_torch import LiveOracle
    from conformance.audit.yardstick import Yardstick
    from conformance.case import Case
    from conformance.port import Arrays, Component

IDS = "input_ids"
_TEXT = 75
"""Tokens between the first and the last of 77."""


@dataclass(frozen=True)
class Samples:
    """What came of several inputs.

    Attributes:
        case: Id of the case whose recipe was drawn with other seeds.
        count: How many there were.
        err: Middle, worst hundredth and worst of the main output's relative error.
        bits: The same of its right bits, the fewest counting as the worst.
        ratio: The same of its worst ratio.
    """

    case: str
    count: int
    err: dict[str, float | None]
    bits: dict[str, float | None]
    ratio: dict[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in audit.json."""
        return {
            "case": self.case,
            "count": self.count,
            "err": self.err,
            "bits": self.bits,
            "ratio": self.ratio,
        }


class _Seeded:
    """A case whose inputs are drawn with another seed; the weights stay."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = replace(case, seed=seed)

    def inputs(self) -> Arrays:
        """Draw the inputs; of texts, as many other tokens, in as long a text or a shorter one."""
        drawn = self.case.inputs()
        if IDS in drawn:
            drawn[IDS] = other_tokens(drawn[IDS], self.case.seed)
        return drawn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.case, name)


def other_tokens(ids: np.ndarray, seed: int) -> np.ndarray:
    """Draw texts: the first token, so many random ones, the last one up to the end.

    Args:
        ids: int64 (batch, 77): gives the first and the last token.
        seed: Of the generator.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = np.full_like(ids, ids[0, -1])
    for row in drawn:
        length = int(generator.integers(1, _TEXT + 1))
        row[0] = ids[0, 0]
        row[1 : length + 1] = generator.integers(0, ids[0, 0], length)
    return drawn


def take_samples(
    component: Component,
    case: Case,
    dtype: str,
    count: int,
    yardstick: Yardstick,
    oracle: LiveOracle,
) -> Samples:
    """Run a component on many inputs.

    Args:
        component: Loaded.
        case: Gives the recipe of the inputs.
        dtype: What it computes in.
        count: How many inputs.
        yardstick: Gives the noise, that of the case's own input.
        oracle: Gives the truth.

    Returns:
        The spread of the main output's error.
    """
    golden = yardstick.golden
    main = main_output(case.component, list(golden.output_shapes))
    supplied = dtype == "float64" and TIME_PROJ in golden.probes
    rows = []
    for seed in range(1, count + 1):
        seeded: Any = _Seeded(case, seed)
        inputs = seeded.inputs()
        given = {TIME_PROJ: time_proj_values(case, inputs)} if supplied else None
        outputs, _ = call(component, inputs, (), given)
        check(golden, outputs, {}, dtype)
        found = measured_outputs(golden, oracle.values(seeded, ()), outputs, dtype)
        rows.append(next(output for output in found if output.name == main))
    fewest = quantiles([-(row.bits if row.bits is not None else -np.inf) for row in rows])
    return Samples(
        case.id,
        count,
        quantiles([row.err for row in rows]),
        {name: None if value is None else finite(-value) for name, value in fewest.items()},
        quantiles([row.ratio for row in rows]),
    )
