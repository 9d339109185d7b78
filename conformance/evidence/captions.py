"""What the errors of a tensor have in common, in a few words: 'last column only: padding'.

Words are said only where they hold to within noise: nothing outside is wrong, or nothing is left
once it is taken away. Where no rule holds nothing is said.
"""

from __future__ import annotations

import numpy as np

from conformance.compare import correlation
from conformance.evidence.error_kinds import by_channel, by_token, explanation, moved, scaled, trend
from conformance.evidence.error_map import Errors
from conformance.evidence.error_places import Probe, places
from conformance.tolerance import LIMIT

_CERTAIN = 100.0
"""A ratio that no honest element has."""
_APART = 3.0
"""Times that the wrong element is worse than the second."""
_SAMPLE, _UNLIKE = 256, 0.1
"""Values from which a correlation tells something, and what is none."""


def caption(errors: Errors, probe: Probe) -> str:
    """Say where the error is, and what it is like.

    Args:
        errors: The tensor, in units of noise.
        probe: What else is known of it.

    Returns:
        The words; empty where nothing stands out.
    """
    odd = ~np.isfinite(errors.got)
    if odd.any():
        return _not_finite(odd, errors.axes, probe)
    if not np.isfinite(errors.truth).all():
        return ""
    if _is_one_element(errors):
        return "one element"
    return explanation(errors.thinned(), [moved]) or _described(errors, probe)


def _not_finite(odd: np.ndarray, axes: tuple[str, ...], probe: Probe) -> str:
    """Say where values are not finite: nothing can be said of the others."""
    if odd.all():
        return "no value is finite"
    marked = Errors(np.where(odd, _CERTAIN, 0.0), np.zeros(odd.shape), axes)
    where, _ = places(marked, probe)
    return f"not finite: {', '.join(where) or f'{np.count_nonzero(odd)} of {odd.size} values'}"


def _described(errors: Errors, probe: Probe) -> str:
    """Say where the error is, and what it is like there."""
    where, part = places(errors, probe)
    part = part.thinned()
    if alike := explanation(part, [scaled]):
        return ", ".join([*(where or ["everything alike"]), alike])
    how = explanation(part, [by_channel, by_token])
    how = f"{how}{probe.norm}" if how and "offset" not in how else how or trend(part)
    return ", ".join(filter(None, [*where, how])) or _unrelated(errors.thinned(), probe)


def _is_one_element(errors: Errors) -> bool:
    """Say whether a single element is wrong."""
    squares = errors.squares.ravel()
    if errors.got.ndim == 1 or squares.size < _SAMPLE:
        return False
    second, worst = np.sqrt(np.partition(squares, -2)[-2:])
    rest = float(np.sqrt(max(0.0, squares.sum() - worst**2) / (squares.size - 1)))
    return rest <= LIMIT and worst > _CERTAIN * max(rest, 1.0) and worst > _APART * second


def _unrelated(errors: Errors, probe: Probe) -> str:
    """Say so if the values have nothing in common with the truth."""
    found = correlation(errors.got, errors.truth)
    unlike = found is not None and errors.got.size >= _SAMPLE and abs(found) < _UNLIKE
    return f"unrelated to what is right{probe.mixed_up}" if unlike else ""
