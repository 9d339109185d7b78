"""Folders with something missing, contradictory, hostile, or elsewhere."""

import json
import os
import shutil
from importlib.util import find_spec

import pytest

from conformance.cli import main
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_hang")

CONFIGS = {name: f"{name}/config.json" for name in ("unet", "vae", "text_encoder")}
SCHEDULER = "scheduler/scheduler_config.json"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"
FILES = (*CONFIGS.values(), UNET_FILE, "vae/diffusion_pytorch_model.safetensors", TEXT_FILE)


@pytest.fixture
def folder(copy):
    """A copy of the tiny size, in diffusers' layout."""
    return copy("folder")


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file(refused, folder, file):
    """It is named, with what was expected."""
    (folder / file).unlink()
    refused(folder, f"{folder / file} is missing: expected a folder in diffusers' layout")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_missing_component(refused, folder, name):
    """The first of its files is named."""
    shutil.rmtree(folder / name)
    refused(folder, f"{folder / name / 'config.json'} is missing: expected a folder")


def test_an_empty_folder(refused, tmp_path):
    """It is no checkpoint."""
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "text_encoder/config.json is missing: expected a folder in")


def test_a_path_that_is_not_there(refused, tmp_path):
    """Nothing, a name that is too long, and a path below a file."""
    refused(tmp_path / "a", f"{tmp_path / 'a'} is missing")
    refused(tmp_path / ("a" * 300), "cannot be read: File name too long")
    (tmp_path / "b").touch()
    refused(tmp_path / "b" / "c", f"{tmp_path / 'b' / 'c'} is missing")


# Configs


def edited(path, changes):
    """Replace options of a JSON file; an Ellipsis takes one away."""
    given = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps({k: v for k, v in given.items() if v is not ...}))


CONTRADICTIONS = {
    "width": (
        "unet",
        {"block_out_channels": [64, 64, 128, 128]},
        "2 unexpected (down_blocks.1.resnets.0.conv_shortcut",
    ),
    "depth": ("unet", {"layers_per_block": 3}, "missing (down_blocks.0.resnets.2.norm1.weight, "),
    "context": ("unet", {"cross_attention_dim": 768}, "cross_attention_dim is 768: they are not"),
    "channels": ("unet", {"in_channels": 9}, "the UNet reads 9: it is made for inpainting"),
    "heads": ("unet", {"attention_head_dim": 5}, "attentions.0.proj_in.weight is F32 of shape (32"),
    "latents": ("vae", {"latent_channels": 16}, "the VAE's latents have 16 channels"),
    "levels": ("vae", {"block_out_channels": [32, 64, 128]}, "expected 3 of DownEncoderBlock2D"),
    "layers": ("text_encoder", {"num_hidden_layers": 4}, "missing (text_model.encoder.layers.3."),
    "hidden": ("text_encoder", {"intermediate_size": 128}, "mlp.fc1.weight is F32 of shape (256,"),
}


@pytest.mark.parametrize(
    ("part", "changes", "fault"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys()
)
def test_a_config_that_contradicts_the_shapes(refused, folder, part, changes, fault):
    """Nothing is assumed: neither the config nor the shapes are taken for right."""
    edited(folder / CONFIGS[part], changes)
    loaded, *_ = refused(folder, str(folder), without={"inspect"})
    assert fault in loaded or not find_spec("torch")


@pytest.mark.parametrize("command", [["inspect"], ["convert", "--layout", "diffusers", "--out"]])
@pytest.mark.parametrize("part", CONFIGS)
def test_a_contradiction_is_not_passed_on(folder, tmp_path, part, command):
    """Neither is it called whole, nor is it written into another folder."""
    changes = next(changes for name, changes, _ in CONTRADICTIONS.values() if name == part)
    edited(folder / CONFIGS[part], changes)
    name, *options = command
    out = [str(tmp_path / "out")] if options else []
    assert main(["weights", name, str(folder), *options, *out]) == (2 if options else 1)
    assert not (tmp_path / "out").exists()


OPTIONS = {
    "nan": ("vae", {"scaling_factor": float("nan")}, "scaling_factor is nan, expected 0 to 65536"),
    "infinite": ("vae", {"scaling_factor": 1e999}, "scaling_factor is inf, expected 0 to 65536"),
    "zero": ("vae", {"scaling_factor": 0}, "scaling_factor is 0, expected above 0"),
    "400-digits": ("vae", {"scaling_factor": 10**400}, "0000000000000000000, expected 0 to 65536"),
    "2**70": ("unet", {"layers_per_block": 2**70}, "is 1180591620717411303424, expected 0 to 65"),
    "negative": ("unet", {"norm_num_groups": -8}, "norm_num_groups is -8, expected 0 to 65536"),
    "no-groups": ("vae", {"norm_num_groups": 0}, "norm_num_groups is 0, expected above 0"),
    "no-heads": ("unet", {"attention_head_dim": 0}, "attention_head_dim is 0, expected above 0"),
    "no-head": ("text_encoder", {"num_attention_heads": 0}, "is 0, expected above 0 and at most 6"),
    "deep-net": ("text_encoder", {"num_hidden_layers": 1000}, "is 1000, expected above 0 and at m"),
    "wide-net": ("unet", {"block_out_channels": [2**40] * 4}, "expected 0 to 65536"),
    "many-levels": ("unet", {"block_out_channels": [8] * 999}, "has 999 entries, expected at most"),
    "negative-width": ("unet", {"block_out_channels": [-32] * 4}, "expected 0 to 65536"),
    "nested": ("unet", {"norm_eps": [[[["a"] * 99] * 99]]}, "norm_eps is [[[['a', 'a', 'a', 'a', "),
    "text": ("unet", {"layers_per_block": "2"}, "layers_per_block is '2', expected int"),
    "true": ("unet", {"layers_per_block": True}, "layers_per_block is True, expected int"),
    "absent": ("text_encoder", {"hidden_size": ...}, "missing hidden_size"),
    "unknown": ("unet", {"a\nb\ud800": "c\nd"}, "a\\nb\\ud800 is 'c\\nd', which is not known here"),
}


@pytest.mark.parametrize(("part", "changes", "fault"), OPTIONS.values(), ids=OPTIONS)
def test_an_option_that_no_network_has(refused, folder, part, changes, fault):
    """Refused before a network is built from it, however large, deep or unprintable it is."""
    edited(folder / CONFIGS[part], changes)
    refused(folder, f"{folder / CONFIGS[part]}: ", fault, readable=True)


SCHEDULES = {
    "steps": ({"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000, expected 0 "),
    "no-steps": ({"num_train_timesteps": 0}, "num_train_timesteps 0 or steps_offset 1 is too sm"),
    "nan": ({"beta_start": float("nan")}, "beta_start is nan, expected 0 to 65536"),
    "400-digits": ({"beta_end": 10**400}, "0000000000000000000, expected 0 to 65536"),
    "class": ({"_class_name": ["a"]}, "_class_name is ['a'], expected one of PNDMScheduler"),
}


@pytest.mark.parametrize(("changes", "fault"), SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_that_cannot_be(folder, changes, fault):
    """`load_pipeline` is alone in building it: `convert` copies it, `run` has its own."""
    load_pipeline = pytest.importorskip("sd1_impl").load_pipeline
    edited(folder / SCHEDULER, changes)
    with pytest.raises(CheckpointError) as caught:
        load_pipeline(folder)
    assert str(caught.value).startswith(f"{folder / SCHEDULER}: ")
    assert fault in str(caught.value)


UNSAID = {
    "betas": (SCHEDULER, {"beta_end": 0.02}),
    "absent": (SCHEDULER, dict.fromkeys(("beta_start", "beta_end", "beta_schedule"), ...)),
    "v": (SCHEDULER, {"prediction_type": "v_prediction"}),
    "scaling": (CONFIGS["vae"], {"scaling_factor": 0.5}),
}
"""What a CompVis file has no place for; what a scheduler leaves out has diffusers' default."""


@pytest.mark.parametrize(
    ("file", "changes"),
    UNSAID.values(),
    ids=UNSAID.keys(),
)
def test_what_a_single_file_cannot_say(folder, tmp_path, file, changes):
    """It holds SD v1's noise schedule and nothing else: other weights would be sampled with it."""
    edited(folder / file, changes)
    out = tmp_path / "a.ckpt"
    assert main(["weights", "convert", str(folder), "--layout", "compvis", "--out", str(out)]) == 2
    assert not out.exists()


def test_a_scheduler_without_a_name(folder, tmp_path):
    """It cannot be passed on."""
    edited(folder / SCHEDULER, {"_class_name": ...})
    out = str(tmp_path / "out")
    assert main(["weights", "convert", str(folder), "--layout", "diffusers", "--out", out]) == 2


def test_a_name_that_does_not_fit_into_a_line(capsys, folder):
    """What a file says is shown so that it cannot be taken for what `inspect` says."""
    edited(folder / SCHEDULER, {"_class_name": "PNDM\n\x1b[31mScheduler\ud800"})
    main(["weights", "inspect", str(folder)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "PNDM" in line)
    assert line.isprintable()
    assert "Scheduler" in line


TEXTS = {
    "cut-off": (b'{"in_channels": 4', "Expecting ',' delimiter"),
    "empty": (b"", "Expecting value: line 1"),
    "deep": (b'{"a":' * 10**5, "maximum recursion depth exceeded"),
    "latin": (b'{"a": "\xe9"}', "'utf-8' codec can't decode"),
    "zeros": (bytes(100), "Expecting value: line 1"),
    "twice": (b'{"norm_eps": 1e-6, "norm_eps": 1e-5}', "the name 'norm_eps' occurs twice"),
    "giant": (b"{" + b" " * 2**20 + b"}", "it takes more than 1048576 bytes"),
    "5000-digits": (b'{"in_channels": 1' + b"0" * 5000 + b"}", "Exceeds the limit (4300 digits)"),
    "list": (b"[]", "expected an object of options"),
}


@pytest.mark.parametrize(("text", "fault"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("file", [CONFIGS["unet"], SCHEDULER], ids=["unet", "scheduler"])
def test_a_config_that_is_no_json(refused, folder, file, text, fault):
    """It is named, and why it cannot be read."""
    (folder / file).unlink()
    (folder / file).write_bytes(text)
    scheduler = file == SCHEDULER
    without = {"run", "convert"} if scheduler else set()
    refused(folder, str(folder / file), fault, readable=not scheduler, without=without)


# Links, and what is no file


def outside(path, tmp_path):
    """Move a file or folder elsewhere, and return where it is."""
    elsewhere = tmp_path / "elsewhere" / path.name
    elsewhere.parent.mkdir()
    return path.rename(elsewhere)


@pytest.mark.parametrize("file", [TEXT_FILE, CONFIGS["vae"], SCHEDULER])
def test_a_link_out_of_the_folder(refused, folder, tmp_path, file):
    """A checkpoint from elsewhere does not make this user's files its own."""
    target = outside(folder / file, tmp_path)
    (folder / file).symlink_to(target)
    refused(folder, f"{folder / file} is a link that leads out of the folder, to {target}")


def test_a_component_that_is_a_link_out_of_the_folder(refused, folder, tmp_path):
    """A folder is no better than a file; nor is a path with dots."""
    target = outside(folder / "vae", tmp_path)
    (folder / "vae").symlink_to("../elsewhere/vae")
    link = folder / "vae" / "config.json"
    refused(folder, f"{link} is a link that leads out of the folder, to {target / link.name}")


def test_a_chain_of_links_out_of_the_folder(refused, folder, tmp_path):
    """Its end counts, not its first link."""
    target = outside(folder / TEXT_FILE, tmp_path)
    (folder / "first").symlink_to("second")
    (folder / "second").symlink_to(target)
    (folder / TEXT_FILE).symlink_to("../first")
    refused(folder, f"{folder / TEXT_FILE} is a link that leads out of the folder, to {target}")


def test_links_within_the_folder(folder):
    """They are files like others: also from one part to another, and to the folder itself."""
    (folder / TEXT_FILE).rename(folder / "weights")
    (folder / TEXT_FILE).symlink_to("../weights")
    (folder / "vae").rename(folder / "other")
    (folder / "vae").symlink_to("other")
    link = folder.with_name("link")
    link.symlink_to(folder)
    for path in (folder, link):
        assert len(read_checkpoint(path).networks) == 3


def test_a_snapshot_of_hugging_faces_cache(folder, tmp_path):
    """Its files are links to blobs of the same repository; those of another are not its own."""
    repository = tmp_path / "hub" / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    (repository / "blobs").mkdir()
    folder.rename(snapshot)
    for number, file in enumerate(FILES):
        blob = (snapshot / file).rename(repository / "blobs" / str(number))
        (snapshot / file).symlink_to(f"../../../blobs/{number}")
    assert len(read_checkpoint(snapshot).networks) == 3
    foreign = tmp_path / "hub" / "models--c--d" / blob.name
    foreign.parent.mkdir()
    blob.rename(foreign)
    blob.symlink_to(foreign)
    with pytest.raises(CheckpointError, match=r"is a link that leads out of the folder, to .*c--d"):
        read_checkpoint(snapshot)


@pytest.mark.parametrize("file", [UNET_FILE, CONFIGS["unet"], SCHEDULER])
@pytest.mark.parametrize("kind", ["loop", "dangling", "pipe", "device", "folder"])
def test_what_is_no_file(refused, folder, file, kind):
    """It is named, nothing waits for it, and nothing else is taken in its place."""
    path = folder / file
    if file == UNET_FILE:
        os.link(path, path.with_suffix(".fp16.safetensors"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        target = {"loop": path.name, "dangling": "nothing", "device": "/dev/zero"}[kind]
        path.symlink_to(target)
    refused(folder, f"{path} is no regular file, nor a link to one")


SINGLE = {
    "pipe": (os.mkfifo, "is no regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "proc": (lambda path: path.symlink_to("/proc/self/mem"), "is empty"),
}


@pytest.mark.parametrize(("make", "fault"), SINGLE.values(), ids=SINGLE)
def test_a_single_file_that_is_none(refused, tmp_path, make, fault):
    """A pipe is not waited for, a device is not read."""
    path = tmp_path / "a.safetensors"
    make(path)
    refused(path, f" {fault}")


def test_a_single_file_that_is_a_link_to_itself(refused, tmp_path):
    """The link is named, not where it leads."""
    path = tmp_path / "a.safetensors"
    path.symlink_to(path.name)
    refused(path, f"{path} is a link to nothing")
