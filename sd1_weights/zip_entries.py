"""The entries of an uncompressed zip archive, found without trust: views of the mapped file.

Source: PKWARE's application note, sections 4.3.7 (local headers) and 4.4 (fields).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sd1_weights.errors import CheckpointError
from sd1_weights.pickles import shown

MAGIC = b"PK\x03\x04"
"""Before each entry, so at the start of the file."""

LOCAL = struct.Struct("<4s4xH16xHH")
"""Before an entry: magic, method, lengths of the name and of the extra field that follow."""

_ENCRYPTED, _UTF8 = 0x1, 0x800
_MOST_DIRECTORY = 16 << 20


class Entry:
    """One entry.

    Attributes:
        what: File and entry, for messages.
        data: Its bytes: a view of the file; uint8.
    """

    def __init__(self, what: str, data: np.ndarray, crc: int) -> None:
        self.what = what
        self.data = data
        # 0: torch.serialization.set_crc32_options(False) was in force, none was computed.
        self._crc = crc or None

    def checked(self) -> np.ndarray:
        """Return its bytes, read as a whole the first time.

        Raises:
            CheckpointError: They are not those that were written.
        """
        if self._crc is not None and zlib.crc32(self.data.data) != self._crc:
            raise CheckpointError(
                f"{self.what} is damaged: its CRC-32 is not the archive's; get the file again"
            )
        self._crc = None
        return self.data


class _BoundedFile(io.FileIO):
    """A file of which no more is read at once than a directory of entries takes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_DIRECTORY:
            raise CheckpointError(
                f"{self.name}: the archive's directory takes {size} bytes, "
                f"expected at most {_MOST_DIRECTORY}"
            )
        return super().read(size)


class Directory(NamedTuple):
    """What an archive's directory says.

    Attributes:
        entries: Of each entry.
        end: Where the directory begins, and entries end.
    """

    entries: list[zipfile.ZipInfo]
    end: int


def zip_directory(path: Path) -> Directory:
    """Read an archive's directory.

    Raises:
        CheckpointError: It is no whole archive.
    """
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            return Directory(archive.infolist(), archive.start_dir)
    except CheckpointError:
        raise
    except (
        *(zipfile.BadZipFile, NotImplementedError, struct.error),
        *(ValueError, OverflowError, OSError),
    ) as error:
        raise CheckpointError(
            f"{path} is no whole archive ({shown(str(error))}): it may be cut off, get it again"
        ) from error


def zip_entries(directory: Directory, raw: np.ndarray, path: Path) -> dict[str, Entry]:
    """Find the bytes of all entries.

    Args:
        directory: The archive's.
        raw: The bytes of the file, mapped; uint8.
        path: The file.

    Returns:
        The entries by name, in the order of their bytes.

    Raises:
        CheckpointError: An entry is compressed, or lies outside the file or on another; a name
            occurs twice.
    """
    data = raw.view(np.ndarray)
    entries: dict[str, Entry] = {}
    place, before = 0, ""
    for info in sorted(directory.entries, key=lambda info: info.header_offset):
        what = f"{path}: {shown(info.filename)}"
        start, stop = _place(info, data, what)
        if info.filename in entries:
            raise CheckpointError(f"{what} occurs twice in the archive")
        if info.header_offset < place or stop > directory.end:
            on = "the directory" if stop > directory.end else shown(before)
            raise CheckpointError(f"{what} lies over {on} in the archive")
        entries[info.filename] = Entry(what, data[start:stop], info.CRC)
        place, before = stop, info.filename
    return entries


def _place(info: zipfile.ZipInfo, data: np.ndarray, what: str) -> tuple[int, int]:
    """Return where an entry's bytes begin and end."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise CheckpointError(f"{what} is compressed, torch.save stores it as it is")
    if info.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{what} is encrypted")
    start = info.header_offset + LOCAL.size
    if not LOCAL.size <= start <= data.size:
        raise CheckpointError(f"{what} lies outside the file")
    magic, method, name_length, extra_length = LOCAL.unpack(
        data[info.header_offset : start].tobytes()
    )
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    found = data[start : start + name_length].tobytes()
    if (magic, method, found) != (MAGIC, zipfile.ZIP_STORED, name):
        raise CheckpointError(f"{what} is not where the archive's directory says")
    start += name_length + extra_length
    return start, start + info.file_size
