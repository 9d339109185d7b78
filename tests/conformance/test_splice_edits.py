"""Splice mode of the pipelines that begin with a picture: who reads which term."""

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance.case import find_case
from conformance.port import resolve
from conformance.sampling import IMAGE_TO_IMAGE, INPAINT, SPLICED_TERMS, term_and_step

EDIT = f"{IMAGE_TO_IMAGE}/tiny/shared"
NINE = f"{INPAINT}/tiny-inpaint/shared"
FOUR = f"{INPAINT}/tiny/shared"

READERS = {
    (EDIT, "init_image"): "image_latents",
    (EDIT, "image_latents"): "initial_latents",
    (EDIT, "initial_latents"): "model_input#0",
    (NINE, "init_image"): "image_latents",
    (NINE, "image_latents"): "initial_latents",
    (NINE, "masked_image"): "masked_image_latents",
    (NINE, "masked_image_latents"): "model_input#0",
    (NINE, "latents#0"): "model_input#1",
    (FOUR, "image_latents"): "initial_latents",
    (FOUR, "initial_latents"): "model_input#0",
    (FOUR, "unblended#0"): "latents#0",
    (FOUR, "latents#0"): "model_input#1",
}


@cache
def loaded(port: str, case_id: str):
    """Return the component of a case."""
    case = find_case(case_id)
    return resolve(port).load(case.component, case.variant, case.weights(), "float32", "cpu")


def draw(case_id: str, replace=None, port: str = "sd1_impl"):
    """Draw the pictures of a case and return every term, in the order of execution."""
    case = find_case(case_id)
    inputs = case.inputs()
    outputs, probes = loaded(port, case_id).run(inputs, case.terms, replace)
    for name, array in case.inputs().items():
        assert np.array_equal(inputs[name], array), f"input {name} was changed"
    found = outputs | probes
    return {name: found[name] for name in [*case.terms, "image", "image_uint8"]}


@cache
def plain(case_id: str):
    """Return every term when nothing is replaced."""
    return draw(case_id)


def test_every_term_of_pictures_is_tried() -> None:
    """What is overwritten here, and in text to image, is all that is overwritten."""
    here = {term_and_step(name)[0] for _, name in READERS}
    own = {"init_image", "image_latents", "masked_image", "masked_image_latents", "unblended"}
    assert own <= here <= set(SPLICED_TERMS)


@pytest.mark.parametrize(("case_id", "name"), READERS)
def test_a_term_reaches_what_reads_it(case_id: str, name: str) -> None:
    """The next that reads a term computes with the value put in, and nothing before it changes."""
    before = plain(case_id)
    terms = draw(case_id, {name: np.float64(1.5) * before[name] + 0.25})
    changed = [n for n, array in terms.items() if not np.array_equal(array, before[n])]
    assert changed[0] == READERS[case_id, name]
    assert changed[-1] == "image_uint8"


@pytest.mark.parametrize("case_id", [EDIT, NINE, FOUR])
def test_the_reference_reads_what_was_put_in(case_id: str) -> None:
    """diffusers, watched from outside, has the same readers: one run with all values put in."""
    pytest.importorskip("diffusers")
    before = plain(case_id)
    values = {
        name: np.float64(1.5) * array + 0.25
        for name, array in before.items()
        if term_and_step(name)[0] in SPLICED_TERMS
    }
    ours, theirs = draw(case_id, values), draw(case_id, values, "diffusers")
    for name, array in ours.items():
        if array.dtype.kind == "f":
            assert np.allclose(theirs[name], array, rtol=1e-4, atol=1e-4), name
            assert name.startswith(("init_image", "prompt", "negative", "timestep", "mask")) or (
                not np.array_equal(array, before[name])
            ), name


def test_four_channels_keep_what_the_mask_keeps() -> None:
    """Black of the mask is the picture's own latents after the last step; white is the step's."""
    terms = plain(FOUR)
    last = f"#{find_case(FOUR).scenario.calls - 1}"
    kept = np.broadcast_to(terms["mask"] == 0, terms[f"latents{last}"].shape)
    own = np.broadcast_to(terms["image_latents"], kept.shape)
    assert np.array_equal(terms[f"latents{last}"][kept], own[kept])
    assert np.array_equal(terms[f"latents{last}"][~kept], terms[f"unblended{last}"][~kept])
    assert 0.2 < kept.mean() < 0.8
