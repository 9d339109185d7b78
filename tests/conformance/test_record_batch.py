"""Recording many goldens: what is finished is kept, progress is counted, a second call goes on."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from conformance.case import find_case
from conformance.errors import SuiteError
from conformance.golden_files import load_golden
from conformance.recorded import arithmetics, modes_in
from conformance.recording import batch, record, writer
from conformance.recording.calibration import calibration_count, calibrations

NAMES = ("empty", "one-letter", "contractions")
CASES = [find_case(f"tokenizer/-/{name}") for name in NAMES]
ARGUMENTS = ("golden", "record", "--component", "tokenizer", "--scenario", ",".join(NAMES))


def hidden(root: Path) -> list[Path]:
    """Return files that were left half written."""
    return [path for path in root.rglob(".*") if path.is_file()]


def interrupted_at(case_id: str):
    """Return what records, until Ctrl-C at one case."""

    def make(case):
        if case.id == case_id:
            raise KeyboardInterrupt
        return record.record_case(case)

    return make


def test_what_is_finished_is_kept(golden_copy):
    """Ctrl-C loses the case at hand alone, and one line says what is kept and how to go on."""
    told = []
    with pytest.raises(SuiteError) as error:
        batch.record_all(CASES, interrupted_at(CASES[2].id), told.append)
    wanted = f"interrupted: 2 of 3 goldens written to {golden_copy.root}: go on with --resume"
    assert str(error.value) == wanted
    assert told[0] == "3 goldens to record: 3 tokenizer"
    assert [line.split(":")[0] for line in told[1:]] == [
        f"[{i}/3] {case.id}" for i, case in enumerate(CASES[:2], 1)
    ]
    assert [batch.is_recorded(case) for case in CASES] == [True, True, False]
    assert hidden(golden_copy.root) == []


@pytest.mark.usefixtures("golden_copy")
def test_resume(main, monkeypatch):
    """The same command with --resume records the rest; without it, all."""
    with pytest.raises(SuiteError):
        batch.record_all(CASES, interrupted_at(CASES[2].id), lambda _: None)
    recorded, plain = [], record.record_case

    def recording(case):
        recorded.append(case.scenario.name)
        return plain(case)

    monkeypatch.setattr(record, "record_case", recording)
    code, told = main(*ARGUMENTS, "--resume")[:2]
    assert (code, recorded) == (0, ["contractions"])
    assert told.splitlines()[:2] == [
        "2 of 3 goldens recorded already",
        "1 golden to record: 1 tokenizer",
    ]
    assert load_golden(CASES[2]).kills == [m.id for m in record.claimed(CASES[2])]
    assert main(*ARGUMENTS)[0] == 0
    assert sorted(recorded[1:]) == sorted(NAMES)


@pytest.mark.parametrize("change", ["commit", "mutants", "inputs", "damaged", "none"])
def test_what_changed_is_recorded_anew(golden_copy, monkeypatch, change):
    """A golden of another commit, of other inputs or mutants, or a damaged one is not taken."""
    case = CASES[0]
    writer.write(record.record_case(case))
    if change == "commit":
        other = record.provenance() | {"commit": "another"}
        monkeypatch.setattr(batch, "provenance", lambda: other)
    elif change == "mutants":
        monkeypatch.setattr(batch, "claimed", lambda _: [SimpleNamespace(id="another")])
    elif change == "inputs":
        monkeypatch.setattr(batch, "input_facts", lambda _: {})
    elif change == "damaged":
        with golden_copy.path(case.id).open("ab") as file:
            file.write(b" ")
    assert batch.is_recorded(case) == (change == "none")


def test_noise_that_is_there_is_not_added_again():
    """With `--dtype`, what is recorded already is a golden with the noise of these arithmetics."""
    case = find_case("text_encoder/tiny-outlier/base")
    assert batch.is_recorded(case, ["tf32", "policy:autocast"])
    assert batch.is_recorded(case, ["policy:vae-upcast"])  # the case is not judged in it
    assert not batch.is_recorded(find_case(CASES[0].id))


def test_ctrl_c_waits_for_manifest_and_lock(golden_copy, monkeypatch):
    """A golden is never written without its digest: the interrupt comes after both."""
    case, plain = CASES[1], writer.replace_file
    golden = record.record_case(case)

    def interrupted(path, data):
        os.kill(os.getpid(), signal.SIGINT)
        plain(path, data)

    monkeypatch.setattr(writer, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write(golden)
    assert load_golden(case).outputs["input_ids"][0, 0] == 49406
    assert case.id in (golden_copy.root / "cases.lock").read_text("utf-8").split()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_half_file(tmp_path, monkeypatch):
    """What cannot be put in its place leaves nothing beside it, and the old file whole."""
    path = tmp_path / "file"
    writer.replace_file(path, b"old")

    def full(*_):
        raise OSError

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError):  # noqa: PT011 - whatever it says
        writer.replace_file(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    "case_id", ["text_encoder/tiny/short", "scheduler/ddim/-/steps7", "tokenizer/-/plain"]
)
def test_progress_counts_every_evaluation(monkeypatch, case_id):
    """How many evaluations a case has is known before the first, claimed mutants among them."""
    bars, plain = [], record.watching

    def watching(*arguments):
        bars.append(plain(*arguments))
        return bars[-1]

    monkeypatch.setattr(record, "watching", watching)
    record.record_case(find_case(case_id), {"float64", "float32"})
    assert [(bar.n, bar.n > 0) for bar in bars] == [(bars[0].total, True)]


@pytest.mark.parametrize(
    "case_id",
    ["unet/tiny/batch1", "vae_encoder/tiny/border", "pipeline/txt2img/tiny/ddim1"],
)
def test_count_of_calibrations(case_id):
    """They are counted without drawing them, from the reference in any arithmetic."""
    case = find_case(case_id)
    reference = record.Reference(case.component, case.variant)
    exact = reference.build("float64")
    for arithmetic in ("float32", "tf32", "bfloat16"):
        if arithmetic not in arithmetics(case):
            continue
        component = reference.build(arithmetic)
        for mode in modes_in(case, arithmetic):
            splice = mode == "splice"
            count = calibration_count(exact, case, arithmetic, splice=splice)
            assert count == len(calibrations(component, case, arithmetic, splice=splice))


CHANGED = {
    "source": ("conformance/a.py", True),
    "new-source": ("sd1_impl/new.py", True),
    "spec": ("golden/spec/a.json", True),
    "golden": ("golden/unet/a.safetensors", False),
    "page": ("docs/a.md", False),
}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(("name", "told"), CHANGED.values(), ids=CHANGED)
def test_sources_that_are_not_committed(tmp_path, name, told):
    """A golden says where its commit is not all that it was recorded by; goldens do not count."""
    assert record.commit_of(tmp_path) == "unknown"
    path = tmp_path / name
    for own in (path, tmp_path / "sd1_impl" / "a.py"):
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text("1", "utf-8")
    if "new" in name:
        path.unlink()
    who = ("-c", "user.name=a", "-c", "user.email=a@a.invalid", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit = record.commit_of(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", commit)
    path.write_text("2", "utf-8")
    assert record.commit_of(tmp_path) == commit + "+changes" * told
