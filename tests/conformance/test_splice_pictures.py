"""Splice mode of text to image: who reads which term."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conformance.adapters.torch_sampling import PipelineComponent
from conformance.case import find_case
from conformance.port import resolve
from conformance.sampling import SPLICED_TERMS, term_and_step

PICTURE = "pipeline/txt2img/tiny/ddim2"
TERMS = [*find_case(PICTURE).terms, "image", "image_uint8"]
ALL_TERMS = {term_and_step(term)[0] for term in TERMS}


@pytest.fixture(scope="module")
def draw():
    """Return a function that draws the picture of a case and returns every term."""
    case = find_case(PICTURE)
    arguments = (case.variant, case.weights(), "float32", "cpu")
    component = resolve("sd1_impl").load(case.component, *arguments)

    def call(replace=None, case_id=PICTURE):
        inputs = find_case(case_id).inputs()
        outputs, probes = component.run(inputs, find_case(case_id).terms, replace)
        assert all(np.array_equal(a, inputs[n]) for n, a in find_case(case_id).inputs().items())
        return outputs | probes

    return call


@pytest.fixture(scope="module")
def plain(draw):
    """Return every term of the picture when nothing is replaced."""
    return draw()


def changed(terms, plain):
    """Return the terms that differ, in the order of execution."""
    assert terms.keys() == plain.keys() == set(TERMS)
    return [name for name in TERMS if not np.array_equal(terms[name], plain[name])]


READERS = {
    "initial_latents": "model_input#0",
    "prompt_embeds": "noise_pred_text#0",
    "negative_prompt_embeds": "noise_pred_uncond#0",
    "noise_pred_uncond#0": "noise_pred#0",
    "noise_pred_text#0": "noise_pred#0",
    "noise_pred_text#1": "noise_pred#1",
    "noise_pred#0": "latents#0",
    "latents#0": "model_input#1",
    "latents#1": "vae.post_quant_conv.input",
    "vae.post_quant_conv.input": "vae",
    "vae": "image",
}


@pytest.mark.parametrize("name", READERS)
def test_a_term_reaches_what_reads_it(draw, plain, name):
    """A term is shown as it was computed; the next that reads it computes with the value put in."""
    assert {term_and_step(term)[0] for term in READERS} == set(SPLICED_TERMS) & ALL_TERMS
    found = changed(draw({name: np.float64(1.5) * plain[name]}), plain)
    assert found[0] == READERS[name]
    assert found[-1] == "image_uint8"
    if name == "negative_prompt_embeds":
        assert "noise_pred_text#0" not in found


def test_arithmetic_of_what_was_put_in(draw, plain):
    """Guided noise is made of the replaced halves, and the model is given the replaced latents."""
    rng = np.random.default_rng(0)
    names = ("noise_pred_uncond#0", "noise_pred_text#0", "latents#0", "vae")
    values = {name: rng.standard_normal(plain[name].shape) for name in names}
    terms = draw(values)
    uncond, text, latents, decoded = values.values()
    assert np.allclose(terms["noise_pred#0"], uncond + 7.5 * (text - uncond), atol=1e-5)
    assert np.array_equal(terms["model_input#1"], latents.astype(np.float32))
    assert np.allclose(terms["image"], (decoded / 2 + 0.5).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("name", ["pndm2", "ddpm", "guidance1"])
def test_replaced_latents_in_other_runs(draw, name):
    """Whatever the scheduler, each next step is given the latents that were put in."""
    case = find_case(f"pipeline/txt2img/tiny/{name}")
    shape = (case.scenario.calls, *case.inputs()["latents"].shape)
    latents = np.random.default_rng(0).standard_normal(shape)
    terms = draw({f"latents#{k}": value for k, value in enumerate(latents)}, case.id)
    for k, wanted in enumerate(latents[:-1].astype(np.float32), start=1):
        assert np.array_equal(terms[f"model_input#{k}"], wanted)
    assert np.allclose(terms["vae.post_quant_conv.input"] * 0.18215, latents[-1], atol=1e-5)


def test_nothing_else_is_replaced(draw, plain):
    """Terms that nothing reads, ids and misshapen values leave the run as it is."""
    values = {n: plain[n] * 0 for n in TERMS if term_and_step(n)[0] not in SPLICED_TERMS}
    values |= {"latents#0": plain["latents#0"][:, :, 1:], "samples#0": plain["latents#0"]}
    assert "model_input#0" in values
    assert changed(draw(values), plain) == []


def test_a_term_is_overwritten_by_what_the_callback_returns():
    """When noise is measured a callback gives the values: of the terms asked for, and at once."""

    def add_up(_, show):
        latents = torch.ones(2)
        show("latents#0", latents)
        show("vae", 2 * latents)
        show("image", 6 * latents)

    def callback(name, tensor):
        assert (name, tensor.tolist()) == ("latents#0", [1, 1])
        return torch.full((2,), 5.0)

    outputs = PipelineComponent(add_up, torch.float32).traced({}, ["latents#0"], callback)
    assert outputs["image"].tolist() == [30, 30]
