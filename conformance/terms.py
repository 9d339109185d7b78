"""What a step of a scheduler is made of: which of its terms has the wrong coefficient?

A step is linear in what enters it, so its coefficients can be read off its result by least squares:
off the oracle's when a golden is recorded, off a port's when it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.sampling import WARM_UP, read_config, term_and_step
from conformance.tolerance import LIMIT

if TYPE_CHECKING:
    from conformance.compare import Record
    from conformance.golden import Golden

PAST = 5
"""Model outputs that a step may read: the newest, and four before it."""

TERMS = (
    "sample",
    *(f"model output {-i}" if i else "model output" for i in range(PAST)),
    "noise",
    "sample -1",
)

_LINEAR = 1e-3
"""Largest residual, over the step's norm, of what counts as a linear combination."""

Arrays = Mapping[str, np.ndarray]


def entering(
    component: str, inputs: Arrays, model_inputs: Mapping[int, np.ndarray], step: int
) -> dict[str, np.ndarray]:
    """Return what may enter a step, by name of `TERMS`.

    Args:
        component: A scheduler.
        inputs: Of the case.
        model_inputs: By call of the model, what it was given: the sample, scaled.
        step: Which call of the model.

    Returns:
        Arrays of one shape; without `sample` where the call that the step began with is not known.
    """
    config = read_config(inputs["config"])
    begun = step - _since_beginning(component, config, step)
    terms = {}
    if step == 1 and begun == 0:
        terms["sample"] = inputs["sample"]
    elif begun in model_inputs:
        terms["sample"] = model_inputs[begun]
    for i in range(min(PAST, step + 1)):
        terms[TERMS[1 + i]] = inputs["model_outputs"][step - i]
    if "noise" in inputs:
        terms["noise"] = inputs["noise"][step]
    if component == "scheduler/dpmpp_2m" and step - 1 in model_inputs:
        terms["sample -1"] = model_inputs[step - 1]
    return terms


_STAGES = 4


def _since_beginning(component: str, config: Mapping[str, Any], step: int) -> int:
    """Return how many calls ago a step began that asks the model several times.

    PLMS takes its first step twice; Heun's steps have two calls, Runge-Kutta's four.
    """
    if component == "scheduler/heun":
        return step % 2
    if component == "scheduler/pndm" and not config["skip_prk_steps"]:
        return step % _STAGES if step < WARM_UP else 0
    return int(component == "scheduler/pndm" and step == 1)


def coefficients(terms: Arrays, result: np.ndarray) -> np.ndarray:
    """Read the coefficients of a step off its result.

    Args:
        terms: From `entering`.
        result: The sample after the step.

    Returns:
        float64 (terms of `TERMS`,): NaN for a term that does not enter, and everywhere where the
        result is no linear combination, as when x0 is clipped.
    """
    found = np.full(len(TERMS), np.nan)
    if "sample" not in terms:
        return found
    columns = np.stack([terms[name].astype(np.float64).ravel() for name in terms], axis=1)
    wanted = result.astype(np.float64).ravel()
    if not np.isfinite(wanted).all():
        return found
    solution, *_ = np.linalg.lstsq(columns, wanted, rcond=None)
    if np.linalg.norm(columns @ solution - wanted) <= _LINEAR * np.linalg.norm(wanted):
        found[[TERMS.index(name) for name in terms]] = solution
    return found


def explain_steps(golden: Golden, inputs: Arrays, outputs: Arrays, records: list[Record]) -> None:
    """Note on the first wrong step of a scheduler which of its coefficients are wrong.

    Args:
        golden: Of the case.
        inputs: Of the case.
        outputs: What the port returned.
        records: Of the case; the note is added to one of them.
    """
    for record in records:
        term, step = term_and_step(record.name)
        if record.verdict == "fail" and term == "samples" and step is not None:
            found = wrong_terms(golden, inputs, outputs, record, step)
            record.note = "; ".join(text for text in (record.note, found) if text)
            return


def wrong_terms(golden: Golden, inputs: Arrays, outputs: Arrays, record: Record, step: int) -> str:
    """Say which coefficients of a wrong step are wrong.

    Args:
        golden: Of the case.
        inputs: Of the case.
        outputs: What the port returned.
        record: The failing record of `samples` at the step.
        step: Which call of the model.

    Returns:
        A sentence, or nothing where the coefficients do not tell.
    """
    truth = golden.coefficients.get(record.name)
    if truth is None or np.isnan(truth).all():
        return ""
    component = golden.case.rpartition("/")[0].removesuffix("/-")
    terms = entering(component, inputs, dict(enumerate(outputs["model_inputs"])), step)
    result = outputs["samples"][step]
    found = coefficients(terms, result)
    when = f"step {step}, timestep {golden.outputs['timesteps'][step]}"
    if np.isnan(found).all():
        return f"{when}: not a linear combination of {', '.join(terms)}"
    allowed = LIMIT * record.noise * float(np.linalg.norm(result.astype(np.float64)))
    wrong = [
        f"{found[i]:.6g} times the {name} instead of {truth[i]:.6g}"
        for i, name in enumerate(TERMS)
        if name in terms
        and not abs(found[i] - truth[i]) * float(np.linalg.norm(terms[name])) <= allowed
    ]
    return f"{when}: {'; '.join(wrong)}" if wrong else ""
