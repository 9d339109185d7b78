"""Hostile and broken files: pickles that run code, files cut off, headers that lie, names twice.

What whole files hold is in `test_hostile_weights.py`, what folders hold in
`test_hostile_folders.py`, writing in `test_hostile_writing.py`. `refused` hands each to every way
in.
"""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from sd1_weights.torch_file import write_torch

UNET = "model.diffusion_model."
TEXT_FILE = "text_encoder/model.safetensors"
UNET_FILE, VAE_FILE = (f"{n}/diffusion_pytorch_model.safetensors" for n in ("unet", "vae"))
KEY = UNET + "out.2.bias"


pytestmark = pytest.mark.usefixtures("no_hang")


def replace_bytes(path, data):
    """Write a file anew: the old one is a link to files that others read."""
    path.unlink()
    path.write_bytes(data)


# Pickles


class Call:
    """Asks for a call when it is unpickled."""

    def __init__(self, of, *arguments):
        self.call = of, arguments

    def __reduce__(self):
        return self.call


def archive(entries):
    """Return a zip archive of pairs of names and bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, data in entries:
            zipped.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("where", ["top", "tensor", "beside", "folder"])
@pytest.mark.parametrize(
    ("protocol", "call", "argument", "name"),
    [
        (2, os.system, "touch ran", "posix.system"),
        (4, os.system, "touch ran", "posix.system"),
        (2, exec, "open('ran', 'w')", "__builtin__.exec"),
        (4, exec, "open('ran', 'w')", "builtins.exec"),
    ],
    ids=["system-2", "system-4", "exec-2", "exec-4"],
)
def test_a_pickle_that_runs_code_is_refused_by_name(
    refused, copy, tmp_path, monkeypatch, protocol, call, argument, name, where
):
    """Nothing is run, wherever the call stands; Python's own unpickler would have."""
    monkeypatch.chdir(tmp_path)
    value = Call(call, argument)
    if where != "top":
        value = {"state_dict": {} if where == "beside" else {KEY: value}, "callbacks": value}
    pickled = pickle.dumps(value, protocol)
    path = copy("folder") if where == "folder" else tmp_path / "a.ckpt"
    file = path
    if where == "folder":
        (path / TEXT_FILE).unlink()
        file = path / "text_encoder/pytorch_model.bin"
    file.write_bytes(archive([("archive/data.pkl", pickled), ("archive/version", b"3")]))
    refused(path, f"{file}: archive/data.pkl: byte ", f"asks to call {name}: refused, nothing was")
    assert not Path("ran").exists()
    pickle.loads(pickled)  # noqa: S301 - the proof
    assert Path("ran").exists()


# Files that are cut off, or something else


@pytest.mark.parametrize("left", [0, 7, 2000, -5], ids=["empty", "7", "2000", "all-but-5"])
@pytest.mark.parametrize(
    "file", ["a.safetensors", "a.ckpt", *(f"folder/{f}" for f in (UNET_FILE, VAE_FILE, TEXT_FILE))]
)
def test_a_truncated_file(refused, copy, file, left):
    """Of every layout, in its header or in its last tensor."""
    name, _, inner = file.partition("/")
    path = copy(name)
    whole = (path / inner if inner else path).read_bytes()
    replace_bytes(path / inner if inner else path, whole[:left])
    refused(path, str(path / inner if inner else path))


MAGICS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    "page": (b"<!DOCTYPE html><html>", "a web page: the download went wrong"),
    "gguf": (b"GGUF\3\0\0\0", "GGUF, whose weights are quantized"),
    "torch-1.5": (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "in torch's format before 1.6; if you trust it, save it again with torch",
    ),
    "pickle": (pickle.dumps({}, 4), "a pickle outside an archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "gzip": (b"\x1f\x8b\x08\0", "compressed by gzip: unpack it"),
    "text": (b"not weights at all", "is neither safetensors nor a torch archive"),
    "zip": (archive([("a.txt", b"")]), "an archive with 0 entries FOLDER/data.pkl"),
}


@pytest.mark.parametrize(("data", "hint"), MAGICS.values(), ids=MAGICS)
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "folder"])
def test_another_kind_of_file(refused, copy, name, data, hint):
    """Known by its first bytes, whatever it is called."""
    path = copy(name)
    file = path / UNET_FILE if path.is_dir() else path
    replace_bytes(file, data + bytes(100))
    refused(path, str(file), hint)


# Headers of safetensors


def entry(**changes):
    """Return what a header says of one number."""
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


def safetensors(*entries, size=None, text=None, data=bytes(8)):
    """Return a file of pairs of names and what the header says of them."""
    pairs = ",".join(f"{json.dumps(name)}:{json.dumps(fields)}" for name, fields in entries)
    text = ("{" + pairs + "}").encode() if text is None else text
    return struct.pack("<Q", len(text) if size is None else size) + text + data


SECOND = UNET + "out.2.weight"
TWO = (KEY, entry()), (SECOND, entry(data_offsets=[4, 8]))
HEADERS = {
    "longer-than-file": (
        safetensors(*TWO, size=10**6),
        "is cut off: its header takes 1000000 bytes",
    ),
    "2**63": (safetensors(*TWO, size=2**63), "are no header length"),
    "2**64-1": (safetensors(*TWO, size=2**64 - 1), "are no header length"),
    "no-header": (safetensors(*TWO, size=0), "are no header length"),
    "big-endian": (
        struct.pack(">Q", 100) + b"{" * 200,
        "are no header length (they are one in big-endian order)",
    ),
    "no-json": (safetensors(text=b"{'a': 1}"), "its header is no JSON (Expecting property name"),
    "list": (safetensors(text=b"[]"), "is neither safetensors nor a torch archive"),
    "latin": (safetensors(text=b'{"\xe9": 1}'), "its header is no JSON ('utf-8' codec"),
    "deep": (safetensors(text=b'{"a":' * 10**5), "its header is no JSON (maximum recursion"),
    "metadata": (safetensors(*TWO, ("__metadata__", {"a": 1})), "__metadata__ in its header is no"),
    "twice": (safetensors(TWO[0], TWO[0]), f"(the name '{KEY[:12]}...{KEY[-13:]}' occurs twice)"),
    "overlap": (
        safetensors(TWO[0], (SECOND, entry(data_offsets=[2, 6])), data=bytes(6)),
        f"{SECOND} overlaps {KEY}: it begins at byte 2, expected 4",
    ),
    "same-bytes": (safetensors(TWO[0], (SECOND, entry())), f"{SECOND} overlaps {KEY}"),
    "hole": (
        safetensors(TWO[0], (SECOND, entry(data_offsets=[6, 10])), data=bytes(10)),
        f"{SECOND} does not follow {KEY}: it begins at byte 6, expected 4",
    ),
    "left-over": (safetensors(*TWO, data=bytes(9)), "the last 1 of 9 bytes belong to no tensor"),
    "out-of-range": (
        safetensors(*TWO, data=bytes(7)),
        "is cut off: its tensors take 8 bytes, it has 7",
    ),
    "reversed": (safetensors((KEY, entry(data_offsets=[4, 0]))), "data_offsets are [4, 0] of 8"),
    "negative": (safetensors((KEY, entry(shape=[-1]))), f"{KEY}: shape [-1] is no list of sizes"),
    "fraction": (safetensors((KEY, entry(shape=[1.0]))), f"{KEY}: shape [1.0] is no list of sizes"),
    "2**63-offset": (safetensors((KEY, entry(data_offsets=[2**63, 0]))), "is no list of sizes"),
    "three-offsets": (safetensors((KEY, entry(data_offsets=[0, 4, 4]))), "data_offsets are [0, 4,"),
    "wraps-around": (safetensors((KEY, entry(shape=[2**62, 8]))), "is larger than any memory"),
    "huge-and-empty": (safetensors((KEY, entry(shape=[0, 2**62]))), "is larger than any memory"),
    "many-axes": (safetensors((KEY, entry(shape=[2**62] * 300))), "at most 64 of them"),
    "wrong-size": (safetensors((KEY, entry(shape=[2]))), f"{KEY}: F32 of shape (2,) takes 8 bytes"),
    "float8": (safetensors((KEY, entry(dtype="F8_E4M3"))), f"{KEY}: dtype 'F8_E4M3' is none of F6"),
    "no-dtype": (safetensors((KEY, {})), f"{KEY} has [], expected data_offsets, dtype, shape"),
    "strides": (safetensors((KEY, entry(strides=[1]))), f"{KEY} has ['data_offsets', 'dtype', 's"),
    "no-fields": (safetensors((KEY, [])), f"{KEY} has [], expected data_offsets"),
    "line-break": (safetensors((KEY + "\nb", entry())), f"{KEY}\\nb is no name of a tensor"),
    "surrogate": (safetensors((KEY + "\ud800", entry())), f"{KEY}\\ud800 is no name of a tensor"),
    "long-name": (safetensors((UNET + "." * 10**5, entry())), "... is no name of a tensor"),
}


@pytest.mark.parametrize(("data", "fault"), HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("name", ["a.safetensors", "folder"])
def test_a_hostile_header(refused, copy, name, data, fault):
    """Sizes, places and names are checked before a byte is read."""
    path = copy(name)
    file = path / UNET_FILE if path.is_dir() else path
    replace_bytes(file, data)
    refused(path, str(file), fault)


def test_many_names_one_of_them_twice(refused, tmp_path):
    """It is found in one pass: a header of 50,000 names is no reason to wait."""
    text = "{" + ",".join(f'"{i}":0' for i in range(50_000)) + ',"49999":0}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(text=text.encode()))
    start = time.process_time()
    refused(path, f"{path} is not safetensors", "the name '49999' occurs twice")
    assert time.process_time() - start < 10


# Names that occur twice


def test_a_key_twice_in_a_pickle(refused, stored, tmp_path):
    """The second of two tensors of a name is not taken silently."""
    file = io.BytesIO()
    write_torch(file, [replace(stored([value]), key=KEY) for value in (1.0, 2.0)])
    path = tmp_path / "a.ckpt"
    path.write_bytes(file.getvalue())
    refused(path, str(path), f"sets the entry of the text '{KEY}' twice")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice_in_an_archive(refused, tmp_path):
    """Programs differ in which they read."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(archive([("archive/data.pkl", pickle.dumps({}, 2))] * 2))
    refused(path, f"{path}: archive/data.pkl occurs twice in the archive")


ALIASES = {
    "vae": (VAE_FILE, "decoder.mid_block.attentions.0.to_q.weight", ".to_q.", ".query."),
    "clip": (TEXT_FILE, "text_model.final_layer_norm.bias", "text_model.", ""),
}


@pytest.mark.parametrize(("file", "key", "new", "old"), ALIASES.values(), ids=ALIASES)
def test_two_names_of_the_same_weight(refused, copy, rewritten, file, key, new, old):
    """Old and new name together: either may be the stale one."""
    path = copy("folder")
    alias = key.replace(new, old)
    rewritten(path / file, lambda tensors: tensors.update({alias: tensors[key]}))
    refused(path, str(path / file), f"{key} and {alias} are names of the same weight")


def test_a_name_of_two_layouts(refused, copy, rewritten):
    """Half CompVis, half diffusers: unexpected, not the weight that it seems to be."""
    path = copy("a.safetensors")
    key = UNET + "input_blocks.1.0.{}.weight"

    def rename(tensors):
        tensors[key.format("norm1")] = tensors.pop(key.format("in_layers.0"))

    rewritten(path, rename)
    missing = f"1 missing ({key.format('in_layers.0')})"
    refused(path, f"{path}: {missing}", f"1 unexpected ({key.format('norm1')})", readable=True)
