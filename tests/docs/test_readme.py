"""The README: short, and every number, table and capture in it is that of today."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.case import all_cases
from conformance.errors import ExitCode
from conformance.levels import LADDER, NAMES
from conformance.sampling import ALGORITHMS
from conformance.tolerance import LIMIT

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
FRONT, _, FOLD = README.partition("<details>")
_DIGITS = re.compile(r"\d{3,}")
NO_ORACLE = """
import sys
for name in ("torch", "diffusers", "transformers"):
    sys.modules[name] = None
import conformance.traces
conformance.traces.have_oracle = lambda: False
from conformance.cli import main
sys.exit(main())
"""
"""The command line, as in an environment that has the core alone."""


def number(pattern: str, text: str = README) -> float:
    """Return the one number that a pattern finds."""
    (found,) = re.findall(pattern, text)
    return float(found)


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line without torch and oracle, in a folder."""
    variables = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "SD1_GOLDEN": str(ROOT / "golden"),
    }
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", NO_ORACLE, *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_it_is_short() -> None:
    """Two screens before the fold."""
    assert len(FRONT.splitlines()) <= 115


def test_the_limit() -> None:
    """The one number that everything hangs on."""
    assert number(r"one limit\]\(docs/tolerance.md\), (\d+) times") == LIMIT


@pytest.mark.parametrize("port", ["in-process", "served"])
def test_the_first_commands(port: str, tmp_path: Path) -> None:
    """Both runs of the block port end as the README says, without torch."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "conformance/adapters", tmp_path / "conformance/adapters")
    lines = re.findall(r"^sd1-conformance run (\S*examples/block\S*|\".*?\")", README, re.MULTILINE)
    (tmp_path / "conformance").rename(tmp_path / "served")  # it must not shadow the package
    spec = {"in-process": lines[0], "served": lines[1].strip('"')}[port]
    spec = spec.replace("exec:python conformance", f"exec:{sys.executable} served")
    done = run("run", spec, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "\nCONFORMANT: block 1.0" in done.stdout


def test_the_capture(tmp_path: Path) -> None:
    """The wrong port is made by the README's own lines, and prints what stands there."""
    port = (ROOT / "examples/numpy/sd1_numpy/vae.py").read_text("utf-8")
    old, new = re.search(r"sed -i\.bak 's/(.*?)/(.*?)/' wrong/sd1_numpy/vae\.py", README).groups()  # type: ignore[union-attr]
    assert port.count(old) == 1
    shutil.copytree(ROOT / "examples/numpy", tmp_path / "wrong")
    (tmp_path / "wrong/sd1_numpy/vae.py").write_text(port.replace(old, new), "utf-8")
    (words,) = re.findall(r"^sd1-conformance (run wrong/.*)$", README, re.MULTILINE)
    done = run(*words.split(), folder=tmp_path)
    assert done.returncode == 1, done.stderr
    (capture,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    printed = done.stdout.splitlines()
    places = [_place(line, printed) for line in capture.splitlines() if line != "..."]
    assert places == sorted(places)


def _place(line: str, printed: list[str]) -> int:
    """Return which printed line this is; numbers may differ in their last digits."""
    for i, other in enumerate(printed):
        if _DIGITS.sub("", line) == _DIGITS.sub("", other):
            shown, found = ([int(n) for n in _DIGITS.findall(text)] for text in (line, other))
            if all(abs(s - f) <= 0.01 * f for s, f in zip(shown, found, strict=True)):
                return i
    pytest.fail(f"not printed: {line}\nbut:\n" + "\n".join(printed))


def test_what_is_covered() -> None:
    """Levels have their names, and the counts are those of the cases: over, by less than half."""
    rows = dict(re.findall(r"^\| (\d \w+) \|.*\| (.*?) \|$", FRONT, re.MULTILINE))
    assert list(rows) == [f"{level} {name}" for level, name in enumerate(NAMES)]
    for rung, text in zip(LADDER, list(rows.values())[1:], strict=True):
        stated = number(r"over (\d+)", text)
        found = sum(rung.has(case.component) for case in all_cases())
        assert stated < found < 1.5 * stated, (rung.name, found)


def test_schedulers_are_named() -> None:
    """The row of level 2 has each, and no other."""
    (row,) = re.findall(r"^\| 2 samplers \| (.*?): every step", FRONT, re.MULTILINE)
    words = {re.sub(r"\W", "", name.lower()) for name in row.split(", ")}
    known = {re.sub(r"_", "", name).replace("dpmpp2m", "dpmsolver2m") for name in ALGORITHMS}
    assert words == known


def test_mutants() -> None:
    """How many there are is what the last gate wrote: over, by less than half."""
    page = (ROOT / "docs/mutants.md").read_text("utf-8")
    for stated, found in (
        (number(r"known bug, over (\d+),"), number(r"\| killed \| (\d+) of \d+ \|", page)),
        (number(r"over\n(\d+) lawful"), number(r"that survive \| (\d+) of \d+ \|", page)),
    ):
        assert stated < found < 1.5 * stated


def test_exit_codes() -> None:
    """In the README and in docs/ci.md: all of them, and no other."""
    (told,) = re.findall(r"Exit codes: (.*?) \(", README)
    known = {str(code.value) for code in ExitCode}
    assert {part.partition(" ")[0] for part in told.split(", ")} == known
    page = (ROOT / "docs/ci.md").read_text("utf-8").partition("## A workflow")[0]
    assert set(re.findall(r"^\| (\d) \|", page, re.MULTILINE)) == known


def test_stamps_are_named() -> None:
    """Those of the contract page."""
    page = (ROOT / "docs/contract.md").read_text("utf-8").partition("## Stamps")[2]
    stamps = re.findall(r"^\| `([\w-]+)", page, re.MULTILINE)
    assert len(stamps) == 4
    assert [name for name in stamps if f"`{name}" not in FRONT] == []


def test_minutes() -> None:
    """A run of the small variants takes what the recorded costs add up to."""
    costs = json.loads((ROOT / "golden/spec/costs.json").read_text("utf-8"))
    stated = number(r"\| `run` of the small variants, `sd1_impl` \| (\d+) minutes")
    seconds = sum(
        cost
        for part in ("items", "loads")
        for item, cost in costs[part].items()
        if "/sd1" not in item and ("[float32" in item or "[int64" in item)
    )
    assert stated / 2 < seconds / 60 < stated * 1.25


def test_times_and_memory() -> None:
    """What else it says of them is what docs/ci.md has."""
    page = (ROOT / "docs/ci.md").read_text("utf-8").partition("## Minutes")[2]
    times = {int(n) for n in re.findall(r"(\d+) minutes", README)}
    assert times == {8, 5, 2, 3}
    assert [n for n in times if not re.search(rf"\b{n} min", page)] == []
    sizes = re.findall(r"\| ([\d.]+ GiB) \|", FOLD)
    assert len(sizes) == 3
    assert [size for size in sizes if size not in page] == []


def test_the_clone() -> None:
    """It is mostly goldens, which do not shrink, and their history."""
    goldens = sum(p.stat().st_size for p in (ROOT / "golden").rglob("*") if p.is_file()) / 1e6
    assert goldens < number(r"clone is (\d+) MB") < 3 * goldens


def test_downloads() -> None:
    """Sizes are those of wheels: a fifth to three fifths of what they are when installed."""
    if not _has("sd1-conformance"):
        pytest.skip("needs an installed package, to know what it requires")
    core = _installed({"sd1-conformance"}, extra="")
    assert 0.2 * core < number(r"download of (\d+) MB:") < 0.6 * core
    if _has("torch", "diffusers"):
        everything = _installed({"sd1-conformance"}, extra="all")
        assert 0.15 * everything < number(r"a download of (\d+) MB with a CPU") < 0.6 * everything


def test_download_for_the_notebooks() -> None:
    """That of requirements.txt, all of which is installed where notebooks are run."""
    pinned = (ROOT / "requirements.txt").read_text("utf-8")
    names = re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE)
    if not _has("jupyterlab", "torch", "playwright"):
        pytest.skip("needs what requirements.txt pins")
    installed = sum(_files(name) for name in names if _has(name)) / 1e6
    assert 0.15 * installed < number(r"(\d+) MB with such a build") < 0.6 * installed


def _has(*names: str) -> bool:
    return all(list(importlib.metadata.distributions(name=name)) for name in names)


def _installed(names: set[str], extra: str) -> float:
    """Return the MB that distributions and all they require take, this project's own left out."""
    requirement = pytest.importorskip("packaging.requirements").Requirement
    size, seen, left = 0.0, set(), [(name, extra) for name in names]
    while left:
        name, wanted = left.pop()
        if (name, wanted) in seen or not _has(name):
            continue
        seen.add((name, wanted))
        own = importlib.metadata.distribution(name)
        if name not in names and not wanted:
            size += _files(name)
        for text in own.requires or ():
            needed = requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                left += [(needed.name, part) for part in (*needed.extras, "")]
    return size / 1e6


def _files(name: str) -> int:
    """Return the bytes that a distribution takes."""
    return sum(path.size or 0 for path in importlib.metadata.distribution(name).files or ())
