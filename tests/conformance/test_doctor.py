"""`doctor`: what it says is so, and its exit code says whether the suite can be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conformance import cli_doctor, doctor, requirements
from conformance.doctor import ABILITIES, Ability
from conformance.doctor_port import prospect
from conformance.environment import SETTINGS
from conformance.execution import MODES
from conformance.port import BUILTIN, Hello
from conformance.requirements import MISSING, OUTSIDE, THERE, Installed
from conformance.traces import have_oracle
from conformance.training import TRAINING


def told(main, *arguments: str) -> tuple[int, dict]:
    """Run `doctor --json`."""
    code, out, _ = main("doctor", "--json", *arguments)
    return code, json.loads(out)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Return a function that takes distributions away, or gives them another version."""

    def change(**versions: str) -> None:
        own = requirements.version_of
        lookup = lambda name: versions.get(name.replace("-", "_"), own(name))  # noqa: E731
        monkeypatch.setattr(requirements, "version_of", lookup)
        monkeypatch.setattr(doctor, "version_of", lookup)

    return change


def test_a_sound_installation(main) -> None:
    """Exit 0; every golden is told, and the table of versions is the metadata's."""
    code, out, err = main("doctor")
    assert (code, err) == (0, "")
    assert "every file is the one that was recorded" in out
    assert out.splitlines()[-1] == "the core can judge: sd1-conformance run PORT"
    for package in requirements.installed():
        assert f"\n  {package.name} " in out


def test_the_same_as_json(main) -> None:
    """One object; without a port there is none in it."""
    code, found = told(main)
    assert code == 0
    assert (found["broken"], found["port"], found["checkout"]) == ([], None, True)
    splice = next(a for a in found["abilities"] if a["name"] == "splice")
    assert splice["possible"] is have_oracle()


def test_every_ability_names_what_can_be_installed() -> None:
    """What it needs is asked for by the metadata, and some extra brings all of it."""
    known = {p.name for p in requirements.installed()}
    for ability in ABILITIES:
        assert set(ability.needs) <= known
        assert not ability.needs or requirements.extra_with(ability.needs)


def test_every_mode_and_port_is_told() -> None:
    """A mode or a built-in port that is added to the suite has to be added here."""
    modes = {n for a in ABILITIES if a.kind == "mode" for n in a.name.split(", ")}
    assert modes == set(MODES)
    assert {a.name for a in ABILITIES if a.kind == "port"} >= set(BUILTIN)
    levels = [a.name.split()[0] for a in ABILITIES if a.kind == "level"]
    assert levels == ["0", "1", "2", "3"]


def test_without_the_extras(main, without) -> None:
    """What cannot be done says why; what one extra adds is one command."""
    without(torch="", diffusers="", transformers="", ray="", scikit_image="")
    code, out, _ = main("doctor")
    assert code == 0
    rows = {tuple(row.split()[1:3]): row for row in out.splitlines() if row.startswith("  no ")}
    assert {("mode", "splice"), ("port", "sd1_impl"), ("command", "budget")} <= set(rows)
    assert "torch, diffusers, transformers missing" in (rows["mode", "splice"])
    assert "  yes  mode     trace " in out
    commands = [row for row in out.splitlines() if row.startswith("  python -m pip install")]
    extras = [command.partition("[")[2].partition("]")[0] for command in commands]
    assert extras == ["all", "ray"]
    assert "note: here is no GPU, and pip may take torch's CUDA build" in out
    assert ("report", "known") in rows
    assert "  yes  report   known bugs, by likeness " in out


def test_a_smaller_extra_is_enough(main, without) -> None:
    """Where diffusers alone is missing, the extra of the oracle is told, and no note on torch."""
    without(diffusers="", ray="0.1", scikit_image="1")
    _, out, _ = main("doctor")
    assert "[oracle]'\n      port diffusers; mode splice; " in out
    assert "[all]" not in out
    assert "CUDA build" not in out


def test_without_the_tests_group(main, without) -> None:
    """It is a group, not an extra: it is called one, and so is the command that installs it."""
    without(pytest="", pip="25.1")
    _, out, _ = main("doctor")
    (row,) = [row for row in out.splitlines() if row.startswith("  pytest ")]
    assert row.endswith("missing, group test")
    assert "/pyproject.toml:test'\n      way pytest items\n" in out


def test_a_version_outside_of_its_range(main, without) -> None:
    """Of an extra it is a note, and what needs it says so."""
    without(diffusers="0.43.0")
    code, out, _ = main("doctor")
    assert code == 0
    assert "note: diffusers 0.43.0 is not " in out
    row = next(r for r in out.splitlines() if r.split()[1:3] == ["mode", "splice"])
    assert row.split()[0] == "yes"
    assert "diffusers 0.43.0 is not " in row


def test_a_core_outside_of_its_range(main, without) -> None:
    """Nothing that it judges can be trusted: exit 3."""
    without(numpy="1.26.4")
    code, out, _ = main("doctor")
    assert code == 3
    assert "broken: numpy 1.26.4 is not >=2: python -m pip install" in out


def test_without_the_core(main, without) -> None:
    """It says so before it imports what is missing."""
    without(numpy="", tqdm="")
    code, out, err = main("doctor")
    assert (code, err, out.count("\n")) == (3, "", 1)
    assert out.startswith("broken: numpy, tqdm missing, ")


def test_a_damaged_golden(main, golden_copy) -> None:
    """It is named, and the exit code is that of a broken suite."""
    golden_copy.path().write_bytes(b"damaged")
    code, found = told(main)
    assert code == 3
    assert any(f"{golden_copy.path()} is damaged" in problem for problem in found["broken"])
    assert f"{golden_copy.root} (SD1_GOLDEN)" in found["goldens"]


def test_cases_without_goldens(main, golden_copy) -> None:
    """What a run would break at is told beforehand, a few of it, and how many more there are."""
    assert golden_copy.root.exists()
    code, out, _ = main("doctor")
    assert code == 3
    assert "broken: block/time_embedding/tiny/base is not in cases.lock: run golden record" in out
    assert out.count("broken: ") == 6
    assert "broken: and " in out


def test_no_goldens_at_all(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is missed."""
    monkeypatch.setenv("SD1_GOLDEN", str(tmp_path))
    code, out, _ = main("doctor")
    assert code == 3
    assert f"{tmp_path} (SD1_GOLDEN): no manifest" in out
    assert out.endswith("nothing that is judged here can be trusted: mend this first\n")


def test_files_that_are_not_those_installed(main, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted, and who may have written them is named."""
    monkeypatch.setattr("conformance.shadowing.altered", lambda: ["conformance/cli.py"])
    monkeypatch.setattr("conformance.shadowing.mixed", lambda: [("other-1", ["conformance"])])
    code, out, _ = main("doctor")
    assert code == 3
    assert "first conformance/cli.py; other-1 installed into the same folders" in out


def test_one_file_that_is_not_as_installed(main, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is told in the singular."""
    monkeypatch.setattr("conformance.shadowing.altered", lambda: ["conformance/cli.py"])
    monkeypatch.setattr("conformance.shadowing.mixed", list)
    _, out, _ = main("doctor")
    assert "1 file is not as it was installed, first conformance/cli.py: install" in out


def test_a_folder_that_would_shadow(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `python -m` would take another package, that is told beforehand."""
    for name in ("conformance", "sd1_impl", "sd1_weights"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    code, out, _ = main("doctor")
    assert code == 0
    (note,) = [row for row in out.splitlines() if "`python -m conformance` started here" in row]
    names = "sd1_weights, sd1_impl"
    assert f"takes conformance, {names} from {tmp_path}: use `sd1-conformance`" in note


def test_the_cache(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place, what is in it and how much may be; none where the variable is empty."""
    monkeypatch.setenv("SD1_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "sd1-traces" / "x").mkdir(parents=True)
    (tmp_path / "cache" / "sd1-traces" / "x" / "pack").write_bytes(bytes(3 * 2**20))
    _, out, _ = main("doctor")
    assert f"{tmp_path / 'cache'}, writable\n  sd1-traces: 3 of 4,096 MiB\n" in out
    assert "  SD1_CACHE " in out
    monkeypatch.setenv("SD1_CACHE", "")
    _, found = told(main)
    assert (found["kept"], found["cache"][:5]) == ([], "none:")


def test_a_cache_is_tried(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere by the permissions: only trying tells; nothing is left behind."""
    monkeypatch.setattr(os, "access", lambda *_: True)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "cache", Path("/proc/cache")):
        monkeypatch.setenv("SD1_CACHE", str(place))
        assert f"{place}, not writable" in main("doctor")[1]
    monkeypatch.setenv("SD1_CACHE", str(tmp_path / "cache"))
    assert f"{tmp_path / 'cache'}, writable" in main("doctor")[1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_variables_that_change_something(main, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are set, and no others."""
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(SETTINGS[0], "2")
    monkeypatch.setenv("SOMETHING_ELSE", "3")
    _, found = told(main)
    assert found["variables"] == {"HF_HUB_OFFLINE": "1", SETTINGS[0]: "2"}


def test_devices_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver lists is told, and what is in the way."""
    assert doctor._cuda([]).startswith("none: ")
    monkeypatch.setattr(doctor, "version_of", lambda _: "")
    assert doctor._cuda(["0"]) == "the driver lists 1; torch is missing"


def test_torch_is_not_imported() -> None:
    """Where no driver lists a device there is nothing to ask it; nothing of a port is imported."""
    code = (
        "import sys\nfrom conformance import cli, devices\n"
        "devices.visible_devices = lambda: []\nassert cli.main(['doctor']) == 0\n"
        "assert {'torch', 'diffusers', 'sd1_impl', 'jinja2'} & set(sys.modules) == set()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


PORT = """
from conformance.port import Hello

class Port:
    def hello(self):
        return Hello("mine", "1", ("unet", "scheduler/ddim"), replace=False)

    def load(self, *arguments, **more):
        raise AssertionError("nothing is loaded")

port = Port
"""


def test_what_a_port_offers(main, tmp_path: Path) -> None:
    """How far it can get, what it lacks for each level, in which modes it is judged."""
    (tmp_path / "mine.py").write_text(PORT)
    code, out, _ = main("doctor", f"{tmp_path / 'mine.py'}:port")
    assert code == 0
    assert "\nport mine 1: level 2 can be reached\n" in out
    rows = {row.split("  ")[1]: row for row in out.splitlines() if row.startswith("  level ")}
    assert (
        "unet (not tokenizer, text_encoder, vae_encoder, vae_decoder)"
        in (rows["level 1 components"])
    )
    assert rows["level 3 trajectories"].endswith("it offers no pipeline")
    assert "  modes                 trace\n" in out


def test_a_port_that_is_not_there(main) -> None:
    """Bad usage, as for every command."""
    code, _, err = main("doctor", "nothing.py:port")
    assert (code, err.count("\n")) == (2, 1)


def test_what_a_port_can_earn() -> None:
    """Stamps follow from what is offered; memory needs torch."""
    hello = Hello("x", "1", ("unet", TRAINING), arithmetics=("float32", "bfloat16"))
    found = prospect(hello, torch=True)
    assert found.stamps == ["precision:float32", "precision:bfloat16", "training", "memory"]
    assert "memory" not in prospect(hello, torch=False).stamps
    bare = prospect(replace(hello, components=(TRAINING,)), torch=True)
    assert (bare.highest, bare.stamps) == (0, ["training"])


@pytest.mark.parametrize(
    ("state", "possible", "lacks"),
    [(THERE, True, ()), (MISSING, False, ("x missing",)), (OUTSIDE, True, ("x 1 is not >2",))],
)
def test_an_ability_is_judged(state: str, possible: bool, lacks: tuple[str, ...]) -> None:  # noqa: FBT001
    """Missing: no; of another version: yes, but it is told."""
    version = "" if state == MISSING else "1"
    packages = [Installed("x", version, ">2", "all", state)]
    found = doctor._judged(Ability("mode", "m", ("x",)), packages, gpu=False)
    assert (found.possible, found.lacks, bool(found.command)) == (possible, lacks, bool(lacks))


def test_columns_are_aligned() -> None:
    """Rows of one section have their columns under each other."""
    lines = list(cli_doctor._section("t", [("a", "bb", "c"), ("aaa", "b", "")]))
    assert lines == ["\nt", "  a    bb  c", "  aaa  b"]
