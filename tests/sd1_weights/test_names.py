"""The table of names: `golden/spec/layouts.json`."""

import pytest

from conformance import spec
from conformance.adapters.rename import table_of
from sd1_weights import names
from sd1_weights.errors import CheckpointError

FOLDERS = [
    (f, c, size) for f, c in spec.FOLDER_COMPONENTS.items() for size in spec.architectures(c)
]


@pytest.mark.parametrize(("folder", "component", "size"), FOLDERS)
def test_key_table_is_one_to_one(folder, component, size):
    """Every parameter has a key of its own, from which its name comes back."""
    canonical = list(spec.checkpoint_shapes(folder, size))
    keys = [names.compvis_key(folder, name) for name in canonical]
    assert len(set(keys)) == len(canonical)
    assert [names.canonical_key(folder, key) for key in keys] == canonical
    own = [f"{names.prefix(folder)}{key}" for key in keys]
    table = table_of("compvis", component)
    assert [table.translate(key).names for key in own] == [(name,) for name in canonical]


CONVERTERS = {
    "unet": ("convert_ldm_unet_checkpoint", {"layers_per_block": 2, "class_embed_type": None}),
    "vae": ("convert_ldm_vae_checkpoint", {"down_block_types": [0] * 4, "up_block_types": [0] * 4}),
}


@pytest.mark.parametrize("size", ["tiny", "odd", "sd1"])
@pytest.mark.parametrize("folder", CONVERTERS)
def test_key_table_is_diffusers(folder, size):
    """The conversion that diffusers has for CompVis checkpoints gives the same names."""
    torch = pytest.importorskip("torch")
    tools = pytest.importorskip("diffusers.loaders.single_file_utils")
    name, config = CONVERTERS[folder]
    shapes = spec.checkpoint_shapes(folder, size)
    keys = {n: f"{names.prefix(folder)}{names.compvis_key(folder, n)}" for n in shapes}
    file = {key: torch.full((1,), i) for i, key in enumerate(keys.values())}
    converted = getattr(tools, name)(dict(file), config)
    assert {n: int(t) for n, t in converted.items()} == {n: i for i, n in enumerate(shapes)}


@pytest.mark.parametrize("key", ["", "conv_in.weight", "input_blocks", "input_blocks.12.0.weight"])
def test_unknown_key(key):
    """What the table does not have is refused, not handed back as it is."""
    with pytest.raises(CheckpointError, match="the unet has nothing of the CompVis name '"):
        names.canonical_key("unet", key)


def test_damaged_table(tmp_path, monkeypatch):
    """A golden folder without the table is named."""
    monkeypatch.setenv("SD1_GOLDEN", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"layouts\.json cannot be read"):
        names.prefix("unet")


def test_averaged_keys_are_one_to_one():
    """Without their dots the names of the UNet are still different ones."""
    known = spec.checkpoint_shapes("unet", "sd1")
    keys = [names.ema_key(name) for name in known]
    assert len(set(keys)) == len(known) == 686
    assert keys[0].startswith("model_ema.diffusion_model")
    assert names.ema_key("conv_in.weight") == "model_ema.diffusion_modelinput_blocks00weight"


def test_old_names_are_todays():
    """Those of the VAE's attention, and no others."""
    start = "decoder.mid_block.attentions.0"
    assert names.current_name("vae", f"{start}.query.weight") == f"{start}.to_q.weight"
    assert names.current_name("vae", f"{start}.key.bias") == f"{start}.to_k.bias"
    assert names.current_name("vae", f"{start}.value.bias") == f"{start}.to_v.bias"
    assert names.current_name("vae", f"{start}.proj_attn.weight") == f"{start}.to_out.0.weight"
    for network in names.NETWORKS:
        shapes = spec.checkpoint_shapes(network, "sd1")
        assert [names.current_name(network, name) for name in shapes] == list(shapes)


def test_projections_that_may_be_convolutions():
    """Every attention block's projections, whose shapes say nothing else."""
    for network in names.NETWORKS:
        shapes = spec.checkpoint_shapes(network, "sd1")
        assert names.either(network) <= set(shapes)
    assert len(names.either("unet")) == 2 * 16
    assert len(names.either("vae")) == 2 * 4
