"""Foreign packages of our names: what Python takes then, and what is said of it."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import shadowing

MODULE = ["-m", "conformance"]
SCRIPT = ["-c", "import sys; from conformance.cli import main; sys.exit(main())"]
"""What the console script does: the folder it is started in is not on the path."""


def start(how: list[str], folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Let a command read a golden, in a folder, with other folders on PYTHONPATH."""
    safe = ["-P"] if how is SCRIPT else []
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *safe, *how, "show", "tokenizer/-/plain"]
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


@pytest.fixture
def foreign(tmp_path: Path):
    """Return a function that makes a foreign package, and returns the folder that holds it."""

    def make(name: str, init: str | None = "") -> Path:
        (tmp_path / "there" / name).mkdir(parents=True)
        if init is not None:
            (tmp_path / "there" / name / "__init__.py").write_text(init)
        return tmp_path / "there"

    return make


@pytest.mark.parametrize("name", shadowing.IMPORTED)
@pytest.mark.parametrize("by", ["folder", "path"])
def test_a_foreign_package_is_one_line(foreign, tmp_path: Path, name: str, by: str) -> None:
    """Both paths are named, and what to do; exit 3 and no traceback."""
    folder = foreign(name)
    if by == "folder":
        done, advice = start(MODULE, folder), "start from another folder, or by `sd1-conformance`"
    else:
        done, advice = start(SCRIPT, tmp_path, folder), f"take {folder} out of PYTHONPATH"
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    wanted = f"{name} is taken from {folder / name}, not from {shadowing.HOME / name}: {advice}"
    assert done.stderr.startswith(f"sd1-conformance: {wanted}")


def test_a_foreign_package_of_its_own_error(foreign) -> None:
    """It is told before it is imported: whatever it raises is never seen."""
    done = start(MODULE, foreign("sd1_weights", "raise RuntimeError('not ours')"))
    assert (done.returncode, "not ours" in done.stderr) == (3, False)


@pytest.mark.parametrize("how", [MODULE, SCRIPT], ids=["folder", "script"])
def test_folders_without_init_shadow_nothing(foreign, how: list[str]) -> None:
    """Python goes on looking for real packages."""
    for name in shadowing.PACKAGES:
        folder = foreign(name, None)
    done = start(how, folder, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tokenizer/-/plain\n")


def test_a_foreign_golden_package_shadows_nothing(foreign) -> None:
    """Goldens are read from beside `sd1_weights`, by path: nothing of that name is imported."""
    done = start(MODULE, foreign("golden", "raise RuntimeError('imported')"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "output  input_ids" in done.stdout


def test_a_foreign_conformance_cannot_be_caught(foreign, tmp_path: Path) -> None:
    """None of our code runs then: docs tell how it looks, and `doctor` warns of it beforehand."""
    folder = foreign("conformance")
    done = start(MODULE, folder)
    assert done.returncode == 1
    assert "No module named conformance.__main__" in done.stderr
    done = start(SCRIPT, tmp_path, folder)
    assert "No module named 'conformance.cli'" in done.stderr
    assert start(SCRIPT, folder).returncode == 0


def test_what_is_in_the_way(tmp_path: Path) -> None:
    """Packages and modules of our names in a folder; none in the checkout, none without code."""
    (tmp_path / "conformance").mkdir()
    (tmp_path / "golden").mkdir()
    assert shadowing.in_the_way(tmp_path) == []
    (tmp_path / "conformance" / "__init__.py").touch()
    (tmp_path / "sd1_impl.py").touch()
    found = shadowing.in_the_way(tmp_path)
    assert found == [tmp_path / "conformance", tmp_path / "sd1_impl.py"]
    assert shadowing.in_the_way(shadowing.HOME) == []


def test_our_own_are_found() -> None:
    """Here nothing shadows anything."""
    for name in shadowing.PACKAGES:
        found = shadowing.find(name)
        assert (found.path, found.own) == (shadowing.HOME / name, True)
    shadowing.require_own_packages()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of installed distributions: ours with one file, and another."""
    code, digest = b"x = 1\n", hashlib.sha256(b"x = 1\n").digest()
    text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    (tmp_path / "conformance").mkdir()
    (tmp_path / "conformance" / "a.py").write_bytes(code)
    for name, rows in (
        ("sd1_conformance-1.0", f"conformance/a.py,sha256={text},6\ngolden/m.json,sha256=no,1\n"),
        ("other-2.0", "other/conformance/a.py,,\nother.py,,\n"),
    ):
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "RECORD").write_text(rows)
    monkeypatch.setattr(shadowing, "HOME", tmp_path)
    return tmp_path


def test_an_installation_is_whole_and_unmixed(site: Path) -> None:
    """Goldens have digests of their own in the manifest."""
    assert site.exists()
    assert (shadowing.altered(), list(shadowing.mixed())) == ([], [])


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_files_that_were_overwritten(site: Path, change: str) -> None:
    """They are named."""
    path = site / "conformance" / "a.py"
    path.unlink() if change == "deleted" else path.write_text("x = 2\n")
    assert shadowing.altered() == ["conformance/a.py"]


def test_another_distribution_in_our_folders(site: Path) -> None:
    """It is named with the folders; a folder of that name in its own package is none of ours."""
    record = site / "other-2.0.dist-info" / "RECORD"
    record.write_text("conformance/a.py,,\ngolden/x.json,,\n")
    assert list(shadowing.mixed()) == [("other-2.0", ["conformance", "golden"])]
