"""Samples of a batch: taken, moved, put together, and given other company."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.case import Case, all_cases, find_case
from conformance.errors import UnsupportedError
from conformance.stability_batch import among_others, batch_of, chosen, stacked, taken

UNET = "unet/tiny/batch3"


def inputs_of(case_id: str) -> tuple[Case, dict[str, np.ndarray]]:
    """Return a case and its inputs."""
    case = find_case(case_id)
    return case, case.inputs()


@pytest.mark.parametrize(
    ("case_id", "batch"),
    [
        (UNET, 3),
        ("unet/tiny/tsamples", 3),
        ("text_encoder/tiny/batch3", 3),
        ("scheduler/ddpm/-/base", None),
        ("pipeline/txt2img/tiny/ddpm", 2),
        ("pipeline/inpaint/tiny/base", 2),
        ("tokenizer/-/batch-short-and-too-long", None),
    ],
)
def test_every_input_is_taken_apart(case_id: str, batch: int | None) -> None:
    """Samples taken one by one are the batch again, whatever the axis."""
    case, inputs = inputs_of(case_id)
    count = batch_of(case, inputs)
    assert batch in {None, count}
    for name, array in inputs.items():
        parts = [chosen(inputs, [i])[name] for i in range(count)]
        if array.ndim == 0:
            assert all(part is array for part in parts)
            continue
        axis = next(
            i for i, (a, b) in enumerate(zip(parts[0].shape, array.shape, strict=True)) if a != b
        )
        assert np.array_equal(np.concatenate(parts, axis), array), name


@pytest.mark.parametrize(
    ("case_id", "reason"),
    [
        ("unet/tiny/batch1", "has one sample"),
        ("pipeline/img2img/tiny/shared", "share image"),
        ("pipeline/img2img/tiny/each2", "share"),
    ],
)
def test_there_may_be_no_batch(case_id: str, reason: str) -> None:
    """One sample, or samples that share a picture, cannot be compared with themselves alone."""
    with pytest.raises(UnsupportedError, match=reason):
        batch_of(*inputs_of(case_id))


def test_other_company() -> None:
    """The first sample stays, the others are of another mean and deviation, in any number."""
    _, inputs = inputs_of(UNET)
    for count in (3, 4):
        found = among_others(inputs, 3, count)
        sample = found["sample"]
        assert len(sample) == count
        assert np.array_equal(sample[0], inputs["sample"][0])
        assert not any(np.array_equal(a, b) for a in sample[1:] for b in inputs["sample"])
        assert sample.dtype == np.float32
        assert found["timestep"].shape == ()


def test_other_company_is_allowed() -> None:
    """Ids stay ids, bytes bytes and texts texts; none stays as it was."""
    for case_id, name in (
        ("text_encoder/tiny/batch3", "input_ids"),
        ("pipeline/inpaint/tiny/base", "mask"),
        ("pipeline/txt2img/tiny/base", "prompt"),
    ):
        _, inputs = inputs_of(case_id)
        own, found = inputs[name], among_others(inputs, len(inputs[name]), len(inputs[name]))[name]
        assert found.dtype.kind == own.dtype.kind
        assert np.array_equal(found[0], own[0])
        assert not np.array_equal(found[1], own[1])
    assert found[1] == own[1][::-1]


def rows(batch: int) -> dict[str, np.ndarray]:
    """Return rows of a batch: plain, of two branches, of every step, and shared."""
    numbers = np.arange(batch, dtype=float)
    branches = np.concatenate([numbers, 100 + numbers])
    return {
        "plain": np.stack([numbers, numbers], axis=1),
        "branches": branches[:, None],
        "samples": np.stack([numbers, 10 + numbers])[:, :, None],
        "positions": np.arange(5.0),
        "t": np.array(7.0),
    }


def alone(i: int) -> dict[str, np.ndarray]:
    """Return the rows of one sample alone."""
    full = rows(4)
    return full | {
        "plain": full["plain"][[i]],
        "branches": full["branches"][[i, 4 + i]],
        "samples": full["samples"][:, [i]],
    }


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Say whether two runs have the same rows."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[n], expected[n]) for n in found
    )


def test_rows_are_put_together() -> None:
    """Single samples make the rows of their batch, both branches of guidance in front."""
    assert same(stacked([alone(i) for i in range(4)], rows(4)), rows(4))


def test_rows_are_taken_apart() -> None:
    """A sample's rows are found in its batch; moving all and moving back changes nothing."""
    assert same(taken(rows(4), alone(0), 4, [2]), alone(2))
    moved = taken(rows(4), alone(0), 4, [1, 2, 3, 0])
    assert moved["plain"][:, 0].tolist() == [1, 2, 3, 0]
    assert moved["branches"][:, 0].tolist() == [1, 2, 3, 0, 101, 102, 103, 100]
    assert same(taken(moved, alone(0), 4, [3, 0, 1, 2]), rows(4))


def test_every_case_has_a_batch_or_says_why_not() -> None:
    """No case of the matrix ends in anything else."""
    counts = set()
    for case in all_cases():
        if (
            case.variant.size not in {"tiny", "-"}
            or case.refused
            or case.component.startswith("training")
        ):
            continue
        try:
            counts.add(batch_of(case, case.inputs()))
        except UnsupportedError:
            counts.add(1)
    assert {1, 2, 3} <= counts


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_any_sample_can_be_the_one_that_stays(kept: int) -> None:
    """It keeps its place, and every other sample is another."""
    _, inputs = inputs_of(UNET)
    found = among_others(inputs, 3, 3, kept)["sample"]
    same = [np.array_equal(a, b) for a, b in zip(found, inputs["sample"], strict=True)]
    assert same == [i == kept for i in range(3)]
