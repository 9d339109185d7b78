"""Recording: what a golden holds of each kind of case, and how the folder is written."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from conformance.case import all_cases, find_case
from conformance.errors import GoldenError
from conformance.golden_files import load_golden
from conformance.large import Large
from conformance.manifest import read_manifest
from conformance.recorded import arithmetics, mixed_arithmetics
from conformance.recording import record, writer
from conformance.recording.verify import age_of, disagreement

PLAIN = find_case("tokenizer/-/plain")
FLOATS = ("float64", "float32")
EVERY = (*FLOATS, "bfloat16", "float16")
OFFERED = {
    "text_encoder/tiny/base": EVERY,
    "text_encoder/tiny-dense/base": FLOATS,
    "vae_encoder/tiny/saturated": EVERY,
    "vae_encoder/tiny/offset": FLOATS,
    "vae_decoder/tiny/border": EVERY,
    "vae_decoder/tiny/offset": FLOATS,
    "vae_decoder/tiny-dense/base": FLOATS,
    "unet/tiny-offset/base": EVERY,
}
RECIPES = {
    "text_encoder/tiny/base": {"input_ids": "literal"},
    "vae_encoder/tiny/border": {
        "image": "inputs/vae_encoder/border/image",
        "noise": "inputs/vae_encoder/border/noise",
    },
    "unet/tiny/t0": {
        "sample": "inputs/unet/t0/sample",
        "timestep": "literal",
        "encoder_hidden_states": "inputs/unet/t0/encoder_hidden_states",
    },
}


@pytest.mark.parametrize("case_id", OFFERED)
def test_arithmetics(case_id):
    """Half types are offered where they round neither weights nor inputs."""
    case = find_case(case_id)
    assert arithmetics(case) == OFFERED[case_id] + mixed_arithmetics(case)


def test_half_types_round_no_input():
    """Whatever is offered in half types has inputs that both of them hold exactly."""
    for case in all_cases():
        if case.exact or "float16" not in arithmetics(case):
            continue
        for name, array in case.inputs().items():
            if array.dtype == np.float32 and name != "timestep":
                assert np.array_equal(array.astype(np.float16), array), case.id
                assert not np.any(array.view(np.uint32) & 0xFFFF), case.id


def test_tokenizer_golden():
    """Recorded again, ids and texts are what is stored, and nothing else is."""
    golden = record.record_case(PLAIN)
    assert golden.exact
    assert golden.inputs["text"]["value"] == ["a photo of a cat"]
    assert golden.inputs["text"]["dtype"] == "str"
    assert disagreement(load_golden(PLAIN), golden) is None
    golden.outputs["input_ids"][0, 1] = 0
    assert disagreement(load_golden(PLAIN), golden).startswith("input_ids is not what")


@pytest.mark.parametrize("case_id", RECIPES)
def test_input_facts(case_id):
    """An input is named by its recipe; what no recipe makes stands there itself."""
    case = find_case(case_id)
    facts = record.input_facts(case)
    assert {name: fact["recipe"] for name, fact in facts.items()} == RECIPES[case_id]
    for name, array in case.inputs().items():
        assert ("value" in facts[name]) == (RECIPES[case_id][name] == "literal")
        assert np.array_equal(facts[name].get("value", array), array)


def test_large_outputs_are_not_stored_whole(monkeypatch):
    """Over the limit a sketch and the edges are kept, by which the golden's age is told too."""
    case = find_case("text_encoder/tiny/short")
    monkeypatch.setattr(record, "WHOLE_LIMIT", 64 * 77 - 1)
    truth = record.Reference(case.component, case.variant).truth(case)
    golden = record._golden(case, truth, {"trace": {}})
    assert (list(golden.outputs), list(golden.large)) == (["pooler_output"], ["last_hidden_state"])
    stored = load_golden(case)
    golden = replace(golden, noise=stored.noise, output_noise=stored.output_noise)
    assert age_of(golden, truth) is None
    aged = truth.outputs["last_hidden_state"].numpy() * (1 + 1e-9)
    golden.large["last_hidden_state"] = Large.of(aged)
    assert age_of(golden, truth).startswith("output last_hidden_state is ")
    monkeypatch.setattr(record, "WHOLE_LIMIT", 64 * 77)
    assert record._golden(case, truth, {"trace": {}}).large == {}


def test_write(golden_copy):
    """A golden is written with its digest, in a manifest of one golden a line, and locked."""
    before = golden_copy.manifest()
    case = find_case("tokenizer/-/empty")
    size = writer.write(record.record_case(case))
    assert np.array_equal(load_golden(case).outputs["input_ids"], [[49406] + 76 * [49407]])
    assert size == golden_copy.path(case.id).stat().st_size
    manifest = read_manifest()
    assert {k: v for k, v in manifest.items() if k != "goldens"} == {
        k: v for k, v in before.items() if k != "goldens"
    }
    assert list(manifest["goldens"]) == sorted([*before["goldens"], case.id])
    lines = (golden_copy.root / "manifest.json").read_text("utf-8").splitlines()
    assert sum(json.dumps(case.id) in line for line in lines) == 1
    assert len(lines) == len(manifest["goldens"]) + 3
    lock = (golden_copy.root / "cases.lock").read_text("utf-8").splitlines()
    refused = [case.id for case in all_cases() if case.refused]
    assert lock == sorted([*manifest["goldens"], *refused])
    assert not [path for path in golden_copy.root.rglob(".*") if path.is_file()]


def test_noise_is_added_to_a_golden_that_exists():
    """`golden record --dtype` changes the noise of those arithmetics and nothing else."""
    added = pytest.importorskip("conformance.recording.added_noise")
    case = find_case("text_encoder/tiny-outlier/base")
    before = load_golden(case)
    after = added.with_noise(case, ["policy:autocast"])
    assert disagreement(before, after) is None
    kept = [a for a in before.noise if a != "policy:autocast"]
    assert all(np.array_equal(before.noise[a], after.noise[a]) for a in kept)
    assert np.array_equal(before.sketches, after.sketches)


def test_noise_is_not_added_to_an_aged_golden(monkeypatch):
    """Noise of another truth would be that of another golden."""
    added = pytest.importorskip("conformance.recording.added_noise")
    case = find_case("text_encoder/tiny-outlier/base")
    aged = load_golden(case)
    aged.sketches = aged.sketches * (1 + 1e-6)
    monkeypatch.setattr(added, "load_golden", lambda _: aged)
    with pytest.raises(GoldenError, match="record all of it again"):
        added.with_noise(case, ["tf32"])
