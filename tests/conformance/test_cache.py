"""The cache's folders: their size, what is left of killed processes, and several at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conformance.cache import beside, shrink
from conformance.case import find_case
from conformance.errors import UsageError
from conformance.traces import Values, write_pack

CASE = "text_encoder/tiny/base"
WRITER = f"""
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
from conformance.case import find_case
from conformance.traces import Values, write_pack

path, case = Path(sys.argv[1]), find_case("{CASE}")
for turn in range(50):
    write_pack(path, case, Values({{"a": np.full(9999, float(turn))}}, {{}}))
    assert len(set(load_file(path)["a"].tolist())) == 1
"""


def written(path: Path, size: int, age: float = 0) -> Path:
    """Write a file that was used some seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def names(folder: Path) -> set[str]:
    """Return the names of the files in a folder."""
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("most", "left"),
    [(300, {"a", "b", "c"}), (299, {"b", "c"}), (100, {"c"}), (0, set())],
    ids=["fits", "one-over", "one-left", "none"],
)
def test_what_was_unused_for_longest_goes(tmp_path: Path, most: int, left: set[str]) -> None:
    """Files go by the time of their last use until the folder has its size, and no further."""
    for age, name in enumerate("cba"):
        written(tmp_path / f"folder-{name}" / name, 100, 10 * age)
    shrink(tmp_path, most)
    assert names(tmp_path) == left


def test_what_was_never_finished_is_deleted(tmp_path: Path) -> None:
    """What a killed process left goes after an hour; what another is writing stays."""
    killed = written(tmp_path / ".pack.1", 5, age=4000)
    written(tmp_path / ".pack.2", 5, age=3000)
    written(tmp_path / "pack", 5, age=9000)
    shrink(tmp_path, 100)
    assert not killed.exists()
    assert names(tmp_path) == {".pack.2", "pack"}


def test_others_delete_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process deletes between two looks is no error."""
    kept = written(tmp_path / "a", 100)
    monkeypatch.setattr(Path, "rglob", lambda *_: iter([tmp_path / "gone", kept]))
    shrink(tmp_path, 100)
    assert kept.exists()


def test_files_on_their_way_are_this_process_s(tmp_path: Path) -> None:
    """Two processes write the same file under two names."""
    assert beside(tmp_path / "pack") == tmp_path / f".pack.{os.getpid()}"


def test_a_full_disk_leaves_no_half_pack(tmp_path: Path) -> None:
    """A pack that the system refuses to write whole is a clear error, and takes no room."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UsageError, match="cannot write the trace pack"):
            write_pack(tmp_path / "pack", find_case(CASE), Values({"a": np.ones(10_000)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_several_write_one_pack(tmp_path: Path) -> None:
    """Who reads a pack while others write it reads one of theirs, whole."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "pack")]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [writer.communicate()[1] for writer in writers] == [""] * 3
    assert names(tmp_path) == {"pack"}
