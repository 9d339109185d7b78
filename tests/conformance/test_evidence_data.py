"""`data/` of a run: names, limits, resuming, merging, and files that are not a run's own."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from conformance.errors import UsageError
from conformance.evidence import data_folder
from conformance.evidence.choice import EACH
from conformance.evidence.data_folder import DATA, SOURCES, DataFolder, left_out, stem_of
from conformance.port import Hello
from conformance.results import Results

TENSOR = {"probe": "conv_in", "caption": "last column only: padding"}
PNG = base64.b64encode(b"\x89PNG one").decode()
PICTURE = {"index": 0, "oracle": PNG, "port": PNG, "difference": PNG, "factor": 3.0, "psnr": "inf"}


def line(scenario: str = "base", verdict: str = "fail", mode: str = "splice", **evidence: object):
    """Build a case line as it comes from a worker."""
    case = f"unet/tiny/{scenario}[float32-cpu-sdpa-{mode}]"
    first = {"case": case, "probe": "conv_in", "after": None, "ratio": 48.0, "limit": 4.0}
    facts = {"type": "case", "case": case, "component": "unet", "variant": "tiny", "mode": mode}
    facts |= {"scenario": scenario, "dtype": "float32", "device": "cpu", "backend": "sdpa"}
    facts |= {"verdict": verdict, "ratio": 48.0, "worst_probe": "conv_in", "seconds": 0.1}
    facts |= {"message": "", "detail": "", "hunts": "", "missing": [], "probes": []}
    facts["first_divergence"] = first | {"kind": "fault", "hint": ""} if verdict == "fail" else None
    return facts | ({"evidence": evidence} if evidence else {})


def names(folder: Path) -> list[str]:
    """Return the names of the files of a folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


HOSTILE = [
    "../../etc/passwd",
    "a/b\\c:d",
    "x" * 5000,
    "\ud800\u202e<script>",
    ".",
    "",
    "CON",
    "a b",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_safe_and_an_items_own(name):
    """A file's name is safe whatever the id, the same every time, and not that of another id."""
    stem = stem_of(name)
    assert stem == stem_of(name) != stem_of(f"{name}.")
    assert len(stem) <= 100
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not stem.startswith(".")


def test_evidence_becomes_files(tmp_path):
    """A line leaves its tensor and pictures in files, and names them."""
    data = DataFolder(tmp_path / DATA)
    kept = data.store(line(tensor=TENSOR, pictures=[PICTURE]))
    assert "evidence" not in kept
    stem = stem_of(kept["case"])
    assert kept["data"]["tensor"] == f"{stem}.json"
    assert json.loads((tmp_path / DATA / f"{stem}.json").read_text("utf-8")) == TENSOR
    (picture,) = kept["data"]["pictures"]
    assert picture["port"] == f"{stem}-0-port.png"
    assert picture["factor"] == 3.0
    assert (tmp_path / DATA / picture["port"]).read_bytes() == b"\x89PNG one"
    assert len(names(tmp_path / DATA)) == 4


def test_nothing_to_show_makes_no_folder(tmp_path):
    """A run in which all is well has no `data/`."""
    data = DataFolder(tmp_path / DATA)
    assert data.store(line(verdict="pass")) == line(verdict="pass")
    assert "data" not in data.store(line(verdict="xfail", tensor=TENSOR)), "it was expected"
    data.add_sources({})
    data.sweep()
    assert not (tmp_path / DATA).exists()


def test_what_has_no_room_is_counted(tmp_path, monkeypatch):
    """More tensors than are shown, and files beyond the limit, are left out and counted."""
    monkeypatch.setattr(data_folder, "_PICTURE_BYTES", 40)
    monkeypatch.setattr(data_folder, "MOST_BYTES", 4000)
    data = DataFolder(tmp_path / DATA)
    lines = [data.store(line(f"s{i}", tensor=TENSOR)) for i in range(EACH + 2)]
    assert [("tensor" in kept["data"]) for kept in lines] == [True] * EACH + [False] * 2
    lines.append(data.store(line("p", "warn", pictures=[PICTURE, PICTURE | {"index": 1}])))
    assert lines[-1]["data"] == {"left_out": 2}, "tensors have taken what pictures may take"
    lines.append(data.store(line("big", mode="trace", tensor=TENSOR, left_out=3)))
    assert left_out(lines) == 2 + 2 + 4
    assert len(names(tmp_path / DATA)) == EACH


def test_a_tensor_beyond_the_limit(tmp_path, monkeypatch):
    """A tensor that has no room is not written."""
    monkeypatch.setattr(data_folder, "MOST_BYTES", 10)
    assert DataFolder(tmp_path / DATA).store(line(tensor=TENSOR))["data"] == {"left_out": 1}
    assert not (tmp_path / DATA).exists()


@pytest.mark.parametrize(
    "evidence",
    [None, [], {"tensor": 3, "pictures": 4}, {"pictures": [1, {}, PICTURE | {"port": 1}]}],
    ids=["none", "list", "numbers", "pictures"],
)
def test_evidence_that_is_none(tmp_path, evidence):
    """What a worker sends beside the agreed form is dropped."""
    assert DataFolder(tmp_path).store(line() | {"evidence": evidence}) == line()


def test_a_shards_files_are_taken_over(tmp_path):
    """What another folder holds of a line is copied, under the same names."""
    shard = DataFolder(tmp_path / "shard" / DATA)
    kept = shard.store(line(tensor=TENSOR, pictures=[PICTURE], left_out=2))
    merged = DataFolder(tmp_path / "all" / DATA)
    assert merged.adopt(kept, shard.folder) == kept
    assert names(merged.folder) == names(shard.folder)
    assert merged.adopt(line("other"), shard.folder) == line("other")


def test_names_in_a_line_are_not_trusted(tmp_path):
    """A line that names files elsewhere, links or missing ones does not get them."""
    secret = tmp_path / "secret.json"
    secret.write_text("{}", "utf-8")
    folder = tmp_path / "shard"
    folder.mkdir()
    data = DataFolder(tmp_path / DATA)
    foreign = line() | {"data": {"tensor": "../secret.json", "pictures": [{"index": 0}]}}
    assert data.adopt(foreign, folder) == line()
    (folder / f"{stem_of(foreign['case'])}.json").symlink_to(secret)
    assert data.adopt(foreign, folder) == line()
    for odd in (None, [], {"pictures": "x", "left_out": -1}):
        assert data.adopt(line() | {"data": odd}, folder) == line()


HELLO = Hello("fake", "1.0", ("unet",))


def run(out: Path, **how: object) -> Results:
    """Begin a run, or go on with one."""
    return Results(out, HELLO, "fake.py:make", "unet; tiny", **how)


def test_a_run_with_evidence(tmp_path):
    """Results moves evidence into files; what reads the run later finds them."""
    results = run(tmp_path)
    results.add(line(tensor=TENSOR, pictures=[PICTURE], left_out=1))
    summary = results.close()
    rows = (tmp_path / "results.jsonl").read_text("utf-8").splitlines()
    written = json.loads(rows[1])
    assert "evidence" not in written
    assert (tmp_path / DATA / written["data"]["tensor"]).exists()
    assert summary["left_out"] == 1
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["left_out"] == 1


def test_a_new_run_clears_what_was_there(tmp_path):
    """A new run removes an earlier run's files, and no file that no run has written."""
    results = run(tmp_path)
    results.add(line(tensor=TENSOR, pictures=[PICTURE]))
    results.close()
    folder = tmp_path / DATA
    (folder / SOURCES).write_text("{}", "utf-8")
    (folder / f".{stem_of('x')}.json.part").write_text("cut", "utf-8")
    (folder / "my-thesis.csv").write_text("mine", "utf-8")
    (folder / "photo.png").write_text("mine", "utf-8")
    run(tmp_path).close()
    assert names(folder) == ["my-thesis.csv", "photo.png"]


def test_resume_keeps_the_files_of_its_lines(tmp_path):
    """A resumed run has the files of the lines it keeps; orphans are removed."""
    results = run(tmp_path)
    first = results.add(line("base", tensor=TENSOR))
    orphan = tmp_path / DATA / f"{stem_of('killed before its line')}.json"
    orphan.write_text("{}", "utf-8")
    results.close()
    again = run(tmp_path, resume=[first["case"]])
    assert again.lines == [first]
    assert names(tmp_path / DATA) == [first["data"]["tensor"]]
    again.add(line("loud", tensor=TENSOR))
    again.close()
    assert len([name for name in names(tmp_path / DATA) if name != SOURCES]) == 2


def test_data_that_is_no_folder(tmp_path):
    """A file in the place of the folder is refused before anything is run."""
    (tmp_path / DATA).write_text("mine", "utf-8")
    with pytest.raises(UsageError, match="give another --out"):
        run(tmp_path)
