"""What is asked for is what the metadata says, and versions are compared as versions."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from conformance import requirements as asked
from conformance.requirements import Requirement, adding, extra_with, installed, state_of
from conformance.traces import no_splice

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(autouse=True)
def afresh():
    """Forget what was read, before and after."""
    asked.requirements.cache_clear()
    asked._checkout.cache_clear()
    yield
    asked.requirements.cache_clear()
    asked._checkout.cache_clear()


@pytest.fixture
def as_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the code lie where a wheel was installed."""
    monkeypatch.setattr(asked, "HOME", tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("numpy>=2", Requirement("numpy", ">=2")),
        ("ray<2.61,>=2.60; extra == 'ray'", Requirement("ray", "<2.61,>=2.60", "ray")),
        ('scikit-image (>=0.25) ; extra == "all"', Requirement("scikit-image", ">=0.25", "all")),
        ("sd1-conformance[torch]; extra == 'oracle'",
         Requirement("sd1-conformance", "", "oracle", ("torch",))),
        ("tqdm ; python_version < '4'", Requirement("tqdm", "")),
    ],
    ids=["plain", "extra", "parentheses", "own", "marker"],
)  # fmt: skip
def test_requirements_are_read(text: str, wanted: Requirement) -> None:
    """As metadata writes them, old and new."""
    assert Requirement.read(text) == wanted


@pytest.mark.parametrize(
    ("version", "supported", "state"),
    [
        ("2.13.0+cpu", ">=2.11", "there"),
        ("2.9", ">=2.11", "outside"),
        ("2", ">=2.0.0", "there"),
        ("0.43", ">=0.42,<0.43", "outside"),
        ("0.42.1", "<0.43,>=0.42", "there"),
        ("9.2.0", ">=9.0,<9.2", "outside"),
        ("1.0", "==1", "there"),
        ("1.0", "!=1", "outside"),
        ("", ">=1", "missing"),
        ("7", "", "there"),
    ],
)
def test_versions_are_compared_by_number(version: str, supported: str, state: str) -> None:
    """2.11 is later than 2.9; a build's label says nothing."""
    assert state_of(version, supported) == state


def test_every_bound_is_understood() -> None:
    """No operator of our metadata is left out of the comparison."""
    for requirement in asked.requirements():
        bounds = [part for part in requirement.range.split(",") if part]
        assert len(asked._BOUND.findall(requirement.range)) == len(bounds), requirement


def test_metadata_and_checkout_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that is not installed reads its own file: the same distributions and ranges."""

    def gone(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    def found() -> dict[str, set[str]]:
        asked.requirements.cache_clear()
        return {p.name: set(p.range.split(",")) for p in installed()}

    before, python = found(), asked.python_range()
    monkeypatch.setattr(importlib.metadata, "requires", gone)
    monkeypatch.setattr(importlib.metadata, "metadata", gone)
    assert (found(), asked.python_range()) == (before, python)
    assert python == PYPROJECT["project"]["requires-python"]


def test_every_distribution_is_told_once() -> None:
    """The core's first, each with the smallest extra that brings it."""
    names = [p.name for p in installed()]
    assert len(names) == len(set(names))
    extras = {p.name: p.extra for p in installed()}
    assert [extras[name] for name in names[:5]] == [""] * 5
    wanted = {"torch": "torch", "diffusers": "oracle", "scikit-image": "all", "ray": "ray"}
    assert {name: extras[name] for name in wanted} == wanted
    assert extras["pytest"] == extras["pytest-xdist"] == "test"


def test_the_smallest_extra_is_chosen() -> None:
    """That of the model has no oracle; what no extra has has none."""
    assert extra_with(["torch", "regex"]) == "torch"
    assert extra_with(["torch", "transformers"]) == "oracle"
    assert extra_with(["torch", "ray"]) == ""


def test_commands_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """They name the checkout and its constraints, and so work from any folder."""
    monkeypatch.setattr(asked, "_on_gpu", lambda: False)
    home = asked.HOME
    assert adding(["transformers"]) == (
        f"python -m pip install -c {home}/constraints/cpu.txt -e '{home}[oracle]'"
    )
    assert "-c " + str(home / "constraints" / "cu130.txt") in adding(["torch"], gpu=True)
    for name in ("cpu", "cu130"):
        assert (home / "constraints" / f"{name}.txt").is_file()


@pytest.mark.parametrize(
    ("pip", "told"),
    [("25.1", "--group '{}/pyproject.toml:test'"), ("23.2.1", "'pytest>=9.0,<9.2'")],
    ids=["group", "older"],
)
def test_command_of_the_tests_group(monkeypatch: pytest.MonkeyPatch, pip: str, told: str) -> None:
    """It is no extra: pip installs the group where it knows groups, else what is missing of it."""
    own = asked.version_of
    monkeypatch.setattr(asked, "_on_gpu", lambda: False)
    monkeypatch.setattr(asked, "version_of", lambda name: pip if name == "pip" else own(name))
    lead = f"python -m pip install -c {asked.HOME}/constraints/cpu.txt"
    assert adding(["pytest"]) == f"{lead} {told.format(asked.HOME)}"


@pytest.mark.usefixtures("as_wheel")
def test_commands_of_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing but the distribution, on an index or where it was installed from."""
    monkeypatch.setattr(asked, "_direct_url", lambda: "file:///tmp/own.whl")
    assert adding(["torch"]).endswith("'sd1-conformance[torch] @ file:///tmp/own.whl'")
    monkeypatch.setattr(asked, "_direct_url", str)
    assert adding(["transformers"]) == "python -m pip install 'sd1-conformance[oracle]'"
    assert adding(["pytest", "pytest-xdist"]) == "python -m pip install pytest pytest-xdist"
    assert not asked.is_checkout()


@pytest.mark.usefixtures("as_wheel")
def test_commands_of_an_installed_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`pip install .` leaves a folder with constraints, as long as it is there."""
    monkeypatch.setattr(asked, "_on_gpu", lambda: False)
    folder = tmp_path / "a clone"
    monkeypatch.setattr(asked, "_direct_url", folder.as_uri)
    gone = adding(["torch"])
    assert gone == f"python -m pip install 'sd1-conformance[torch] @ {folder.as_uri()}'"
    (folder / "constraints").mkdir(parents=True)
    (folder / "constraints" / "cpu.txt").touch()
    lead = f"python -m pip install -c '{folder}/constraints/cpu.txt'"
    assert adding(["torch"]) == f"{lead} '{folder}[torch]'"
    assert adding(["numpy"]) == f"{lead} 'numpy>=2'"


def test_sets_are_joined_where_an_extra_has_both() -> None:
    """So that one command installs them; what no extra joins stays apart."""
    joined = asked.added_together([["torch"], ["ray"], ["diffusers", "torch"], ["pytest"]])
    assert joined == [{"torch", "diffusers"}, {"ray"}, {"pytest"}]


@pytest.mark.usefixtures("as_wheel")
def test_commands_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that uv made has none."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(asked, "_direct_url", str)
    assert adding(["transformers"]) == "uv pip install 'sd1-conformance[oracle]'"


@pytest.mark.parametrize(("gpu", "name"), [(False, "cpu"), (True, "cu130")])
def test_constraints_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,  # noqa: FBT001
    name: str,
) -> None:
    """Whoever asks is told the same torch: that of the GPU where a process may use one."""
    monkeypatch.setattr(asked, "_on_gpu", lambda: gpu)
    assert f"/constraints/{name}.txt " in adding(asked.ORACLE)


@pytest.mark.usefixtures("as_wheel")
def test_every_message_has_the_same_command(main, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip and a message name what doctor names: the wheel where it was installed from."""
    monkeypatch.setattr(asked, "_direct_url", lambda: "file:///tmp/own.whl")
    command = "python -m pip install 'sd1-conformance[oracle] @ file:///tmp/own.whl'"
    assert adding(asked.ORACLE) == command
    assert f"({command})" in no_splice()
    monkeypatch.setitem(sys.modules, "conformance.repro", None)
    code, _, err = main("repro", "unet/tiny/base", "conv_in", "--out", "nowhere")
    assert (code, f"({command})" in err) == (2, True)
