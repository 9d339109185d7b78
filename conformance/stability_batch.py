"""The samples of a batch: taking one, moving them, giving the others other values.

The batch is the first axis, but for the steps of a scheduler, which come before it. A row may hold
several values of each sample, the first of all samples in front: both branches of guidance.
"""

from __future__ import annotations

import numpy as np

from conformance.case import Case
from conformance.errors import UnsupportedError
from conformance.port import Arrays
from conformance.sampling import SCHEDULER_STEPS
from conformance.stability_rows import Rows

_PER_STEP = ("noise", "model_outputs")
_STEPS_AXES = 5
"""Axes of the noise of every step: step, sample, channel, row, column."""


def _axis(name: str, array: np.ndarray) -> int | None:
    """Return the axis of an input's samples; None where all samples share it."""
    if array.ndim == 0:
        return None
    return 1 if name in _PER_STEP and array.ndim == _STEPS_AXES else 0


def batch_of(case: Case, inputs: Arrays) -> int:
    """Return the number of samples.

    Raises:
        UnsupportedError: There is only one, or they do not have their inputs to themselves.
    """
    lengths = {
        name: array.shape[axis]
        for name, array in inputs.items()
        if (axis := _axis(name, array)) is not None
    }
    count = max(lengths.values(), default=1)
    shared = [name for name, length in lengths.items() if length != count]
    if shared:
        message = f"{case.id}: its samples share {shared[0]}: none can be taken alone"
        raise UnsupportedError(message)
    if count == 1:
        message = f"{case.id} has one sample: there is no batch to compare it with"
        raise UnsupportedError(message)
    return count


def chosen(inputs: Arrays, samples: list[int]) -> Arrays:
    """Return the inputs of some samples, in that order."""
    return {
        name: array if (axis := _axis(name, array)) is None else np.take(array, samples, axis)
        for name, array in inputs.items()
    }


def among_others(inputs: Arrays, batch: int, count: int, kept: int = 0) -> Arrays:
    """Return a batch of which one sample is as it was, and all others are none of this case's.

    Args:
        inputs: Of the case.
        batch: Its number of samples.
        count: How many there are to be.
        kept: The sample that stays, at its place.
    """
    samples = [i % batch for i in range(count)]
    found = {}
    for name, array in chosen(inputs, samples).items():
        axis = _axis(name, array)
        if axis is None:
            found[name] = array
            continue
        before, own, after = np.split(array, [kept, kept + 1], axis)
        others = _other_values(np.concatenate([before, after], axis))
        before, after = np.split(others, [kept], axis)
        found[name] = np.concatenate([before, own, after], axis)
    return found


def with_other_texts(inputs: Arrays) -> Arrays:
    """Return inputs with their texts turned round: many cases share a prompt."""
    return {
        name: _other_values(array) if array.dtype.kind == "U" and array.ndim else array
        for name, array in inputs.items()
    }


def _other_values(array: np.ndarray) -> np.ndarray:
    """Return values that are allowed where these are, with another mean and another variance."""
    if array.dtype.kind == "U":
        return np.array([text[::-1] for text in array.tolist()])
    if array.dtype.kind == "f" and array.ndim > 1:
        return (-0.5 * array).astype(array.dtype)
    if array.dtype.kind == "u":
        return np.asarray(np.iinfo(array.dtype).max - array // 2)
    return array[..., ::-1] if array.ndim > 1 else array  # ids; timesteps stay as they are


def _split(name: str, row: np.ndarray, batch: int) -> np.ndarray | None:
    """View a row as (values of a sample, samples, ...); None where it has no samples."""
    row = np.moveaxis(row, 1, 0) if name in SCHEDULER_STEPS and row.ndim > 1 else row
    if row.ndim == 0 or len(row) % batch or not len(row):
        return None
    return row.reshape(len(row) // batch, batch, *row.shape[1:])


def _joined(name: str, parts: np.ndarray) -> np.ndarray:
    """Take `_split` back."""
    row = parts.reshape(-1, *parts.shape[2:])
    return np.moveaxis(row, 0, 1) if name in SCHEDULER_STEPS and row.ndim > 1 else row


def is_shared(row: np.ndarray, alone: np.ndarray) -> bool:
    """Say whether a row does not depend on the number of samples: positions, timesteps, tables."""
    return row.shape == alone.shape


def taken(rows: Rows, alone: Rows, batch: int, samples: list[int]) -> Rows:
    """Return the rows of some samples of a batch, in that order.

    Args:
        rows: Of the batch.
        alone: Of any single sample: tells which rows have samples.
        batch: How many there are.
        samples: Which are wanted.
    """
    found = {}
    for name, row in rows.items():
        parts = None
        if name in alone and not is_shared(row, alone[name]):
            parts = _split(name, row, batch)
        found[name] = row if parts is None else _joined(name, parts[:, samples])
    return found


def stacked(alone: list[Rows], whole: Rows) -> Rows:
    """Put the rows of single samples together as a batch has them.

    Args:
        alone: Of each sample.
        whole: Of the batch: a row that is the same in both is left as the first sample has it.
    """
    found = {}
    for name, first in alone[0].items():
        rows = [own[name] for own in alone if name in own]
        parts = [_split(name, row, 1) for row in rows]
        single = name in whole and is_shared(whole[name], first)
        if single or len(rows) < len(alone) or any(part is None for part in parts):
            found[name] = first
        else:
            found[name] = _joined(name, np.concatenate([p for p in parts if p is not None], 1))
    return found
