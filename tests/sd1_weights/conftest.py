"""Corruptions drawn by hypothesis and applied to bytes; whole files of weights, and the ways in."""

import io
import json
import os
import pickletools
import re
import shutil
import signal
import struct
import zipfile
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from conformance.cli import main
from conformance.export import write_checkpoint
from conformance.variants import parse_variant
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import read_file
from sd1_weights.safetensors_file import write_safetensors
from sd1_weights.stored import DTYPES, Stored
from sd1_weights.torch_file import write_torch

NUMBERS = (0, -1, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
DEEP = "@deep@"
"""Stands for an array in an array, 2,000 times, which Python cannot write."""

OTHERS = (10**400, 0.5, float("nan"), float("-inf"), True, None)
TEXTS = ("", "I32", "F8_E4M3", "a\nb", "\ud800", DEEP)
LISTS = ([], {}, [0], [2**62] * 300, [0, 2**62, 2**62], [1] * 65, [-1], ["x"], {"a": {}})
VALUES = (*NUMBERS, *OTHERS, *TEXTS, *LISTS)
NAMES = ("", "a\nb", "\ud800", "x" * 300, "__metadata__", "model.diffusion_model." + "." * 90)
CALLS = ("posix.system", "builtins.eval", "torch.nn.Module", "collections.OrderedDict")
TYPES = ("torch.IntStorage", "torch.DoubleStorage", "torch.uint16", "numpy.dtype")
GLOBALS = (*CALLS, *TYPES, "torch._utils._rebuild_tensor_v3")
BYTES = b'\x00\x01\x7f\x80\xff"{}[],:.0-PK()ctRQ\n'


class Edit(NamedTuple):
    """One corruption: what is done, to which part, where, how much, and with what."""

    kind: str
    part: int
    place: int
    size: int
    value: int


def edits(*kinds):
    """Draw one to three corruptions."""
    number = st.integers(0, 2**16 - 1)
    edit = st.builds(Edit, st.sampled_from(kinds), number, number, st.integers(1, 40), number)
    return st.lists(edit, min_size=1, max_size=3)


RAW = {
    "flip": lambda old, value: bytes([old[0] ^ 1 << value % 8]) + old[1:],
    "byte": lambda old, value: BYTES[value % len(BYTES) :][:1] + old[1:],
    "cut": None,
    "insert": lambda old, value: struct.pack("<H", value) * 3 + old,
    "delete": lambda *_: b"",
    "double": lambda old, _: old + old,
    "swap": lambda old, _: old[len(old) // 2 :] + old[: len(old) // 2],
    "number": lambda old, value: (
        (NUMBERS[value % len(NUMBERS)] % 2**64).to_bytes(8, "little") + old[8:]
    ),
    "short": lambda old, value: (
        (NUMBERS[value % len(NUMBERS)] % 2**32).to_bytes(4, "little") + old[4:]
    ),
    "digits": lambda old, value: re.sub(
        rb"\d+", lambda _: str(NUMBERS[value % len(NUMBERS)]).encode(), old, count=1
    ),
}
"""What becomes of some bytes."""


def corrupted(data, parts, edit):
    """Change bytes in one of the parts of a file, given by first byte and end."""
    start, end = parts[edit.part % len(parts)]
    at = start + edit.place % max(end - start, 1)
    if edit.kind == "cut":
        return data[:at]
    span = {"number": 8, "short": 4, "flip": 1, "byte": 1}.get(edit.kind, edit.size)
    return data[:at] + RAW[edit.kind](data[at : at + span] or b"\0", edit.value) + data[at + span :]


def dumped(pairs):
    """Write a JSON object, with the same name twice if need be."""
    text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs)
    return ("{" + text.replace(f'"{DEEP}"', "[" * 2000 + "]" * 2000) + "}").encode()


def replaced(old, value, size):
    """Return a value for another, or a list with it at one end."""
    if isinstance(old, list) and old and size % 3:
        return [*old[1:], value] if size % 2 else [value, *old[1:]]
    return value


def other_json(text, edit):
    """Change names and values of a JSON object, or of the objects in it."""
    pairs = [list(pair) for pair in json.loads(text).items()]
    entry = pairs[edit.part % len(pairs)]
    value = VALUES[edit.value % len(VALUES)]
    fields = list(entry[1]) if isinstance(entry[1], dict) else []
    numeric = [pair for pair in pairs if isinstance(pair[1], int | float | list)]
    if edit.kind == "drop":
        pairs.remove(entry)
    elif edit.kind == "twice":
        pairs.append([entry[0], value if edit.size % 2 else entry[1]])
    elif edit.kind == "rename":
        others = [name for name, _ in pairs] + list(NAMES)
        entry[0] = others[edit.value % len(others)]
    elif edit.kind == "field" and fields:
        name = fields[edit.place % len(fields)]
        entry[1] = {**entry[1], name: replaced(entry[1][name], value, edit.size)}
    elif edit.kind == "field" and numeric:
        entry = numeric[edit.place % len(numeric)]
        entry[1] = replaced(entry[1], value, edit.size)
    else:
        entry[1] = value
    return dumped(pairs)


def other_header(data, edit):
    """Change the header of safetensors and keep the data where the header ends."""
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    change = partial(corrupted, parts=[(0, size)]) if edit.kind in RAW else other_json
    header = change(header, edit=edit)
    return struct.pack("<Q", len(header)) + header + rest


def other_pickle(data, edit):
    """Change the pickle of an archive, which is packed again with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    pickle = entries["archive/data.pkl"]
    ops = [(op.name, at) for op, _, at in pickletools.genops(pickle)]
    if edit.kind == "opcode":
        _, at = ops[edit.place % len(ops)]
        code = pickletools.opcodes[edit.value % len(pickletools.opcodes)].code.encode("latin-1")
        pickle = pickle[:at] + code + pickle[at + 1 :]
    elif edit.kind == "number":
        ones = [at for name, at in ops if name == "LONG1"]
        at = ones[edit.place % len(ones)]
        value = NUMBERS[edit.value % len(NUMBERS)].to_bytes(9, "little", signed=True)
        pickle = pickle[:at] + b"\x8a\x09" + value + pickle[at + 2 + pickle[at + 1] :]
    elif edit.kind == "global":
        ones = [at for name, at in ops if name == "GLOBAL"]
        at = ones[edit.place % len(ones)]
        name = b"\n".join(GLOBALS[edit.value % len(GLOBALS)].encode().rsplit(b".", 1))
        end = pickle.index(b"\n", pickle.index(b"\n", at) + 1)
        pickle = pickle[: at + 1] + name + pickle[end:]
    else:
        pickle = corrupted(pickle, [(0, len(pickle))], edit)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        for name, content in (entries | {"archive/data.pkl": pickle}).items():
            new.writestr(name, content)
    return file.getvalue()


def parts_of(data):
    """Return the places where a file says what it holds, the likelier to be hit the smaller."""
    if data[:2] != b"PK":
        end = 8 + int.from_bytes(data[:8], "little")
        return [(0, 8), (8, end), (8, end), (end, len(data))]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start, entries = archive.start_dir, archive.infolist()
    heads = [(e.header_offset, e.header_offset + 30 + len(e.filename)) for e in entries]
    end = data.rindex(b"PK\x05\x06")
    return [*heads[:2], (start, end), (start, end), (end, len(data)), (0, start)]


JSON = ("field", "field", "value", "rename", "twice", "drop")
CORRUPTIONS = {
    "bytes": (lambda data, edit: corrupted(data, parts_of(data), edit), tuple(RAW)),
    "header": (other_header, ("digits", "byte", "delete", "double", "swap", *JSON, *JSON)),
    "pickle": (other_pickle, ("opcode", "number", "global", "byte", "flip", "delete", "double")),
    "config": (other_json, JSON),
    "text": (lambda data, edit: corrupted(data, [(0, len(data))], edit), tuple(RAW)),
}
"""What is corrupted, how, and the kinds of edits."""


NO_LONGER = (ArithmeticError, AttributeError, LookupError, RuntimeError, ValueError)
NO_LONGER += (struct.error, zipfile.BadZipFile)
"""What comes of looking for what an edit changes in what was corrupted before."""


@pytest.fixture(scope="session")
def corruption():
    """Draw a file of some, given with what may be corrupted in each, and edits of it."""
    return _corruption


@st.composite
def _corruption(draw, files):
    file, kinds = draw(st.sampled_from(files))
    kind = draw(st.sampled_from(kinds))
    return file, kind, draw(edits(*CORRUPTIONS[kind][1]))


@pytest.fixture(scope="session")
def applied():
    """Apply edits in turn, up to one that no longer finds what it changes."""
    return _applied


def _applied(data, kind, changes):
    for edit in changes:
        try:
            data = CORRUPTIONS[kind][0](data, edit)
        except NO_LONGER:
            break
    return data


# Files of weights, and the ways in


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The tiny size as CompVis files, also pickled, and as a folder; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    for name, layout, dtype in (
        ("a.safetensors", "compvis", "float16"),
        ("a.ckpt", "compvis", "float16"),
        ("folder", "diffusers", "float32"),
    ):
        write_checkpoint(parse_variant("tiny"), layout, dtype, root / name)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """Give a copy of whole files; they are links, to be replaced and not written into."""

    def copied(name):
        if (whole / name).is_file():
            os.link(whole / name, tmp_path / name)
        else:
            shutil.copytree(whole / name, tmp_path / name, copy_function=os.link)
        return tmp_path / name

    return copied


@pytest.fixture(scope="session")
def rewritten():
    """Replace a file of weights by one whose tensors, a dict by key, are changed."""

    def rewrite(path, change):
        tensors = read_file(path)[0]
        change(tensors)
        path.unlink()
        rows = [replace(tensor, key=key) for key, tensor in tensors.items()]
        with path.open("wb") as file:
            write_torch(file, rows) if path.suffix == ".ckpt" else write_safetensors(file, rows, {})

    return rewrite


@pytest.fixture(scope="session")
def stored():
    """Return an array on its way into a file."""
    return lambda array, dtype="F32": Stored(
        "", dtype, np.shape(array), lambda: np.asarray(array, DTYPES[dtype])
    )


@pytest.fixture
def no_hang():
    """Fail what waits, such as for a pipe that nobody writes into."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Demand that files are refused in one line that has some words, in every way in.

    Nothing is written and nothing loaded then. `readable`: `weights inspect` describes them, with
    the last of the words. `without`: commands that do not look at what is wrong.
    """
    out = tmp_path / "out" / "old.safetensors"
    out.parent.mkdir()
    out.write_bytes(b"old")

    def check(path, *words, readable=False, without=frozenset()):
        commands = [
            ["weights", "convert", str(path), "--layout", "compvis", "--out", str(out)],
            ["run", "--weights", str(path), "--out", str(tmp_path / "report")],
            ["weights", "inspect", str(path)],
        ]
        lines = [] if find_spec("torch") is None else [_not_loaded(path, monkeypatch)]
        for command in commands:
            if not without.isdisjoint(command[:2]):
                continue
            code = main(command)
            text, line = capsys.readouterr()
            if readable and command[1] == "inspect":
                assert (code, line) == (1, "")
                assert words[-1] in text
            else:
                assert code == 2
                assert line.startswith("sd1-conformance: ")
                assert line.endswith("\n")
                lines.append(line[:-1])
        assert [path.name for path in out.parent.iterdir()] == ["old.safetensors"]
        assert out.read_bytes() == b"old"
        assert not (tmp_path / "report").exists()
        for line in lines:
            assert line.isprintable()
            for word in words:
                assert word in line
        return lines

    return check


def _not_loaded(path, monkeypatch):
    """Return why `load_pipeline` refuses files, having given weights to no network."""
    import torch

    from sd1_impl import load_pipeline

    given = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: given.append(1))
        with pytest.raises(CheckpointError) as caught:
            load_pipeline(path)
    assert not given
    return str(caught.value)
