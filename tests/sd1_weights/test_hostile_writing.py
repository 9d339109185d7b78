"""Writing that fails, or writes over what is read: all of it is there, or nothing of it."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance import export
from conformance.cli import main
from sd1_weights.layouts import read_checkpoint
from sd1_weights.sizes import shapes_of

pytestmark = pytest.mark.usefixtures("no_hang")

TARGETS = {"a.safetensors": "compvis", "a.ckpt": "compvis", "folder": "diffusers"}


def contents(path):
    """Return the bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def weights(path):
    """Return the bits of all weights."""
    found = read_checkpoint(path)
    return {
        (name, key): tensor.bits().tobytes()
        for name, network in found.networks.items()
        for key, tensor in network.fitted(shapes_of(name, "tiny")).items()
    }


def converted(source, out, layout):
    """Run `weights convert`."""
    return main(["weights", "convert", str(source), "--layout", layout, "--out", str(out)])


@contextmanager
def full_disk(size):
    """Let no file become larger, as where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=TARGETS)
def target(request, copy):
    """Whole files, which are to be written over, and their layout."""
    return copy(request.param), TARGETS[request.param]


@pytest.mark.parametrize("size", [100, 2**20, 5 << 20], ids=["header", "1 MiB", "5 MiB"])
def test_a_full_disk(capsys, whole, target, size):
    """Wherever it is noticed: what was there is as it was, nothing is beside it."""
    path, layout = target
    before = contents(path)
    with full_disk(size):
        assert converted(whole / "a.ckpt", path, layout) == 2
    assert capsys.readouterr().err == f"sd1-conformance: cannot write {path}: File too large\n"
    assert contents(path) == before
    assert list(path.parent.iterdir()) == [path]


def test_an_interruption(capsys, whole, target, monkeypatch):
    """After some tensors: exit code 3, what was there is as it was, nothing is beside it."""
    path, layout = target
    before = contents(path)

    def interrupted(tensors):
        yield from tensors[:9]
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "watched", interrupted)
    assert converted(whole / "a.safetensors", path, layout) == 3
    assert capsys.readouterr().err == "sd1-conformance: interrupted\n"
    assert contents(path) == before
    assert list(path.parent.iterdir()) == [path]


KILLED = """
import os, signal, sys
from conformance import cli, export

def killed(tensors):
    yield from tensors[:9]
    os.kill(os.getpid(), signal.SIGKILL)

export.watched = killed
cli.main(["weights", "convert", *sys.argv[1:]])
"""


def test_a_death_while_writing(whole, target):
    """What was there is as it was; what is left of the other has a hidden name."""
    path, layout = target
    before = contents(path)
    command = [str(whole / "a.safetensors"), "--layout", layout, "--out", str(path)]
    done = subprocess.run([sys.executable, "-c", KILLED, *command], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert contents(path) == before
    left = [file.name for file in path.parent.iterdir() if file != path]
    assert len(left) == 1
    assert left[0].startswith(f".{path.name}.")


@pytest.mark.parametrize(
    ("name", "same"), [*((name, True) for name in TARGETS), ("a.safetensors", False)]
)
def test_written_over_while_it_is_mapped(whole, copy, name, same):
    """A pipeline whose weights are the file's keeps them; the new file has them bit for bit."""
    torch = pytest.importorskip("torch")
    from sd1_impl import load_pipeline

    path, layout = copy(name), TARGETS[name]
    pipe = load_pipeline(path, dtype=None)
    tensors = dict(pipe.unet.state_dict()) | dict(pipe.text_encoder.state_dict())
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    source = path if same else whole / "folder"
    wanted = weights(source)
    assert converted(source, path, layout) == 0
    assert weights(path) == wanted
    assert all(torch.equal(tensors[key], tensor) for key, tensor in before.items())
    assert list(path.parent.iterdir()) == [path]


PLACES = {
    "below-a-file": ("file/a", "File exists"),
    "proc": ("/proc/a", "No such file or directory"),
    "dev-full": ("/dev/full/a", "File exists"),
    "long-name": ("a" * 250, "File name too long"),
}


@pytest.mark.parametrize(("place", "why"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("ending", "layout"), [(".ckpt", "compvis"), ("", "diffusers")])
def test_a_place_that_cannot_be_written(capsys, whole, tmp_path, place, why, ending, layout):
    """It is named, with the reason, in one line."""
    (tmp_path / "file").write_bytes(b"file")
    out = tmp_path / (place + ending)
    assert converted(whole / "a.safetensors", out, layout) == 2
    assert capsys.readouterr().err == f"sd1-conformance: cannot write {out}: {why}\n"
    assert contents(tmp_path) == {"file": b"file"}


def test_a_folder_that_is_read_only(capsys, whole, tmp_path):
    """Nothing is written into it, nor beside it."""
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    for name, layout in (("a.ckpt", "compvis"), ("folder", "diffusers")):
        assert converted(whole / "a.safetensors", out / name, layout) == 2
        assert "Permission denied" in capsys.readouterr().err
    assert list(out.iterdir()) == []


KINDS = {
    "file-for-folder": (
        Path.mkdir,
        "a.ckpt",
        "compvis",
        "cannot write {}: it is there, and is a f",
    ),
    "folder-for-file": (
        Path.touch,
        "folder",
        "diffusers",
        "cannot write {}: it is there, and is n",
    ),
    "ending": (Path.touch, "a.bin", "compvis", "{}: a file of layout compvis ends in .safetensors"),
}


@pytest.mark.parametrize(("make", "name", "layout", "why"), KINDS.values(), ids=KINDS)
def test_a_target_of_another_kind(capsys, whole, tmp_path, make, name, layout, why):
    """It is left alone."""
    out = tmp_path / name
    make(out)
    before = contents(out)
    assert converted(whole / "a.safetensors", out, layout) == 2
    assert why.format(out) in capsys.readouterr().err
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["unet", "unet/config.json"])
def test_a_folder_with_something_in_the_way(capsys, copy, whole, name):
    """A file in the place of a folder, or the other way round: all files stay, or none."""
    path = copy("folder")
    for file in sorted((path / "unet").iterdir()):
        file.unlink()
    if name == "unet":
        (path / name).rmdir()
        (path / name).touch()
    else:
        (path / name).mkdir()
    before = contents(path)
    assert converted(whole / "a.ckpt", path, "diffusers") == 2
    assert str(path) in capsys.readouterr().err
    assert contents(path) == before
