"""The lines of `sd1_impl` that do it right, for every probe and term that can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("regex")

import sd1_impl
from conformance.adapters.sd1_impl_sources import MOST_LINES, source_of
from conformance.case import COMPONENTS, all_cases, find_case
from conformance.evidence.sources import find_sources
from conformance.golden_files import load_golden

UNET = "unet/tiny/base"
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"

LINES = {
    (UNET, "conv_in"): ("unet.py", "self.conv_in = nn.Conv2d("),
    (UNET, "time_proj"): ("embeddings.py", "self.flip_sin_to_cos else halves"),
    (UNET, "sample"): ("unet.py", "return self.conv_out("),
    (UNET, "down_blocks.0.resnets.0.norm1"): ("resnet.py", "self.norm1 = nn.GroupNorm("),
    (UNET, "down_blocks.0.resnets.0.norm2.input"): ("resnet.py", "F.silu(self.norm2(residual), "),
    (UNET, f"{ATTENTION}.attn1.to_out.0.input"): ("attention.py", "attended.transpose(1, 2)"),
    (UNET, f"{ATTENTION}.ff.net.0"): ("attention.py", "F.gelu(gate).mul_(value)"),
    (UNET, "mid_block"): ("unet.py", "return self.resnets[1]"),
    ("vae_decoder/tiny/base", "post_quant_conv.input"): ("vae.py", "self.config.scaling_factor"),
    ("vae_decoder/tiny/base", "image"): ("vae.py", "self.decoder("),
    ("vae_encoder/tiny/base", "latents"): ("vae.py", "posterior.sample(noise)"),
    ("vae_encoder/tiny/base", "encoder.down_blocks.0.downsamplers.0.conv"): (
        "vae.py",
        "F.pad(hidden, (0, 1, 0, 1))",
    ),
    ("text_encoder/tiny/base", "text_model.encoder.layers.0.mlp.fc2.input"): (
        "text_encoder.py",
        "torch.sigmoid(self.coefficient * hidden)",
    ),
    ("block/time_embedding/tiny/base", "linear_1"): ("embeddings.py", "self.linear_1 = nn.Linear"),
    ("tokenizer/-/plain", "input_ids"): ("tokenizer.py", "return ids"),
    ("scheduler/ddim/-/base", "samples#3"): ("schedulers/ddim.py", "return prev_sample"),
    ("scheduler/ddim/-/base", "betas"): ("schedulers/noise_schedule.py", "self.betas = np.lin"),
    ("scheduler/heun/-/base", "samples#3"): ("schedulers/heun.py", "return x + (sigma_next"),
    ("scheduler/heun/-/base", "model_inputs#0"): ("schedulers/sigma_schedule.py", "math.sqrt("),
    ("pipeline/txt2img/tiny/base", "noise_pred#2"): ("pipeline.py", "scale * (conditional"),
    ("pipeline/txt2img/tiny/base", "latents#2"): ("schedulers/pndm.py", "self.transfer("),
    ("pipeline/txt2img/tiny/base", "model_input#2"): ("pipeline.py", "scale_model_input("),
    ("pipeline/txt2img/tiny/base", "vae.post_quant_conv.input"): ("vae.py", "scaling_factor"),
    ("pipeline/img2img/tiny/base", "initial_latents"): ("image_to_image.py", "add_noise("),
    ("pipeline/inpaint/tiny/base", "latents#0"): ("inpainting.py", "(1 - mask) * known"),
    ("pipeline/inpaint/tiny/base", "unblended#0"): ("schedulers/", "return"),
    ("pipeline/inpaint/tiny-inpaint/base", "model_input#0"): ("inpainting.py", "torch.cat("),
}


@pytest.mark.parametrize(("where", "what"), LINES.items(), ids=range(len(LINES)))
def test_lines(where, what):
    """The lines are those that make the probe, and the marked ones name it."""
    (case_id, probe), (file, text) = where, what
    found = source_of(find_case(case_id), probe)
    assert found["file"].startswith(f"sd1_impl/{file}")
    marked = [found["lines"][number - found["start"]] for number in found["marked"]]
    assert any(text in line for line in marked), marked
    whole = (Path(sd1_impl.__file__).parents[1] / found["file"]).read_text("utf-8").splitlines()
    end = found["start"] - 1 + len(found["lines"])
    assert whole[found["start"] - 1 : end] == found["lines"]
    assert len(found["lines"]) <= MOST_LINES


def test_every_probe_has_lines():
    """There is no kind of probe, table, term or output without its lines."""
    missing = []
    for component in COMPONENTS:
        cases = [c for c in all_cases() if c.component == component and not c.refused]
        case = next(c for c in cases if c.scenario.name in {"base", "plain"})
        golden = load_golden(case)
        kinds = {
            name.translate(str.maketrans("", "", "0123456789")): name for name in golden.probes
        }
        for name in [*kinds.values(), *golden.tables, *golden.output_shapes]:
            found = source_of(case, name)
            if found is None or not found["marked"]:
                missing.append((component, name))
    assert missing == []


@pytest.mark.parametrize("probe", ["no.such.layer", "conv_in.weight", "", "__init__", "\ud800"])
def test_a_name_that_is_none(probe):
    """A probe that nobody has, which a port may report, is left out or stands for the output."""
    for case_id in (UNET, "scheduler/ddim/-/base", "pipeline/txt2img/tiny/base"):
        found = source_of(find_case(case_id), probe)
        assert found is None or found["file"].startswith("sd1_impl/")


def failing(case: str, *probes: str) -> dict:
    """Build what is read of a failing line."""
    records = [{"name": name, "verdict": "fail", "kind": "probe"} for name in probes]
    component = case.partition("[")[0].rsplit("/", 2)[0]
    return {"case": case, "component": component, "verdict": "fail", "probes": records}


def test_first_divergence_and_first_probe_of_each_fault():
    """Each fault has the lines of its first probe, in the order of execution."""
    lines = [failing(f"{UNET}[float32-cpu-sdpa-splice]", "conv_in", "mid_block", "conv_norm_out")]
    lines.append(failing("vae_decoder/tiny/base[float32-cpu-sdpa-splice]", "decoder.conv_in"))
    faults = [
        {"component": "unet", "names": ["conv_norm_out", "mid_block"]},
        {"component": "vae_decoder", "names": ["decoder.conv_in"]},
        {"component": "unet", "names": []},
        {"names": ["no component"]},
    ]
    first = {"case": lines[0]["case"], "probe": "conv_in"}
    found = find_sources(first, faults, lines)
    assert list(found) == ["conv_in", "mid_block", "decoder.conv_in"]
    assert find_sources(None, faults, lines) == {}


def test_nothing_where_it_cannot_be_found(monkeypatch):
    """A published slice is no case; where torch is missing there are no lines at all."""
    first = {"case": "witness/unet/v1-4/slice", "probe": "sample"}
    assert find_sources(first, [], []) == {}
    monkeypatch.setitem(sys.modules, "conformance.adapters.sd1_impl_sources", None)
    assert find_sources({"case": UNET, "probe": "conv_in"}, [], []) == {}


def test_weights_of_the_users_own():
    """A case of the user's own weights has no id of the catalogue: it is given."""
    case = find_case(UNET)
    own = "unet/mine/base"
    first = {"case": f"{own}[float32-cpu-sdpa-splice]", "probe": "conv_in"}
    assert find_sources(first, [], []) == {}
    assert "conv_in" in find_sources(first, [], [], {own: case})
