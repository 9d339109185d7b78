"""Errors of outputs, in bits and in units of the reference's noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance import tolerance
from conformance.audit.names import bits, finite
from conformance.compare import METRICS, whole_errors
from conformance.contract import check_contract
from conformance.errors import PortError

if TYPE_CHECKING:
    from conformance.golden import Golden
    from conformance.port import Arrays
    from conformance.traces import Values


@dataclass(frozen=True)
class Output:
    """How right one output is.

    Attributes:
        name: Of the output.
        err: Relative L2 error.
        element: Largest error of one element, over the RMS of the output.
        noise: The reference's L2 error in this arithmetic.
        ratio: The worst of three ratios: of the whole, the worst channel and the worst element.
        verdict: By the limit.
        bits: Bits that are right on the whole.
        worst_bits: Bits that are right of the worst element, relative to the RMS.
    """

    name: str
    err: float
    element: float
    noise: float
    ratio: float
    verdict: str
    bits: float | None
    worst_bits: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in audit.json."""
        own = asdict(self)
        return {k: finite(v) if isinstance(v, float) else v for k, v in own.items()}


def measured_outputs(
    golden: Golden, values: Values, outputs: Arrays, arithmetic: str
) -> list[Output]:
    """Measure outputs against the whole truth.

    Args:
        golden: Gives their noise.
        values: The truth.
        outputs: What the port computed.
        arithmetic: What it computed in.

    Returns:
        One for every output of the golden.

    Raises:
        PortError: An output has another shape than the truth.
    """
    found = []
    for name in golden.output_shapes:
        truth, value = values.outputs[name], outputs[name]
        if value.shape != truth.shape:
            message = f"{golden.case}: output {name} has shape {value.shape}, not {truth.shape}"
            raise PortError(message)
        errors = whole_errors(value, truth)
        units = golden.output_noise[arithmetic][name]
        ratios = [
            tolerance.ratio(e, n, arithmetic)
            for e, n in zip(errors.tolist(), units.tolist(), strict=True)
        ]
        worst = max(ratios, key=tolerance.badness)
        whole, element = float(errors[0]), float(errors[METRICS.index("element")])
        found.append(
            Output(
                name,
                whole,
                element,
                float(units[0]),
                worst,
                tolerance.verdict(worst),
                bits(whole),
                bits(element),
            )
        )
    return found


def worst_output(outputs: list[Output]) -> Output:
    """Return the output with the worst ratio."""
    return max(outputs, key=lambda output: tolerance.badness(output.ratio))


def check(golden: Golden, outputs: Arrays, probes: Arrays, arithmetic: str) -> None:
    """Check names and dtypes: those in which an arithmetic that is no dtype is kept.

    Raises:
        PortError: They are not those of the contract.
    """
    kept = arithmetic if arithmetic in tolerance.ARITHMETICS else "float32"
    if arithmetic in tolerance.POLICIES:
        return  # an output may be kept in either of its dtypes
    check_contract(golden, outputs, probes, kept)


def quantiles(values: list[float]) -> dict[str, float | None]:
    """Return the middle and the worst hundredth of numbers, and their worst."""
    array = np.array(values, np.float64)
    array[np.isnan(array)] = np.inf
    high = np.quantile(array, 0.99, method="higher")
    return {"p50": finite(np.median(array)), "p99": finite(high), "max": finite(array.max())}
