"""How the error of a run grows from step to step, and in which term of a step it is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from conformance import tolerance
from conformance.sampling import term_and_step

if TYPE_CHECKING:
    from conformance.compare import Record

SHARES = {
    "model_input": "input",
    "noise_pred_uncond": "model",
    "noise_pred_text": "model",
    "noise_pred": "guidance",
    "unblended": "scheduler",
    "latents": "scheduler",
}
"""By term of a pipeline's step, who makes it; where there is `unblended`, `latents` are blended."""

BLEND = "blend"


def trajectory(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the errors of a pipeline's run, step by step.

    Args:
        records: Of one case. In splice mode each error is its term's own, in trace mode it adds up.

    Returns:
        One object for each call of the model that the golden keeps: `step`, its number from 0, and
        for `input`, `model`, `guidance`, `scheduler` and `blend`, where they are, `err`, `noise`
        and `ratio` of the worst probe.
    """
    steps: dict[int, dict[str, Record]] = {}
    for record in records:
        term, step = term_and_step(record.name)
        if step is not None and term in SHARES:
            steps.setdefault(step, {})[term] = record
    return [{"step": step, **_shares(terms)} for step, terms in sorted(steps.items())]


def _shares(terms: dict[str, Record]) -> dict[str, dict[str, float]]:
    found: dict[str, Record] = {}
    for term, record in terms.items():
        share = BLEND if term == "latents" and "unblended" in terms else SHARES[term]
        worst = found.get(share)
        if worst is None or tolerance.badness(record.ratio) > tolerance.badness(worst.ratio):
            found[share] = record
    return {
        share: {"err": record.err, "noise": record.noise, "ratio": record.ratio}
        for share, record in found.items()
    }
