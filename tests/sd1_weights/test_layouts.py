"""Every layout in: which it is, what is in it, what is missing; nothing is guessed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance import spec
from conformance.export import stored, write_checkpoint
from conformance.variants import parse_variant
from sd1_weights import names, save
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import Checkpoint, read_checkpoint
from sd1_weights.schedule import schedule
from sd1_weights.sizes import shapes_of
from sd1_weights.stored import Stored

TINY = parse_variant("tiny")
NETWORKS = {"unet": "unet", "vae": "vae_encoder", "text_encoder": "text_encoder"}


def tensors_of(network: str, seed: int = 1) -> dict[str, Stored]:
    """Return the recipe's weights of a network."""
    weights = TINY.weights("pipeline/txt2img", seed).part(network)
    return stored(weights, weights.shapes)


def same(checkpoint: Checkpoint, network: str, seed: int = 1) -> None:
    """Demand that a network's weights are the recipe's, bit for bit, and in order."""
    wanted = tensors_of(network, seed)
    found = checkpoint.network(network).fitted(shapes_of(network, "tiny"))
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert np.array_equal(found[name].float32(), tensor.float32()), name


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """The tiny variant as a CompVis file."""
    path = tmp_path_factory.mktemp("single") / "a.safetensors"
    write_checkpoint(TINY, "compvis", "float32", path)
    return path


def edited(path: Path, to: Path, change) -> Path:
    """Copy a file of weights with other tensors."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, to)
    return to


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("layout", "name"), [("compvis", "a.safetensors"), ("compvis", "a.ckpt"), ("diffusers", "a")]
)
def test_round_trip(tmp_path: Path, layout: str, name: str, dtype: str) -> None:
    """What is written in a layout and dtype is read back, bit for bit."""
    written = write_checkpoint(TINY, layout, dtype, tmp_path / name)
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.layout == layout
    for network, tensors in written.items():
        own = checkpoint.network(network)
        assert (own.size, own.unexpected) == ("tiny", [])
        found = own.fitted(shapes_of(network, "tiny"))
        for key, tensor in tensors.items():
            assert found[key].dtype == tensor.dtype
            assert np.array_equal(found[key].bits(), tensor.bits()), key


def test_keys_of_a_single_file(single: Path) -> None:
    """Every key is one of the original code's: spot checks of each network, and the tables."""
    file = load_file(single)
    assert file["model.diffusion_model.input_blocks.0.0.weight"].shape == (32, 4, 3, 3)
    assert file["model.diffusion_model.output_blocks.11.1.proj_out.weight"].shape == (32, 32, 1, 1)
    assert file["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (128, 128, 1, 1)
    assert file["first_stage_model.decoder.up.0.block.0.nin_shortcut.bias"].shape == (32,)
    start = "cond_stage_model.transformer.text_model."
    assert file[f"{start}embeddings.position_ids"].tolist() == [list(range(77))]
    assert file[f"{start}encoder.layers.2.mlp.fc1.bias"].shape == (256,)
    assert len(file) == 686 + 248 + 52 + 1 + 12


def test_noise_schedule_of_a_single_file(single: Path) -> None:
    """Its tables are those of `register_schedule`, in float32."""
    file = load_file(single)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert np.array_equal(file["betas"], betas.astype(np.float32))
    assert file["alphas_cumprod"][999] == pytest.approx(0.0046600, rel=1e-4)
    assert file["alphas_cumprod_prev"][0] == 1
    assert file["posterior_variance"][0] == 0
    assert all(file[name].shape == (1000,) for name in names.single_file()["schedule"])
    assert set(schedule()) == set(names.single_file()["schedule"])


def with_averages(single: Path, to: Path, seed: int = 2) -> Path:
    """Copy a single file and give it a second set of the UNet's weights."""

    def add(file) -> None:
        for name, tensor in tensors_of("unet", seed).items():
            file[names.ema_key(name)] = tensor.float32()
        file["model_ema.decay"] = np.array(0.9999, np.float32)
        file["model_ema.num_updates"] = np.array(470_000, np.int32)

    return edited(single, to, add)


def test_averaged_weights_are_a_choice(single: Path, tmp_path: Path) -> None:
    """By default they are left alone; asked for, they are the UNet's, and only the UNet's."""
    path = with_averages(single, tmp_path / "both.safetensors")
    plain, averaged = read_checkpoint(path), read_checkpoint(path, ema=True)
    same(plain, "unet", seed=1)
    same(averaged, "unet", seed=2)
    for network in ("vae", "text_encoder"):
        same(averaged, network, seed=1)
    assert (plain.ema, plain.uses_ema, averaged.uses_ema) == (686, False, True)
    assert {"model_ema.decay", "model_ema.num_updates"} <= set(plain.unread)


def test_averaged_weights_alone(single: Path, tmp_path: Path) -> None:
    """A file that was stripped of the others has no UNet unless they are asked for."""

    def strip(file) -> None:
        for key in [k for k in file if k.startswith("model.diffusion_model.")]:
            del file[key]

    both = with_averages(single, tmp_path / "both.safetensors")
    path = edited(both, tmp_path / "ema.safetensors", strip)
    same(read_checkpoint(path, ema=True), "unet", seed=2)
    with pytest.raises(CheckpointError, match="has no unet, only vae, text_encoder"):
        read_checkpoint(path).network("unet")


def test_averaged_weights_that_are_not_there(single: Path, tmp_path: Path) -> None:
    """Asking for them is refused: with files that have none, and with folders."""
    with pytest.raises(CheckpointError, match=r"has no averaged weights \(model_ema\.\*\)"):
        read_checkpoint(single, ema=True)
    with pytest.raises(CheckpointError, match="a folder, which holds one set of weights"):
        read_checkpoint(tmp_path, ema=True)


def test_an_averaged_weight_is_missing(single: Path, tmp_path: Path) -> None:
    """The set is as strict as the other: a gap is named as the file would name it."""
    both = with_averages(single, tmp_path / "both.safetensors")
    key = names.ema_key("conv_out.bias")
    path = edited(both, tmp_path / "gap.safetensors", lambda file: file.pop(key))
    network = read_checkpoint(path, ema=True).network("unet")
    with pytest.raises(CheckpointError, match=r"1 missing \(model_ema\.diffusion_modelout2bias\)"):
        network.fitted(shapes_of("unet", "tiny"))


def folder_of(out: Path, changes=lambda _name, tensors: tensors) -> Path:
    """Write the tiny variant as a folder, its files changed on the way."""
    for network, component in NETWORKS.items():
        tensors = {k: replace(t, key=k) for k, t in tensors_of(network).items()}
        save.write_network(
            out / network, network, changes(network, tensors), TINY.architecture(component), {}
        )
    return out


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(network, tensors):
    """Give the VAE's attention its old names."""
    if network != "vae":
        return tensors
    renamed = {}
    for key, tensor in tensors.items():
        for new, old in OLD.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")  # noqa: PLW2901
        renamed[key] = tensor
    assert renamed.keys() != tensors.keys()
    return renamed


def as_linear(_network, tensors):
    """Make linear weights of all 1x1 convolutions that may be, and the other way round."""
    made = {}
    for key, tensor in tensors.items():
        shape = tensor.shape
        if key in names.either("unet") | names.either("vae"):
            shape = shape[:2] if len(shape) == 4 else (*shape, 1, 1)
        made[key] = tensor.reshaped(shape)
    return made


def without_prefix(network, tensors):
    """Name the text encoder's weights as newer versions of transformers do."""
    if network != "text_encoder":
        return tensors
    return {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("changes", [old_names, as_linear, without_prefix])
def test_folders_of_other_versions(tmp_path: Path, changes) -> None:
    """Old names of the VAE, projections of the other kind, CLIP without its prefix: the same."""
    checkpoint = read_checkpoint(folder_of(tmp_path / "a", changes))
    for network in NETWORKS:
        same(checkpoint, network)


def test_old_and_new_name_together(tmp_path: Path) -> None:
    """Two keys of one weight are refused: either may be the stale one."""

    def both(network, tensors):
        return old_names(network, tensors) | tensors

    with pytest.raises(CheckpointError, match=r"query\.weight .*names of the same weight"):
        read_checkpoint(folder_of(tmp_path / "a", both))


@pytest.mark.parametrize("prefix", ["text_model.", ""], ids=["prefix", "no-prefix"])
@pytest.mark.parametrize("ids", [True, False], ids=["position_ids", "no-ids"])
def test_bare_clip(tmp_path: Path, prefix: str, ids: bool) -> None:  # noqa: FBT001 - a parameter
    """A file of transformers, with or without prefix and position ids, is the text encoder."""
    arrays = {
        prefix + key.removeprefix("text_model."): tensor.float32()
        for key, tensor in tensors_of("text_encoder").items()
    }
    if ids:
        arrays[f"{prefix}embeddings.position_ids"] = np.arange(77)[None]
    save_file(arrays, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path / "model.safetensors")
    assert (checkpoint.layout, list(checkpoint.networks)) == ("clip", ["text_encoder"])
    same(checkpoint, "text_encoder")
    with pytest.raises(CheckpointError, match="layout clip and has no unet, only text_encoder"):
        checkpoint.network("unet")


def test_whole_clip(tmp_path: Path) -> None:
    """Of a file with CLIP's other half, that half is not read, and said to be there."""
    arrays = {key: tensor.float32() for key, tensor in tensors_of("text_encoder").items()}
    other = ["vision_model.post_layernorm.bias", "visual_projection.weight", "logit_scale"]
    arrays |= {key: np.zeros((), np.float32) for key in other}
    save_file(arrays, tmp_path / "model.safetensors")
    network = read_checkpoint(tmp_path / "model.safetensors").network("text_encoder")
    assert sorted(network.unread) == sorted(other)
    network.fitted(shapes_of("text_encoder", "tiny"))


def test_folder_of_one_network(tmp_path: Path) -> None:
    """The folder of a network alone is read by its config."""
    folder_of(tmp_path / "a")
    for network in NETWORKS:
        checkpoint = read_checkpoint(tmp_path / "a" / network)
        assert list(checkpoint.networks) == [network]
        same(checkpoint, network)


def test_files_of_a_folder(tmp_path: Path) -> None:
    """Plain files come first, then fp16; another kind has to be asked for, and must be there."""
    out = folder_of(tmp_path / "a")
    for network in NETWORKS:
        path = out / network / save.FILES[network]
        path.rename(path.with_suffix(".fp16.safetensors"))
    for files in ("", "fp16"):
        same(read_checkpoint(out, files=files), "unet")
    with pytest.raises(CheckpointError, match=r"model\.non_ema\.safetensors is missing"):
        read_checkpoint(out, files="non_ema")
    path = out / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"conv_in.bias": np.zeros(32, np.float32)}, path)
    assert list(read_checkpoint(out).network("unet").tensors) == ["conv_in.bias"]


def test_every_size_is_recognised(tmp_path: Path) -> None:
    """By its shapes, in a file that says nothing of it."""
    for size in ("tiny", "tiny-inpaint", "odd"):
        path = tmp_path / f"{size}.safetensors"
        write_checkpoint(parse_variant(size), "compvis", "float16", path)
        found = read_checkpoint(path).networks
        assert {name: n.size for name, n in found.items()} == {
            name: spec.known_size(spec.architectures(c), size) for name, c in NETWORKS.items()
        }


def test_an_unknown_size(single: Path, tmp_path: Path) -> None:
    """Shapes of no known size are refused with what is known, and a telling shape."""

    def widen(file) -> None:
        for key, array in file.items():
            if key.startswith("model.diffusion_model."):
                file[key] = np.zeros((3, *array.shape[1:]), np.float32)

    path = edited(single, tmp_path / "wide.safetensors", widen)
    message = (
        r"unet has the shapes of no known size \(tiny, .*conv_in.weight has shape \(3, 4, 3, 3\)"
    )
    with pytest.raises(CheckpointError, match=message):
        _ = read_checkpoint(path).network("unet").size


def test_other_entries_are_unexpected(single: Path, tmp_path: Path) -> None:
    """What no layout knows is named, and no network is taken from such a file."""
    key = "embedding_manager.initial_embeddings"
    path = edited(
        single, tmp_path / "more.safetensors", lambda f: f.update({key: np.zeros(2, np.float32)})
    )
    with pytest.raises(CheckpointError, match=r"0 missing, 1 unexpected \(embedding_manager"):
        read_checkpoint(path).network("unet").fitted(shapes_of("unet", "tiny"))


def test_hugging_face_cache(tmp_path: Path) -> None:
    """Its folders are links into the blobs of the same repository: whole or one network's."""
    repository = tmp_path / "models--CompVis--tiny"
    blobs, revision = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    for path in sorted(folder_of(tmp_path / "a").rglob("*.*")):
        place = revision / path.relative_to(tmp_path / "a")
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / place.relative_to(revision).as_posix().replace("/", "-")
        path.rename(blob)
        place.symlink_to(blob)
    same(read_checkpoint(revision), "unet")
    same(read_checkpoint(revision / "unet"), "unet")
    repository.rename(tmp_path / "elsewhere")
    (tmp_path / "models--CompVis--tiny").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="a link that leads out of the folder, to "):
        read_checkpoint(revision)
