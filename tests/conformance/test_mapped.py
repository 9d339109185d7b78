"""Weights that processes share: their values, their files, and what goes wrong with files."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformance import mapped as module
from conformance.mapped import mapped
from conformance.recipe import SEED, Kind, TensorRecipe
from conformance.variants import parse_variant

RECIPE = TensorRecipe("conv.weight", (8, 16, 3, 3), Kind.WEIGHT)
WORKER = """
import sys
import numpy as np
from conformance import mapped as module
from conformance.recipe import Kind, TensorRecipe

module.LEAST, module._LOOK, module.FREE, module.MOST = 1, 1, 0, 40_000
for turn in range(30):
    for name in "abcdefgh":
        recipe = TensorRecipe(name, (1000,), Kind.WEIGHT)
        found = module.mapped(recipe, 1)
        assert np.array_equal(found, recipe.draw(np.float32, 1)), name
        found[:] = turn  # no other process sees it
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let every tensor be large enough; return the folder of their files."""
    monkeypatch.setenv("SD1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "LEAST", 1)
    monkeypatch.setattr(module, "FREE", 0)
    return tmp_path / "cache" / "sd1-weights"


@pytest.fixture
def _drawn_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the recipe's values, then let nobody draw."""
    assert not folder.exists()
    mapped(RECIPE, SEED)
    monkeypatch.setattr(TensorRecipe, "draw", None)


def right(values: np.ndarray, recipe: TensorRecipe = RECIPE, seed: int = SEED) -> bool:
    """Say whether values are those of a recipe."""
    wanted = recipe.draw(np.float32, seed)
    return values.dtype == np.float32 and np.array_equal(values, wanted)


def test_values_are_the_recipe_s(folder: Path) -> None:
    """Drawn or mapped, the values are the same, and one file holds them."""
    assert right(mapped(RECIPE, SEED))
    assert right(mapped(RECIPE, SEED))
    (path,) = folder.iterdir()
    assert path.stat().st_size == 4 * 8 * 16 * 3 * 3 + 4


@pytest.mark.usefixtures("_drawn_once")
def test_nothing_is_drawn_twice() -> None:
    """What is kept is read."""
    assert mapped(RECIPE, SEED).shape == RECIPE.shape


def test_what_a_port_writes_stays_with_it(folder: Path) -> None:
    """Arrays can be written into; neither the file nor the next reader has it."""
    first = mapped(RECIPE, SEED)
    (path,) = folder.iterdir()
    before = path.read_bytes()
    first[:] = 0
    assert right(mapped(RECIPE, SEED))
    assert path.read_bytes() == before


def test_use_is_remembered(folder: Path) -> None:
    """A file that is read is not the next to go."""
    mapped(RECIPE, SEED)
    (path,) = folder.iterdir()
    os.utime(path, (1, 1))
    mapped(RECIPE, SEED)
    assert path.stat().st_mtime > 1


CHANGES = {
    "name": {"name": "other"},
    "shape": {"shape": (16, 8, 3, 3)},
    "kind": {"kind": Kind.BIAS},
    "dense": {"dense": True},
    "rows": {"row_shifts": ((0, 1),)},
    "signs": {"signs": True},
    "border": {"border": 1},
    "mean": {"mean": 1.0},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_recipe_is_another_file(folder: Path, change: dict[str, object]) -> None:
    """Whatever changes the values changes the name."""
    other = replace(RECIPE, **change)
    mapped(RECIPE, SEED)
    assert right(mapped(other, SEED), other)
    assert len(list(folder.iterdir())) == 2


def test_another_seed_or_code_is_another_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does the seed, and a change of the code that draws."""
    mapped(RECIPE, SEED)
    assert right(mapped(RECIPE, SEED + 1), seed=SEED + 1)
    monkeypatch.setattr(module, "_code", lambda: "changed")
    mapped(RECIPE, SEED)
    assert len(list(folder.iterdir())) == 3


def flip(path: Path) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "cut": lambda path: os.truncate(path, 100),
    "without-checksum": lambda path: os.truncate(path, path.stat().st_size - 4),
    "empty": lambda path: os.truncate(path, 0),
    "bit": flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"1"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_mended(folder: Path, damage) -> None:
    """A damaged file changes no weight: it is drawn anew, and whole again."""
    mapped(RECIPE, SEED)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    damage(path)
    assert right(mapped(RECIPE, SEED))
    assert path.read_bytes() == whole


@pytest.fixture
def _small_files() -> Iterator[None]:
    """Let the system refuse files over 1000 bytes, as a full disk would."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_small_files")
def test_a_full_disk_costs_memory_only(folder: Path) -> None:
    """Where a file cannot be written whole, the values are drawn, and nothing is left of it."""
    assert right(mapped(RECIPE, SEED))
    assert list(folder.iterdir()) == []


def test_room_is_left_on_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk is not filled to the last byte."""
    free = shutil.disk_usage(folder.parents[1]).free
    monkeypatch.setattr(module, "FREE", 2 * free)
    assert right(mapped(RECIPE, SEED))
    assert list(folder.iterdir()) == []


def test_no_folder_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache, or where there can be no folder, the values are drawn."""
    monkeypatch.chdir(folder.parents[1])
    monkeypatch.setenv("SD1_CACHE", "")
    assert right(mapped(RECIPE, SEED))
    Path("file").write_text("")
    monkeypatch.setenv("SD1_CACHE", "file")
    assert right(mapped(RECIPE, SEED))
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_read_only_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is read, and what is not is drawn."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    mapped(RECIPE, SEED)
    for name in ("touch", "mkdir", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    assert right(mapped(RECIPE, SEED))
    assert right(mapped(RECIPE, SEED + 1), seed=SEED + 1)
    assert len(list(folder.iterdir())) == 1


def test_the_folder_keeps_its_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that were not used for longest go."""
    monkeypatch.setattr(module, "_LOOK", 1)
    monkeypatch.setattr(module, "MOST", 2 * (4 * 8 * 16 * 3 * 3 + 4))
    for seed in range(4):
        mapped(RECIPE, seed)
        for age, path in enumerate(sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime)):
            os.utime(path, (age + 1, age + 1))
    left = {path.name for path in folder.iterdir()}
    assert left == {module._name(RECIPE, seed) for seed in (2, 3)}


def test_several_processes_at_once(folder: Path) -> None:
    """Processes that write, read and delete the same files all have the right values."""
    start = [sys.executable, "-c", WORKER]
    workers = [subprocess.Popen(start, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [worker.communicate()[1] for worker in workers]
    assert (errors, [worker.returncode for worker in workers]) == ([""] * 4, [0] * 4)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 40_000
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def private_bytes() -> int:
    """Return the memory that this process shares with nobody."""
    text = Path("/proc/self/smaps_rollup").read_text("ascii")
    return 1024 * int(re.search(r"Anonymous:\s+(\d+)", text)[1])


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
@pytest.mark.usefixtures("folder")
def test_memory_is_not_the_process_s_own() -> None:
    """64 MiB of weights cost the process under one of its own; drawn, they cost all of it."""
    recipe = TensorRecipe("large.weight", (2**12, 2**12), Kind.WEIGHT)
    mapped(recipe, SEED)
    before = private_bytes()
    values = mapped(recipe, SEED)
    assert values.sum(dtype=np.float64)  # every page is there
    assert private_bytes() - before < 2**20
    values[:] = 1
    assert private_bytes() - before >= values.nbytes


def test_only_the_published_size_is_kept(folder: Path) -> None:
    """Weights of `sd1` are mapped, those of small variants drawn."""
    name = "conv_in.weight"
    for variant in ("tiny", "sd1", "sd1-inpaint", "sd1-lowvar"):
        weights = parse_variant(variant).weights("unet")
        assert right(weights[name], weights.recipes[name])
        assert folder.exists() == (variant != "tiny")
    assert 1 < len(list(folder.iterdir())) <= 3


@pytest.mark.parametrize(("name", "large"), [("conv_in.weight", False), ("mid.weight", True)])
def test_small_tensors_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, large: bool
) -> None:
    """A file is worth its while from a mebibyte on."""
    monkeypatch.setattr(module, "LEAST", 2**20)
    recipe = TensorRecipe(name, (2**18 - (not large),), Kind.WEIGHT)
    assert right(mapped(recipe, SEED), recipe)
    assert folder.exists() == large
