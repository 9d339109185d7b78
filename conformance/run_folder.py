"""The folder of a run: one process writes it at a time, and a kill costs it no whole line."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any
from weakref import WeakValueDictionary, finalize

from conformance.errors import SuiteError, UsageError
from conformance.run_records import read_records

RESULTS = "results.jsonl"
SUMMARY = "summary.json"
AUDIT = "audit.json"

WRITERS = {RESULTS: "a run", AUDIT: "an audit"}
"""By the file that only it writes, what may have written a folder."""

_GUESTS = frozenset({"mutants.json"})
"""What another command writes into the folder of a run, which need not be there yet."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

LOCK = ".lock"
"""Stands for the lock where the kernel has none for folders."""


class RunFolder:
    """Holds a folder for this process, and writes results.jsonl line by line."""

    def __init__(self, path: Path) -> None:
        """Create the folder and keep other processes from writing to it until it is closed.

        Args:
            path: The folder.

        Raises:
            UsageError: It cannot be written, or another process writes to it.
        """
        self.path = path
        self._file: IO[str] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: _Lock | None = _lock(path)
        except OSError as error:
            raise _unwritable(path, error) from error

    def records(self) -> list[dict[str, Any]]:
        """Read the whole lines of the run that is there; one that a kill cut is left out.

        Returns:
            The header, then the other lines; nothing where there is no whole header.

        Raises:
            UsageError: The file there holds no run.
        """
        path = self.path / RESULTS
        if not path.exists():
            return []
        try:
            return read_records(path)
        except (OSError, ValueError) as error:
            message = f"cannot resume: {path} is not a run's results; drop --resume"
            raise UsageError(message) from error

    def begin(self, records: Iterable[dict[str, Any]], stale: Iterable[str] = ()) -> None:
        """Replace results.jsonl, all of it or nothing, and go on after the last of these lines.

        Args:
            records: The header, and what an earlier run has already found.
            stale: Names of files of an earlier run, to be removed.

        Raises:
            UsageError: The folder cannot be written.
            SuiteError: The disk is full.
        """
        try:
            self._rewrite(records)
            for name in stale:
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _rewrite(self, records: Iterable[dict[str, Any]]) -> None:
        if self._file is not None:
            self._file.close()
        write_whole(self.path / RESULTS, map(row, records))
        self._file = (self.path / RESULTS).open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to results.jsonl: once this returns, no kill of this process loses it.

        Raises:
            SuiteError: It cannot be written; the lines before it stay.
        """
        if self._file is None:
            message = f"{self.path}: the run has not begun"
            raise ValueError(message)
        try:
            with writing(self.path):
                self._file.write(row(record))
                self._file.flush()
        except SuiteError:
            with suppress(OSError):  # closing tries to write what is left once more
                self._file.close()
            raise

    def close(self) -> None:
        """Let others write to the folder."""
        if self._file is not None:
            self._file.close()
        self._file = self._lock = None


def require_own(folder: Path, mark: str, names: Collection[str]) -> None:
    """Refuse a folder that is another's: a run and an audit replace their own files alone.

    Args:
        folder: It need not be there.
        mark: The file that shows it to be one's own, of `WRITERS`.
        names: Of the files that would be replaced or removed.

    Raises:
        UsageError: The other's mark is there, or other files without one's own.
    """
    there = {name for name in (*WRITERS, *names) if os.path.lexists(folder / name)}
    other = next((name for name in WRITERS if name in there and name != mark), None)
    kind = WRITERS[mark].split()[-1]
    if other is not None:
        reason = f"{folder} holds {other}: {WRITERS[other]} wrote it"
    elif mark in there:
        return
    elif there:
        found = next(name for name in names if name in there)
        reason = f"{folder} holds {found}, but no {mark}: no {kind} wrote it"
    else:
        require_room(folder, _GUESTS, f"no {kind}")
        return
    message = f"{reason}, and this one would replace it; give another --out"
    raise UsageError(message)


def require_room(folder: Path, marks: Collection[str], nobody: str) -> None:
    """Refuse a folder with files among which new ones would be lost; hidden ones do not count.

    Args:
        folder: It need not be there.
        marks: Names of which one shows that the folder was written by the same command.
        nobody: Who has not written it, such as `no run`.

    Raises:
        UsageError: It holds files, and none of these.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return  # it is not there, or `require_creatable` says what it is
    found = sorted(name for name in names if not name.startswith("."))
    if found and not set(marks).intersection(found):
        message = (
            f"{folder} is not empty (it holds {found[0]}) and {nobody} wrote it: "
            "give another --out, or an empty folder"
        )
        raise UsageError(message)


def require_creatable(path: Path, what: str) -> None:
    """Check, before minutes are spent, that a folder can be created and written; nothing is left.

    Args:
        path: The folder; it may be there.
        what: What is to be written, such as `the audit`.

    Raises:
        UsageError: It cannot.
    """
    there = next(own for own in (path, *path.absolute().parents) if os.path.lexists(own))
    try:
        try_to_write(there)
    except OSError as error:
        raise unwritable(path, error, what) from error


def try_to_write(folder: Path) -> None:
    """Write into a folder, and leave nothing there: some, such as /proc, only say that they can be.

    Raises:
        OSError: It cannot be written, or is not there.
    """
    with TemporaryDirectory(dir=folder, prefix=".sd1-"):
        pass


def unwritable(path: Path, error: OSError, what: str) -> UsageError:
    """Build the error for a folder that cannot be created or written, with one reason."""
    there = next(own for own in (path, *path.absolute().parents) if os.path.lexists(own))
    if not there.is_dir():
        reason = f"{'it' if there == path else there} is a file, not a folder"
    elif there != path:
        why = "" if error.errno == errno.ENOENT else f": {error.strerror}"
        reason = f"it cannot be created in {there}{why}"
    else:
        reason = error.strerror or type(error).__name__
    return UsageError(f"cannot write {what} to {path}: {reason}; give another --out")


def _unwritable(path: Path, error: OSError) -> SuiteError:
    if error.errno in _FULL:
        return _broken_off(path, error)
    return unwritable(path, error, "the report")


def _broken_off(path: Path, error: OSError) -> SuiteError:
    advice = "free some space" if error.errno in _FULL else "mend that"
    reason = error.strerror or type(error).__name__
    return SuiteError(f"cannot write to {path}: {reason}: {advice}, then run --resume")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what keeps a run from writing to its folder, such as a full disk, into one clear line.

    Args:
        folder: The run's folder.

    Raises:
        SuiteError: Something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise _broken_off(folder, error) from error


def writer_of(folder: Path) -> str:
    """Say which process writes to a folder now, such as `process 7`; empty if none does."""
    if (folder / LOCK).is_file():
        return _who((folder / LOCK).read_text("ascii", errors="replace")[:20])
    try:
        fcntl: Any = importlib.import_module("fcntl")
        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _who(_writer(folder))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return ""


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write a text file: a kill leaves the old one, or the new one, never a part.

    Args:
        path: The file.
        parts: The text, in pieces.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def row(record: dict[str, Any]) -> str:
    """Write a record as a line of results.jsonl."""
    return json.dumps(plain(record), separators=(",", ":")) + "\n"


def plain(value: Any) -> Any:
    """Make a value strict JSON: NaN and infinities become strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


class _Lock:
    """A folder's lock: the kernel's, which ends with the process, or else a file."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            UsageError: Another process holds it.
            OSError: The folder cannot be read or written.
        """
        descriptor = _kernel_lock(folder)
        if descriptor is not None:
            finalize(self, os.close, descriptor)
        else:
            finalize(self, partial(_file_lock(folder).unlink, missing_ok=True))


_HELD: WeakValueDictionary[Path, _Lock] = WeakValueDictionary()


def _lock(folder: Path) -> _Lock:
    """Return the lock of a folder; a process that holds it already shares it with itself."""
    place = folder.resolve()
    held = _HELD.get(place)
    if held is None:
        held = _HELD[place] = _Lock(folder)
    return held


def _kernel_lock(folder: Path) -> int | None:
    """Lock a folder in the kernel; None where there is no such lock (Windows, some NFS)."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _taken(folder, _writer(folder)) from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _file_lock(folder: Path) -> Path:
    """Lock a folder by a file in it, which outlives a process that is killed."""
    path = folder / LOCK
    try:
        with path.open("x", encoding="ascii") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        holder = path.read_text("ascii", errors="replace")[:20]
        message = f"{_taken(folder, holder)}; if no such process runs any longer, delete {path}"
        raise UsageError(message) from None
    return path


def _taken(folder: Path, holder: str) -> UsageError:
    message = f"{_who(holder)} writes its run to {folder}: wait for it, or give another --out"
    return UsageError(message)


def _who(holder: str) -> str:
    return f"process {holder}" if holder.isdigit() else "another process"


def _writer(folder: Path) -> str:
    """Return the number of the process that began the run in a folder; empty if unknown."""
    try:
        with (folder / RESULTS).open("rb") as file:
            process = json.loads(file.readline()).get("process")
    except (OSError, ValueError, AttributeError):
        return ""
    return str(process) if isinstance(process, int) else ""
