"""Proof of power: mutants of samplers in sigmas and of pictures made of pictures, by hand.

The gate computes in float32 where each mutant has to be named; here that place is written down, and
float64 has to name it.
"""

from __future__ import annotations

import pytest

from conformance.case import find_case
from conformance.execution import Execution
from conformance.tolerance import LIMIT, badness

torch = pytest.importorskip("torch")

from conformance.mutants.catalogue import CATALOGUE, find_mutants
from conformance.mutants.gate import quiet_runner
from conformance.sampling import IMAGE_TO_IMAGE, INPAINT, SIGMA_FAMILY

PLACES = {
    "sch-lms-sigma-order": "sigmas",
    "sch-karras-hardcoded-range": "sigmas",
    "sch-sigma-whole-timesteps": "sigmas",
    "sch-timesteps-cut": "timesteps",
    "sch-offset-everywhere": "sigmas",
    "sch-init-sigma-leading": "init_noise_sigma",
    "sch-karras-linear-lookup": "timesteps",
    "own-karras-rho": "sigmas",
    "sch-dpm-final-sigma": "sigmas",
    "fix-dpm-karras-range": "sigmas",
    "sch-lms-evenly-spaced": "samples#1",
    "fix-lms-late-order": "samples#0",
    "sch-scale-model-input-missing": "model_inputs#0",
    "sch-velocity-unscaled": "samples#0",
    "sch-ancestral-down-up": "samples#0",
    "sch-ancestral-noise-shared": "samples#0",
    "sch-heun-wrong-sigma": "model_inputs#1",
    "sch-heun-second-alone": "samples#1",
    "sch-heun-tried-sample": "samples#1",
    "own-heun-mean": "samples#1",
    "sch-dpm-lower-order-final": "samples#49",
    "sch-dpm-minus-lost": "samples#0",
    "sch-dpm-ratio-inverted": "samples#1",
    "own-dpm-correction-sign": "samples#1",
    "sch-dpm-fifteen-steps": "samples#14",
    "sch-dup-timesteps-karras": "samples#47",
    "pipe-image-range": "init_image",
    "pipe-image-bgr": "init_image",
    "pipe-resize-multiple": "init_image",
    "pipe-image-mean": "image_latents",
    "pipe-image-latents-unscaled": "image_latents",
    "pipe-init-image-batch": "initial_latents",
    "pipe-img2img-t-plus-one": "initial_latents",
    "pipe-img2img-kdiff-noise": "initial_latents",
    "sch-lms-add-noise": "initial_latents",
    "sch-dpm-add-noise": "initial_latents",
    "fix-img2img-full-strength": "initial_latents",
    "pipe-inpaint-init-sigma": "initial_latents",
    "pipe-inpaint-full-strength": "initial_latents",
    "pipe-inpaint-mask-batch": "model_input#0",
    "pipe-inpaint-channel-order": "model_input#0",
    "pipe-inpaint-channels-divided": "model_input#0",
    "pipe-inpaint-timestep-left": "latents#0",
    "pipe-inpaint-noisy-end": "latents#1",
    "pipe-inpaint-masked-black": "masked_image",
    "pipe-inpaint-not-masked": "masked_image",
    "pipe-inpaint-mask-inverted": "mask",
    "pipe-inpaint-mask-averaged": "mask",
    "pipe-inpaint-mask-middle": "mask",
    "own-mask-129": "mask",
}

REFUSED = {
    "pipe-strength-rounded-up": "output latents#1 is none of this component",
    "pipe-img2img-order-stride": "latents#7 is none of this component",
    "sch-add-noise-noflatten": "The size of tensor",
}
"""What ends in an error, and how the message says why: too many steps, or shapes that differ."""

COMPONENTS = {*(f"scheduler/{name}" for name in SIGMA_FAMILY), IMAGE_TO_IMAGE, INPAINT}


def run(name: str):
    """Run the first case that hunts a mutant, in float64 where it answers."""
    (mutant,) = find_mutants([name])
    case = find_case(mutant.case_ids[0])
    dtype = mutant.dtype if mutant.refuses else "float64"
    return quiet_runner(mutant).run(case, Execution(dtype=dtype).for_case(case))


@pytest.mark.parametrize("name", PLACES)
def test_a_mutant_is_named_at_its_step_and_term(name: str):
    """The first wrong table, step or term is the one that the mutant changes."""
    result = run(name)
    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == PLACES[name]
    assert badness(result.first_divergence["ratio"]) >= 2 * LIMIT


@pytest.mark.parametrize("name", REFUSED)
def test_a_mutant_that_cannot_be_judged_says_why(name: str):
    """Too many steps, and latents that do not fit, are errors whose message names them."""
    result = run(name)
    assert (result.verdict, result.first_divergence) == ("error", None)
    assert REFUSED[name] in result.message


def test_every_mutant_of_these_has_its_place():
    """A mutant that is added to the catalogue is added here too."""
    wrong = {m.id for m in CATALOGUE if m.component in COMPONENTS and not m.null}
    assert wrong == {*PLACES, *REFUSED}
