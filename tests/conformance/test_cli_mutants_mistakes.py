"""Mistakes of who calls the gate: each ends with exit 2 before minutes are spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from conformance.mutants import gate
from conformance.mutants.catalogue import NOT_RUN

if TYPE_CHECKING:
    from pathlib import Path

MISTAKES = {
    "unknown": (["clip-exact-gulu"], "unknown mutant 'clip-exact-gulu': "),
    "glob": (["clop-*"], "unknown mutant 'clop-*': "),
    "not-run": ([NOT_RUN[0].id], f"mutant {NOT_RUN[0].id} is not run: {NOT_RUN[0].reason}"),
    "second": (["tok-pad-zero", NOT_RUN[-1].id], f"mutant {NOT_RUN[-1].id} is not run: "),
    "update": (["clip-*", "--update"], "--update needs all mutants: name none"),
    "no-hints": (["--update", "--no-hints"], "--update needs hints: leave out --no-hints"),
}


@pytest.fixture(autouse=True)
def _no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a mutant is hunted."""
    monkeypatch.setattr(gate, "run_gate", lambda *_, **__: pytest.fail("the gate was run"))


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(main, tmp_path, arguments: list[str], message: str) -> None:
    """A name that is no mutant ends with exit 2 and one line, before anything is run."""
    code, out, err = main("mutants", *arguments, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"sd1-conformance: {message}")
    assert not (tmp_path / "out").exists()


def test_a_suggestion(main) -> None:
    """The mutant that was meant is named, and not two hundred others with it."""
    _, _, err = main("mutants", "clip-exact-gulu")
    assert "clip-exact-gelu" in err
    assert len(err) < 1000


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_jobs(main, jobs: str) -> None:
    """The number of processes is 1 or more."""
    told = f"sd1-conformance: -n/--jobs: {jobs!r} is no number of processes, 1 or more\n"
    assert main("mutants", "-n", jobs) == (2, "", told)


@pytest.mark.parametrize("out", ["file/out", "file", "/dev/null"])
def test_unwritable(main, tmp_path: Path, out: str) -> None:
    """A folder that cannot be written ends with exit 2 before minutes are spent."""
    (tmp_path / "file").write_text("mine", "utf-8")
    code, _, err = main("mutants", "own-clip-gelu", "--out", tmp_path / out)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"sd1-conformance: cannot write {tmp_path / out}")
