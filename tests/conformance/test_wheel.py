"""What is built from this checkout: the wheel holds all that runs, the sdist all that tests it."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

pytest.importorskip("hatchling", reason="building needs hatchling: pip install hatchling")

from conformance.manifest import manifest
from conformance.shadowing import HOME, PACKAGES

if not (HOME / "pyproject.toml").is_file():
    pytest.skip("there is no checkout to build from", allow_module_level=True)

TOP = ("README.md", "LICENSE", "pyproject.toml", "tox.ini", "requirements.txt")
LATER = ("CONTRIBUTING.md", "CHANGELOG.md", "notebooks", "docs", "examples", "constraints", "tests")
"""What an sdist holds too, where the checkout does."""


def build(target: str, folder: Path) -> Path:
    """Build in a folder, offline."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel."""
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names in the sdist, without its top folder."""
    with tarfile.open(build("sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def tracked(*folders: str) -> set[str]:
    """Return the files of folders as git knows them, and so as the checkout ships them."""
    command = ["git", "ls-files", "-z", "--", *folders]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("git does not say which files belong to the checkout")
    return {name for name in done.stdout.split("\0") if name and (HOME / name).exists()}


def test_the_wheel_holds_the_packages(wheel: zipfile.ZipFile) -> None:
    """Every file of the four, data too; and nothing else but its own metadata."""
    names = set(wheel.namelist())
    assert tracked(*PACKAGES) <= names
    tops = {PurePosixPath(name).parts[0] for name in names}
    (info,) = tops - set(PACKAGES)
    assert info.endswith(".dist-info")


def test_every_golden_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Those that the manifest lists, as long as it says."""
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    goldens = manifest()["goldens"].values()
    assert {f"golden/{g['file']}": g["bytes"] for g in goldens}.items() <= sizes.items()


@pytest.mark.parametrize(
    "name",
    [
        "golden/manifest.json",
        "golden/cases.lock",
        "golden/spec/clip_merges.txt.gz",
        "conformance/memory/budgets.json",
        "conformance/schemas/manifest.schema.json",
        "conformance/report/templates/",
        "sd1_weights/toy.safetensors",
    ],
)
def test_data_is_in_the_wheel(wheel: zipfile.ZipFile, name: str) -> None:
    """What code reads beside itself; what the checkout does not have yet is none of it."""
    if not (HOME / name).exists():
        pytest.skip(f"{name} is not in the checkout")
    assert any(own.startswith(name) for own in wheel.namelist())


def test_the_record_lists_everything(wheel: zipfile.ZipFile) -> None:
    """With a digest, which `doctor` compares: of all but the record itself."""
    (record,) = (name for name in wheel.namelist() if name.endswith(".dist-info/RECORD"))
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(wheel.read(record).decode()))}
    assert rows.pop(record) == ""
    assert set(rows) == set(wheel.namelist()) - {record}
    assert all(digest.startswith("sha256=") for digest in rows.values())


def test_the_licence_and_the_commands(wheel: zipfile.ZipFile) -> None:
    """The licence, the console script and the pytest plugin."""
    names = wheel.namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (points,) = (name for name in names if name.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "sd1-conformance = conformance.cli:main" in text
    assert "sd1-conformance = conformance.pytest_plugin" in text


def test_the_sdist_holds_what_tests_need(sdist: set[str]) -> None:
    """From it everything can be built, tested and read."""
    wanted = tracked(*PACKAGES, *TOP, *(name for name in LATER if (HOME / name).exists()))
    assert sorted(wanted - sdist) == []
