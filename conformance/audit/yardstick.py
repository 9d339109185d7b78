"""Truth and noise of an audited case: from its golden, and from the oracle for what that lacks."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from conformance import spec
from conformance.errors import UnsupportedError
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.traces import Traces, Values, have_oracle, judged_by

if TYPE_CHECKING:
    from conformance.audit.oracle_torch import LiveOracle
    from conformance.case import Case


@dataclass(frozen=True)
class Yardstick:
    """What a case is measured by.

    Attributes:
        golden: Holds every probe that the truth has, and the noise in the audited arithmetic.
        values: The truth, whole.
        source: Where the noise comes from, in words.
    """

    golden: Golden
    values: Values
    source: str


def find_oracle() -> LiveOracle | None:
    """Return the oracle, or None where it is not installed."""
    if not have_oracle():
        return None
    oracle: LiveOracle = importlib.import_module("conformance.audit.oracle_torch").LiveOracle()
    return oracle


def yardstick(case: Case, arithmetic: str, traces: Traces, oracle: LiveOracle | None) -> Yardstick:
    """Return truth and noise of a case.

    A golden of a regime other than the main ones keeps the named blocks alone. What it lacks is
    then evaluated here: the truth of every layer, and the noise of the same honest evaluations.

    Args:
        case: A case of a network.
        arithmetic: The audited one.
        traces: Gives the truth of what the golden keeps.
        oracle: Gives that of the rest; None where it is not installed.

    Raises:
        UnsupportedError: The case cannot judge this arithmetic.
    """
    golden = load_golden(case)
    reason = golden.why_not_offered(arithmetic)
    if reason is not None:
        raise UnsupportedError(reason)
    names = spec.probe_names(case.component, case.variant.size)
    lacking = [name for name in names if name not in set(golden.probes)]
    if oracle is None or not lacking:
        values = traces(case, golden)
        return Yardstick(judged_by(golden, values), values, "the golden")
    values = oracle.values(case, names)
    measured = None if arithmetic == "float64" else oracle.noise(case, arithmetic, values)
    trace, splice = measured or ({}, {})
    known = dict(zip(golden.probes, golden.noise[arithmetic].tolist(), strict=True))
    unknown = float("nan")
    wide = replace(
        golden,
        probes=list(names),
        noise={arithmetic: np.array([(trace | known).get(name, unknown) for name in names])},
        # Where blocks alone are spliced, a block's own noise is that of all the layers in it.
        splice_noise={arithmetic: np.array([splice.get(name, unknown) for name in names])},
    )
    count = f"{len(lacking)} of {len(names)} probes"
    source = "measured here for" if measured else "none for"
    return Yardstick(judged_by(wide, values), values, f"the golden; {source} {count}")
