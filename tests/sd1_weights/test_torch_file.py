"""Torch's files: what torch writes is read, what is written torch reads, the rest is refused."""

import collections
import io
import re
import zipfile

import numpy as np
import pytest

from sd1_weights.errors import CheckpointError
from sd1_weights.stored import DTYPES, Stored
from sd1_weights.torch_file import is_torch, not_weights, read_torch, write_torch


def stored(key, array, dtype=None):
    """Return an array as a tensor to be written."""
    names = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}
    return Stored(key, dtype or names[array.dtype], array.shape, lambda: array)


TENSORS = [
    stored("conv.weight", np.arange(24, dtype="<f4").reshape(2, 3, 4)),
    stored("conv.bias", np.array([0x3F80, 0xFF80], "<u2"), "BF16"),
    stored("steps", np.array(7, "<i8")),
]


def written(tensors=TENSORS, **others):
    """Return the bytes of a file."""
    file = io.BytesIO()
    write_torch(file, tensors, others)
    return file.getvalue()


@pytest.fixture
def refusal(tmp_path):
    """Give why a file is refused, if need be when its tensors are read."""

    def why(data, *, when_read=False):
        path = tmp_path / "weights.ckpt"
        path.write_bytes(data)
        if when_read:
            tensors = read_torch(path).tensors.values()
        with pytest.raises(CheckpointError) as caught:
            [tensor.bits() for tensor in tensors] if when_read else read_torch(path)
        message = str(caught.value)
        assert message.startswith(f"{path}")
        assert message.isprintable()
        return message.removeprefix(str(path)).removeprefix(": ")

    return why


def archive(entries, compression=zipfile.ZIP_STORED):
    """Return a zip archive of pairs of names and bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in entries:
            zipped.writestr(name, data)
    return file.getvalue()


def entries_of(data):
    """Return an archive's entries as a dict."""
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def test_round_trip_without_torch(tmp_path):
    """Names, order, dtypes, shapes and bits; what stands beside is named, not read."""
    path = tmp_path / "weights.ckpt"
    path.write_bytes(written(global_step=470000, note="ü", lr=0.5, on=True))
    found = read_torch(path)
    assert found.others == ["global_step", "note", "lr", "on"]
    assert list(found.tensors) == [tensor.key for tensor in TENSORS]
    for tensor in TENSORS:
        again = found.tensors[tensor.key]
        assert (again.dtype, again.shape, again.file) == (tensor.dtype, tensor.shape, str(path))
        assert again.bits().dtype == DTYPES[tensor.dtype]
        np.testing.assert_array_equal(again.bits(), tensor.bits(), strict=True)
        assert again.bits().flags.aligned


def test_every_dtype_and_shape_comes_back(tmp_path):
    """All of `DTYPES`, scalars and empty tensors."""
    tensors = [
        stored(f"{name}.{len(shape)}.{size}", np.ones(shape, code), name)
        for name, code in DTYPES.items()
        for shape, size in (((), 1), ((3,), 3), ((2, 0, 3), 0), ((1, 2, 1), 2))
    ]
    path = tmp_path / "weights.bin"
    path.write_bytes(written(tensors))
    found = read_torch(path).tensors
    assert len(found) == 4 * len(DTYPES)
    for tensor in tensors:
        np.testing.assert_array_equal(found[tensor.key].bits(), tensor.bits(), strict=True)


def test_the_same_tensors_give_the_same_bytes_and_are_read_one_by_one():
    """Progress is shown as each is asked for."""
    order = []
    tensors = [
        Stored(
            name, "U8", (3,), lambda name=name: order.append(f"read {name}") or np.zeros(3, "u1")
        )
        for name in "ab"
    ]

    def watch(rows):
        for row in rows:
            order.append(f"show {row.key}")
            yield row

    file = io.BytesIO()
    write_torch(file, tensors, watch=watch)
    assert order == ["show a", "read a", "show b", "read b"]
    assert file.getvalue() == written(tensors)


def test_bits_are_views_of_the_file_not_copies(tmp_path):
    """No memory is taken for them; what is written into them stays out of the file."""
    path = tmp_path / "weights.ckpt"
    path.write_bytes(written())
    weight = read_torch(path).tensors["conv.weight"]
    assert np.shares_memory(weight.bits(), weight.bits())
    weight.bits()[:] = 9
    assert path.read_bytes() == written()


@pytest.fixture
def torch():
    """Torch, where it is installed."""
    return pytest.importorskip("torch")


@pytest.fixture
def saved(tmp_path, torch):
    """Give what is read of a value that torch saved."""

    def read(value, **options):
        path = tmp_path / "saved.bin"
        torch.save(value, path, **options)
        return read_torch(path)

    return read


def assert_same(torch, found, expected):
    """Compare what is read with torch's own tensors, bit by bit."""
    assert list(found.tensors) == list(expected)
    for key, tensor in expected.items():
        again = found.tensors[key]
        if tensor.dtype == torch.bfloat16:
            assert again.dtype == "BF16"
            tensor = tensor.view(torch.int16).view(torch.uint16)  # noqa: PLW2901
        np.testing.assert_array_equal(again.bits(), tensor.detach().numpy(), strict=True)


def every_tensor(torch):
    """Return a state dict of all dtypes, and of all that is special about a tensor's place."""
    base = torch.arange(24.0)
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8"
    return {
        **{
            name: torch.tensor([3, 0, 1]).to(getattr(torch, name))
            for name in [*names.split(), "bool"]
        },
        "scalar": torch.tensor(0.5),
        "scalar.long": torch.tensor(12, dtype=torch.int64),
        "empty": torch.zeros(0),
        "empty.2": torch.zeros(4, 0, 2),
        "transposed": base.view(4, 6).t(),
        "tail": base[20:],
        "column": base.view(2, 3, 4)[:, 1, 1:3],
        "scalar.view": base[7],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base.half()[1::2]),
    }


def test_what_torch_saves_is_read(torch, saved):
    """All dtypes, scalars, empty tensors, views of one storage, parameters."""
    tensors = every_tensor(torch)
    assert_same(torch, saved(tensors), tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_nested_state_dict_in_each_protocol(torch, saved, protocol):
    """The top level's `state_dict`, an OrderedDict of a module with its versions."""
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    state = module.state_dict()
    assert isinstance(state, collections.OrderedDict)
    assert state._metadata
    assert state["1.num_batches_tracked"].shape == ()
    found = saved({"epoch": 1, "state_dict": state, 7: []}, pickle_protocol=protocol)
    assert_same(torch, found, state)
    assert found.others == ["epoch", "the number 7"]


def test_an_optimizer_beside_the_state_dict_is_not_read(torch, saved):
    """Its keys are numbers, its values tensors and settings."""
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    found = saved({"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]})
    assert_same(torch, found, module.state_dict())
    assert found.others == ["optimizer_states"]


def test_a_file_without_checksums_is_read(torch, saved):
    """Torch can be told to compute none."""
    computes = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        found = saved({"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(computes)
    np.testing.assert_array_equal(found.tensors["w"].bits(), [1, 1, 1])


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(torch, tmp_path, mmap):
    """By `weights_only`, as bytes and mapped; each dtype, each shape, and what stands beside."""
    tensors = every_tensor(torch)
    torch.save(tensors, tmp_path / "saved.bin")
    path = tmp_path / "written.ckpt"
    beside = {"global_step": 470000, "negative": -(2**40), "lr": 0.1, "note": "ü", "on": True}
    with path.open("wb") as file:
        write_torch(file, read_torch(tmp_path / "saved.bin").tensors.values(), beside)
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    state = loaded.pop("state_dict")
    assert loaded == beside
    assert list(state) == list(tensors)
    for key, tensor in tensors.items():
        assert state[key].dtype == tensor.dtype
        assert state[key].shape == tensor.shape
        assert state[key].stride() == torch.empty(tensor.shape).stride()
        assert torch.equal(state[key], tensor)
    with path.open("rb") as file:
        assert torch.serialization._is_zipfile(file)


def test_storages_are_aligned_like_those_of_torch(tmp_path):
    """Each begins at a multiple of 64 bytes, so that mapped ones can be used in place."""
    path = tmp_path / "weights.ckpt"
    path.write_bytes(written())
    raw = path.read_bytes()
    places = [raw.index(tensor.bits().tobytes()) for tensor in TENSORS]
    assert [place % 64 for place in places] == [0, 0, 0]
    assert zipfile.ZipFile(path).testzip() is None


def test_the_format_before_1_6_is_refused_with_the_fix(torch, tmp_path):
    """It is told from other pickles by its first number."""
    path = tmp_path / "old.ckpt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    raw = np.fromfile(path, np.uint8)
    assert not is_torch(raw)
    hint = not_weights(raw)
    assert hint.startswith("in torch's format before 1.6; if you trust it, save it again")
    torch.save(torch.load(path, map_location="cpu", weights_only=True), tmp_path / "new.ckpt")
    assert list(read_torch(tmp_path / "new.ckpt").tensors) == ["w"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_with_the_fix(torch, tmp_path):
    """An archive of code and constants, also with a pickle of its own."""
    path = tmp_path / "program.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    with pytest.raises(CheckpointError, match=re.escape("torch.save(torch.jit.load(OLD)")):
        read_torch(path)


OTHERS = {
    "empty": b"",
    "a pickle outside an archive": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94.",
    "a pointer of Git LFS": b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 4\n",
    "a web page": b"\n<!DOCTYPE html><html><head>",
    "GGUF": b"GGUF\x03\0\0\0" + bytes(16),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(16),
    "compressed by gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(16),
}


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.split()[-1])
def test_other_files_are_known_by_their_first_bytes(kind):
    """What comes under the name of weights, and is none."""
    raw = np.frombuffer(OTHERS[kind], np.uint8)
    assert not is_torch(raw)
    assert not_weights(raw).startswith(kind)


@pytest.mark.parametrize("length", [0x0280, 0x088B1F, ord("<")])
def test_safetensors_are_never_taken_for_another_file(length):
    """Their first bytes are a length, which may be any."""
    raw = np.frombuffer(length.to_bytes(8, "little") + b'{"a":{}}' + b" " * length, np.uint8)
    assert not is_torch(raw)
    assert not not_weights(raw)
    assert not not_weights(np.frombuffer(written(), np.uint8))


def test_cut_anywhere_it_is_refused(refusal):
    """Each fiftieth byte, and the last ones."""
    data = written(step=1)
    for size in [*range(1, len(data), 50), len(data) - 1]:
        assert "no whole archive" in refusal(data[:size])


def test_damaged_bytes_of_a_storage_are_found_when_it_is_read(refusal):
    """By the CRC-32, which names file and entry."""
    data = bytearray(written())
    data[data.index(TENSORS[0].bits().tobytes()) + 5] ^= 0x10
    assert "archive/data/0 is damaged: its CRC-32" in refusal(bytes(data), when_read=True)


def test_every_byte_flipped_is_refused_or_harmless(tmp_path):
    """Never another error; never other tensors under a good checksum."""
    data = written([TENSORS[0], TENSORS[2]])
    good = {tensor.key: tensor.bits().tobytes() for tensor in TENSORS}
    path = tmp_path / "weights.ckpt"
    refused = 0
    for place in range(len(data)):
        path.write_bytes(bytes([*data[:place], data[place] ^ 0x11, *data[place + 1 :]]))
        try:
            found = {key: t.bits().tobytes() for key, t in read_torch(path).tensors.items()}
        except CheckpointError:
            refused += 1
        else:
            assert found.items() <= good.items()
    assert refused > len(data) // 3


ARCHIVES = {
    "no-pickle": ({"archive/data.pkl": None}, "with 0 entries FOLDER/data.pkl"),
    "two-pickles": ({"other/data.pkl": b""}, "with 2 entries FOLDER/data.pkl"),
    "big-endian": ({"archive/byteorder": b"big"}, "archive/byteorder is not `little`"),
    "code": ({"archive/code/a.py": b""}, "is a program of TorchScript"),
    "constants": ({"archive/constants.pkl": b"\x80\x02)."}, "is a program of TorchScript"),
    "giant-pickle": ({"archive/data.pkl": bytes(5 << 20)}, "expected at most 4194304"),
    "empty-pickle": ({"archive/data.pkl": b""}, "cut off or broken"),
    "no-storage": ({"archive/data/1": None}, "conv.bias is in the storage 1, which the archive"),
    "short-storage": ({"archive/data/1": b"abc"}, "data/1 takes 3 bytes, expected 4"),
}


@pytest.mark.parametrize(("change", "why"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_of_anything_else_are_refused(refusal, change, why):
    """What is missing, twice there, or of another kind is named."""
    entries = entries_of(written()) | change
    kept = [(name, data) for name, data in entries.items() if data is not None]
    assert why in refusal(archive(kept))


def test_what_torch_does_not_need_does_no_harm(tmp_path):
    """Folders, notes, other versions, no byte order; longer storages than needed."""
    entries = entries_of(written()) | {"archive/": b"", "archive/version": b"9\n", "x.txt": b"x"}
    entries["archive/data/1"] += b"more"
    del entries["archive/byteorder"]
    path = tmp_path / "weights.ckpt"
    path.write_bytes(archive(entries.items()))
    for tensor in TENSORS:
        again = read_torch(path).tensors[tensor.key].bits()
        np.testing.assert_array_equal(again, tensor.bits(), strict=True)
