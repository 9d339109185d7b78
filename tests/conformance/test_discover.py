"""What `golden/spec/` freezes is what the installed oracle gives: names, shapes, order, ids."""

import re

import pytest

pytest.importorskip("diffusers")

from conformance import spec
from conformance.case import NETWORKS
from conformance.errors import GoldenError
from conformance.recording import discover
from conformance.recording.writer import write_spec

TEXT_LAYER = [
    "layer_norm1",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj.input",
    "self_attn.out_proj",
    "self_attn",
    "layer_norm2.input",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2.input",
    "mlp.fc2",
    "mlp",
]
ATTENTION = ["group_norm", "to_q", "to_k", "to_v", "to_out.0.input", "to_out.0"]


@pytest.fixture(scope="module")
def derived():
    """What the installed oracle gives, by file name."""
    return discover.derive_spec()


@pytest.mark.parametrize("name", ["parameters.json", "probes.json", "prompts.json"])
def test_frozen_files_are_derived(derived, name):
    """Derived again, each file is the same text."""
    assert (spec.golden_root() / "spec" / name).read_text("utf-8") == derived[name]


def test_every_derived_file_is_compared(derived):
    """Nothing is derived that the test above does not look at."""
    assert list(derived) == ["parameters.json", "probes.json", "prompts.json"]


def test_derived_files_are_written(golden_copy, derived):
    """Writing the spec replaces the files of the folder in use, and no other."""
    folder = golden_copy.root / "spec"
    names = {path.name for path in folder.iterdir()}
    (folder / "probes.json").write_text("{}", "utf-8")
    changed = write_spec(derived)

    assert [path.name for path, is_other in changed.items() if is_other] == ["probes.json"]

    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "probes.json").read_text("utf-8") == derived["probes.json"]


def test_probes_of_the_text_encoder():
    """Embeddings, thirteen probes a layer, the last norm: pinned, so that none is lost."""
    layers = [
        f"text_model.encoder.layers.{i}{part}"
        for i in range(3)
        for part in (*(f".{name}" for name in TEXT_LAYER), "")
    ]
    assert list(spec.probe_names("text_encoder", "tiny")) == [
        "text_model.embeddings.token_embedding",
        "text_model.embeddings",
        *layers,
        "text_model.final_layer_norm",
    ]


@pytest.mark.parametrize(("half", "part"), [("encoder", "down"), ("decoder", "up")])
def test_probes_of_the_autoencoder(half, part):
    """Attention core, every resnet, samplers in order; the scaled latents open the decoder."""
    names = list(spec.probe_names(f"vae_{half}", "tiny"))
    mid = [n for n in names if n.startswith(f"{half}.mid_block.attentions.0.")]
    assert [n.removeprefix(f"{half}.mid_block.attentions.0.") for n in mid] == ATTENTION
    samplers = [n for n in names if re.fullmatch(rf"{half}\.{part}_blocks\.\d\..*samplers\.0", n)]
    assert [n.split(".")[2] for n in samplers] == ["0", "1", "2"]
    if half == "encoder":
        assert (names[0], names[-1]) == ("encoder.conv_in", "quant_conv")
    else:
        assert names[:2] == ["post_quant_conv.input", "post_quant_conv"]
        assert names[-1] == "decoder.conv_out"


@pytest.mark.parametrize(
    ("component", "size", "probes", "blocks"),
    [
        ("text_encoder", "tiny", 45, 5),
        ("text_encoder", "sd1", 171, 14),
        ("unet", "tiny", 624, 57),
        ("unet", "odd", 625, 57),
        ("vae_encoder", "tiny", 74, 23),
        ("vae_decoder", "sd1", 95, 27),
    ],
)
def test_number_of_probes(component, size, probes, blocks):
    """Probes of a size, and the named blocks among them: pinned, so that none is lost."""
    names = spec.probe_names(component, size)
    assert len(names) == len(set(names)) == probes
    assert len(spec.block_names(component) & set(names)) == blocks


@pytest.mark.parametrize("component", NETWORKS)
def test_probes_of_a_size_are_those_of_its_layers(component):
    """A size has no probe of a layer that it lacks, and one at least of every layer that it has."""
    for size in spec.architectures(component):
        layers = {name.rpartition(".")[0] for name in spec.parameter_shapes(component, size)}
        probed = {name.removesuffix(".input") for name in spec.probe_names(component, size)}
        unprobed = {"text_model.embeddings.position_embedding"} & layers
        assert layers - probed == unprobed


def test_a_size_with_other_names_is_refused(monkeypatch):
    """Sizes share one list of names: a size whose names do not fit it is said to."""
    build = discover.build_vae

    def renamed(variant):
        module = build(variant)
        if variant.size == "sd1":
            module.other_conv = module.quant_conv
            del module.quant_conv
        return module

    monkeypatch.setattr(discover, "build_vae", renamed)
    with pytest.raises(GoldenError, match="vae_encoder/sd1 has parameters of another name"):
        discover.derive_spec()
