"""What an error is like where it is: values moved, scaled, or off by an offset; or a trend.

Each rule makes of the truth what the port would have computed. It is told if that explains the
error: what is left is noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from conformance.evidence.error_map import Errors
from conformance.tolerance import LIMIT

_LEFT = 0.02
"""Share of an error that may be left unexplained."""
_ENOUGH, _SPREAD = 12, 3.0
"""Values from which a line can be told, and how many of them have to matter: one is no line."""
_SMALL = 0.1
"""A factor's distance from 1 that is told in percent."""
_TURNS = 30
_TREND, _TREND_SLICES, _TREND_TIMES = 0.97, 8, 3.0
"""Correlation of a trend with the slices' numbers, how many there are, how much it grows."""

Guess = tuple[str, np.ndarray]
"""Words, and what the port would have computed if they were true."""
Rule = Callable[[Errors], Iterable[Guess]]


def moved(errors: Errors) -> Iterator[Guess]:
    """Guess that the values are right, but elsewhere."""
    truth = errors.truth
    yield "all zeros", np.zeros_like(truth)
    yield "the sign is wrong", -truth
    for i, (axis, count) in enumerate(zip(errors.axes, truth.shape, strict=True)):
        if axis in {"feature", "channel"} and count % 2 == 0:
            yield f"the halves of the {axis}s are exchanged", np.roll(truth, count // 2, axis=i)
        if axis in {"channel", "row", "column", "batch"} and count > 1:
            yield f"{axis if axis != 'batch' else 'batch item'}s in reverse", np.flip(truth, i)
        if axis == "batch" and count > 1:
            first = np.broadcast_to(truth[:1], truth.shape)
            yield "every batch item is like the first", first
    if errors.axes[-2:] == ("row", "column") and truth.shape[-2] == truth.shape[-1]:
        yield "rows and columns are exchanged", np.swapaxes(truth, -2, -1)


def scaled(errors: Errors) -> Iterator[Guess]:
    """Guess that all values have one factor, one offset, or both."""
    truth = errors.truth
    if truth.size < _ENOUGH:
        return
    if _count(truth**2) >= _SPREAD:
        factor = float(np.sum(errors.got * truth)) / float(np.sum(truth**2))
        yield f"{_factor_words(factor)}: a scale", factor * truth
    yield "one offset", truth + np.mean(errors.got - truth)
    about = truth - np.mean(truth)
    if _count(about**2) >= _SPREAD:
        factor = float(np.sum(errors.got * about)) / float(np.sum(about**2))
        yield f"{_factor_words(factor)} and an offset: a range", factor * about + errors.got.mean()


def _factor_words(factor: float) -> str:
    change = factor - 1
    if abs(change) > _SMALL:
        return f"times {factor:.4g}"
    return f"{abs(change) * 100:.2g} % too {'large' if change > 0 else 'small'}"


def _count(powers: np.ndarray, axes: tuple[int, ...] | None = None) -> float:
    """Return how many values matter: of equal ones all, of one large among small ones 1."""
    fourth = np.sum(powers**2, axis=axes)
    return float(np.median(np.sum(powers, axis=axes) ** 2 / np.where(fourth > 0, fourth, np.inf)))


def by_channel(errors: Errors) -> Iterator[Guess]:
    """Guess that each channel, or feature, has an offset or a factor of its own."""
    axis = next((axis for axis in ("channel", "feature") if axis in errors.axes), None)
    if axis is None:
        return
    for kept, whose in (((axis,), f"each {axis}"), (("batch", axis), f"each {axis} of each item")):
        others = tuple(i for i, own in enumerate(errors.axes) if own not in kept)
        if math.prod(errors.truth.shape[i] for i in others) < _ENOUGH:
            continue
        means = [a.mean(axis=others, keepdims=True) for a in (errors.got, errors.truth)]
        got, truth = (a - mean for a, mean in zip((errors.got, errors.truth), means, strict=True))
        bias = ": a bias" if kept == (axis,) else ""
        yield f"{whose} has an offset of its own{bias}", truth + means[0]
        if _count(truth**2, others) < _SPREAD:
            continue
        power = np.sum(truth**2, axis=others, keepdims=True)
        own = np.sum(got * truth, axis=others, keepdims=True)
        alike = float(own.sum() / power.sum())
        yield f"{_factor_words(alike)} about the mean of {whose}", alike * truth + means[0]
        factor = own / np.where(power > 0, power, 1.0)
        yield f"{whose} has a factor of its own", factor * truth + means[0]


def by_token(errors: Errors) -> Iterator[Guess]:
    """Guess that each token has a factor of its own, about a centre that all share: a norm's bias.

    Factors and centre are found in turn, each by least squares given the other.
    """
    if errors.axes != ("batch", "token", "feature") or min(errors.truth.shape[1:]) < _ENOUGH:
        return
    difference = errors.got - errors.truth
    if _count(np.sum(difference**2, axis=-1)) < _SPREAD:
        return
    centre = np.zeros(errors.truth.shape[-1])
    for _ in range(_TURNS):
        about = errors.truth - centre
        factor = np.sum(difference * about, -1, keepdims=True) / np.sum(about**2, -1, keepdims=True)
        pull = factor * (factor * errors.truth - difference)
        centre = np.sum(pull, axis=(0, 1)) / np.sum(factor**2)
    yield "each token has a factor of its own", errors.truth + factor * (errors.truth - centre)


def explanation(errors: Errors, rules: Iterable[Rule]) -> str:
    """Return the words of the first guess that explains the error; empty if there is none."""
    whole = float(np.sqrt(np.mean(errors.squares)))
    allowed = max(min(LIMIT / 2, whole / 2), _LEFT * whole)
    with np.errstate(all="ignore"):
        for rule in rules:
            for words, expected in rule(errors):
                if np.sqrt(np.mean(np.square(errors.got - expected))) <= allowed:
                    return words
    return ""


def trend(errors: Errors) -> str:
    """Say along which axis the error grows, or falls, evenly; empty if along none."""
    for axis, count in zip(errors.axes, errors.truth.shape, strict=True):
        ratios = errors.along(axis) / np.maximum(errors.levels(axis), 1.0)
        if count < _TREND_SLICES or not ratios.max() > _TREND_TIMES * ratios.min():
            continue
        steady = float(np.corrcoef(np.arange(count), ratios)[0, 1])
        if abs(steady) >= _TREND:
            return f"{'grows' if steady > 0 else 'falls'} with the {axis}"
    return ""
