"""What pickles say of tensors is checked: views, shared storages, other classes, other types."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

from sd1_weights.errors import CheckpointError
from sd1_weights.torch_file import read_torch


def archive(entries):
    """Return a zip archive of pairs of names and bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, data in entries:
            zipped.writestr(name, data)
    return file.getvalue()


def with_pickle(data):
    """Return an archive with this pickle and the storage 0, of 0, 1, 2 and 3."""
    return archive([("archive/data.pkl", data), ("archive/data/0", FOUR)])


def text(value):
    """Return a text in a pickle."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def view(offset=b"K\x00", shape=b"K\x02\x85", stride=b"K\x01\x85", numel=b"K\x04", **other):
    """Return a state dict's pickle: `w`, a view of a storage of numbers in float32."""
    of = other.get("of", b"ctorch\nFloatStorage\n")
    key, device = other.get("key", text("0")), other.get("device", text("cpu"))
    hooks = other.get("hooks", b"ccollections\nOrderedDict\n)R")
    storage = b"(" + other.get("kind", text("storage")) + of + key + device + numel + b"tQ"
    grad = other.get("grad", b"\x89")
    fields = storage + offset + shape + stride + grad + hooks + other.get("more", b"")
    name = other.get("name", b"ctorch._utils\n_rebuild_tensor_v2\n")
    return b"\x80\x02}" + text("w") + name + b"(" + fields + b"tRs."


FOUR = np.arange(4, dtype="<f4").tobytes()


def test_views_of_one_storage(tmp_path, monkeypatch):
    """Offsets, strides and overlap come out right; the storage is checked once."""
    sizes = []
    crc32 = zlib.crc32
    monkeypatch.setattr(
        "sd1_weights.zip_entries.zlib.crc32", lambda data: sizes.append(len(data)) or crc32(data)
    )
    rows = view(shape=b"K\x02K\x02\x86", stride=b"K\x01K\x02\x86")[:-1]
    path = tmp_path / "weights.ckpt"
    last = view(offset=b"K\x02")[3:-1].replace(text("w"), text("last"))
    path.write_bytes(with_pickle(rows + last + b"."))
    tensors = read_torch(path).tensors
    sizes.clear()
    np.testing.assert_array_equal(tensors["w"].bits(), [[0, 2], [1, 3]])
    np.testing.assert_array_equal(tensors["last"].bits(), [2, 3])
    assert sizes == [16]


def test_a_tensor_expanded_from_one_element(tmp_path):
    """Strides of 0 repeat; strides along an axis of one element mean nothing."""
    path = tmp_path / "weights.ckpt"
    far = b"\x8a\x08" + (2**62).to_bytes(8, "little")
    path.write_bytes(with_pickle(view(shape=b"K\x03K\x01\x86", stride=b"K\x00" + far + b"\x86")))
    np.testing.assert_array_equal(read_torch(path).tensors["w"].bits(), [[0], [0], [0]])


def test_a_storage_at_an_odd_place_is_copied(tmp_path):
    """An archive packed again by other tools need not align it."""
    path = tmp_path / "weights.ckpt"
    for folder in ("a", "ab", "abc", "abcd"):
        entries = [(f"{folder}/data.pkl", view()), (f"{folder}/data/0", FOUR)]
        path.write_bytes(archive(entries))
        bits = read_torch(path).tensors["w"].bits()
        assert bits.flags.aligned
        np.testing.assert_array_equal(bits, [0, 1])


def lightning():
    """Return the pickle of a training checkpoint as Lightning wrote them around SD v1."""
    latin = b"c_codecs\nencode\n" + text("\0\0") + text("latin1") + b"\x86R"
    dtype = b"cnumpy\ndtype\n" + text("f8") + b"K\x00K\x01\x87R(K\x03" + text("<") + b"NNNtb"
    scalar = b"cnumpy.core.multiarray\nscalar\n" + dtype + latin + b"\x86R"
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    best = b"}(" + text("best_model_score") + scalar + text("monitor") + b"Nu"
    return (
        b"\x80\x02}("
        + (text("epoch") + b"K\x03" + text("callbacks") + b"}" + callback + best + b"s")
        + (text("optimizer_states") + b"]}(" + text("state") + b"}u" + b"a")
        + (text("state_dict") + b"ccollections\nOrderedDict\n)R" + view()[3:-1].replace(b"}", b""))
        + (b"}" + text("_metadata") + b"}sb" + text("hparams_type"))
        + b"cpytorch_lightning.utilities.parsing\nAttributeDict\nu."
    )


def test_a_training_checkpoint_with_callbacks(tmp_path):
    """Classes known from published files are named, never looked up, and do no harm."""
    path = tmp_path / "model.ckpt"
    path.write_bytes(with_pickle(lightning()))
    found = read_torch(path)
    assert list(found.tensors) == ["w"]
    assert found.others == ["epoch", "callbacks", "optimizer_states", "hparams_type"]


STATE_DICTS = {
    "number": (b"\x80\x02}" + text("w") + b"K\x01s.", "w is the number 1, expected a tensor"),
    "none": (b"\x80\x02}" + text("w") + b"Ns.", "w is None, expected a tensor"),
    "nested": (b"\x80\x02}" + text("w") + b"}s.", "w is a dict, expected a tensor"),
    "number-name": (b"\x80\x02}K\x07Ns.", "has the number 7 as a name"),
    "line-break": (b"\x80\x02}" + text("a\nb") + b"Ns.", r"has the text 'a\\nb' as a name"),
    "list": (b"\x80\x02].", "data.pkl is a list, expected a dict of tensors"),
    "twice": (view()[:-1] + view()[3:], "sets the entry of the text 'w' twice"),
    "no-storage": (view(key=text("5")), "w is in the storage 5, which the archive lacks"),
    "outside": (view(key=text("../../x")), "w is in the storage ../../x, which"),
    "past-end": (view(offset=b"K\x03"), "ends 20 bytes into its storage, which takes 16"),
    "past-end-by-stride": (view(stride=b"K\x04\x85"), "ends 20 bytes into its storage"),
    "past-end-scalar": (view(b"K\x04", b")", b")"), "ends 20 bytes into its storage"),
    "past-end-empty": (view(b"K\x05", b"K\x00\x85"), "ends 20 bytes into its storage"),
    "short-storage": (view(numel=b"K\x05"), "data/0 takes 16 bytes, expected 20"),
    "negative-offset": (view(b"J\xff\xff\xff\xff"), "the number -1 for a tensor's offset"),
    "bool-offset": (view(b"\x88"), "gives a bool for a tensor's offset"),
    "float-shape": (view(shape=b"G\0\0\0\0\0\0\0\0\x85"), "gives a float for a tensor's shape"),
    "list-shape": (view(shape=b"]"), "gives a list for a tensor's shape"),
    "bool-numel": (view(numel=b"\x88"), "gives a bool for a storage's length"),
    "long-numel": (view(numel=b"\x8a\x09" + b"\xff" * 8 + b"\0"), "an int for a storage's length"),
    "few-strides": (view(stride=b")"), "has a tensor of 1 axes and 0 strides"),
    "few-fields": (view(hooks=b""), "has a tensor of 5 fields, expected 6"),
    "hooks": (view(hooks=b"N"), "gives None for a tensor's hooks"),
    "grad": (view(grad=b"K\x00"), "gives the number 0 for a tensor's requires_grad"),
    "device": (view(device=b"N"), "gives None for a storage's device"),
    "kind": (view(kind=text("module")), "has a persistent id that is no storage's"),
    "filled": (view(hooks=b"ccollections\nOrderedDict\n]\x85R"), "fills an OrderedDict by its"),
    "negated": (view(more=b"}" + text("neg") + b"\x88s"), "to be negated or conjugated"),
    "number-key": (view(key=b"K\x00"), "gives the number 0 for a storage's key"),
    "storage-class": (view(of=b"cnumpy\ndtype\n"), "gives numpy.dtype for a storage's class"),
    "no-dtype": (view(of=b"ctorch.storage\nUntypedStorage\n"), "a tensor of no dtype"),
    "other-dtype": (
        view(name=b"ctorch._utils\n_rebuild_tensor_v3\n", more=b"ctorch\nfloat32\n"),
        "gives torch.float32 for the dtype",
    ),
    "two-dtypes": (
        view(name=b"ctorch._utils\n_rebuild_tensor_v3\n", more=b"ctorch\nuint16\n"),
        "has a tensor of two dtypes",
    ),
    "parameter": (
        b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_parameter\n)Rs.",
        "gives None for a parameter's tensor",
    ),
    "persistent-id": (b"\x80\x02" + text("0") + b"Q.", "the text '0' for a persistent id"),
    "module": (b"\x80\x02" + text("module") + b"\x85Q.", "a persistent id that is no storage's"),
    "many-axes": (
        view(shape=b"(" + b"K\x01" * 65 + b"t", stride=b"(" + b"K\x01" * 65 + b"t"),
        "w has 65 axes, expected at most 64",
    ),
    "beyond-memory": (
        view(shape=b"(" + b"K\xff" * 9 + b"t", stride=b"(" + b"K\x00" * 9 + b"t"),
        "is larger than any memory",
    ),
    "code": (b"\x80\x02cposix\nsystem\n" + text("x") + b"\x85R.", "asks to call posix.system"),
}


@pytest.mark.parametrize(("data", "why"), STATE_DICTS.values(), ids=STATE_DICTS)
def test_state_dicts_of_anything_else_are_refused(tmp_path, data, why):
    """A tensor that is none, or is not within its storage, is named, in one line."""
    path = tmp_path / "weights.ckpt"
    path.write_bytes(with_pickle(data))
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert why in message
    assert message.isprintable()
