"""Entries are found where the archive says, if that is within the file and nobody else's."""

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest

from sd1_weights.errors import CheckpointError
from sd1_weights.zip_entries import zip_directory, zip_entries

ENTRIES = {"a/data.pkl": b"pickle", "a/empty": b"", "a/ü": b"name"}
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def archive(entries=ENTRIES, **options):
    """Return a zip archive."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", **options) as zipped:
        warnings.simplefilter("ignore")
        for name, data in entries.items() if isinstance(entries, dict) else entries:
            zipped.writestr(name, data)
    return file.getvalue()


def patched(where, offset, code, value, data=None):
    """Return an archive with a field changed in its first record of a kind."""
    changed = bytearray(data or archive())
    struct.pack_into(code, changed, changed.index(where) + offset, value)
    return bytes(changed)


@pytest.fixture
def entries(tmp_path):
    """Give the entries of an archive."""

    def found(data):
        path = tmp_path / "weights.ckpt"
        path.write_bytes(data)
        return zip_entries(zip_directory(path), np.frombuffer(data, np.uint8), path)

    return found


def test_entries_are_found(entries):
    """By name, with their bytes, also the empty one."""
    found = entries(archive())
    assert {name: entry.checked().tobytes() for name, entry in found.items()} == ENTRIES


def test_an_archive_behind_other_bytes_is_found(entries):
    """Places are counted from where the archive begins, as zip tools do."""
    found = entries(b"#!/bin/sh\n" + archive())
    assert found["a/data.pkl"].checked().tobytes() == b"pickle"


def test_damage_is_found_once_it_is_read(entries):
    """The CRC-32 is compared the first time."""
    entry = entries(archive().replace(b"pickle", b"pickld"))["a/data.pkl"]
    with pytest.raises(CheckpointError, match=r"weights\.ckpt: a/data\.pkl is damaged"):
        entry.checked()


FAULTS = {
    "no-archive": (b"no archive at all" * 10, "is no whole archive"),
    "empty": (b"", "is no whole archive"),
    "only-magic": (LOCAL, "is no whole archive"),
    "cut-off": (archive()[:-30], "is no whole archive"),
    "twice": (archive([("a/w", b"1"), ("a/v", b""), ("a/w", b"2")]), "a/w occurs twice"),
    "compressed": (
        archive({"a/w": b"1" * 99}, compression=zipfile.ZIP_DEFLATED),
        "a/w is compressed, torch.save stores it as it is",
    ),
    "compressed-beside": (patched(LOCAL, 8, "<H", 8), "a/data.pkl is not where"),
    "other-sizes": (patched(CENTRAL, 20, "<I", 5), "a/data.pkl is compressed"),
    "encrypted": (patched(CENTRAL, 8, "<H", 1), "a/data.pkl is encrypted"),
    "other-name": (patched(LOCAL, 30, "<B", ord("b")), "a/data.pkl is not where"),
    "other-place": (patched(CENTRAL, 42, "<I", 3), "a/data.pkl is not where"),
    "far-place": (patched(CENTRAL, 42, "<I", 2**32 - 2), "a/data.pkl lies outside the file"),
    "past-end": (
        patched(CENTRAL, 20, "<I", 999, patched(CENTRAL, 24, "<I", 999)),
        "a/data.pkl lies over the directory",
    ),
    "over-the-next": (
        patched(CENTRAL, 20, "<I", 50, patched(CENTRAL, 24, "<I", 50)),
        "a/empty lies over a/data.pkl",
    ),
    "newer-zip": (patched(CENTRAL, 6, "<H", 999), "is no whole archive"),
    "directory-far": (patched(END, 16, "<I", 2**31), "weights.ckpt"),  # Pythons differ in words
    "directory-giant": (patched(END, 12, "<I", 2**31), "is no whole archive"),
    "odd-extra": (patched(CENTRAL, 30, "<H", 3), "is no whole archive"),
    "bad-utf8": (
        archive().replace("ü".encode(), b"\xff\xfe"),
        "is no whole archive",
    ),
}


@pytest.mark.parametrize(("data", "why"), FAULTS.values(), ids=FAULTS)
def test_hostile_archives_get_one_clear_line(entries, data, why):
    """The entry is named, where it is one's fault."""
    with pytest.raises(CheckpointError) as caught:
        entries(data)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


def test_two_names_for_the_same_bytes_are_refused(entries):
    """As in archives that unpack to many times their size."""
    data = bytearray(archive({"a/1": b"x" * 40, "a/2": b"y" * 40}))
    second = data.rindex(CENTRAL)
    struct.pack_into("<I", data, second + 42, 0)
    data[second + 46 + 2] = ord("1")
    with pytest.raises(CheckpointError, match="a/1 occurs twice"):
        entries(bytes(data))
    nested = archive({"a/1": archive({"a/2": b"y" * 40})[: 30 + 3 + 40], "a/2": b"y" * 40})
    inner = nested.index(LOCAL, 4)
    data = bytearray(nested)
    struct.pack_into("<I", data, data.rindex(CENTRAL) + 42, inner)
    with pytest.raises(CheckpointError, match="a/2 lies over a/1"):
        entries(bytes(data))


def test_a_giant_directory_is_not_read(tmp_path):
    """It would take many times its size in memory."""
    path = tmp_path / "weights.ckpt"
    size = 17 << 20
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2IH", END, 0, 0, 0, 0, size, 0, 0))
    with pytest.raises(CheckpointError, match=f"directory takes {size} bytes, expected at most"):
        zip_directory(path)
