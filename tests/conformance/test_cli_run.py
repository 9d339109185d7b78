"""What `run` prints as it goes: errors once, what is resumed, options that lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PORT = """
from conformance.port import Hello

class Port:
    def hello(self):
        return Hello("broken", "1", ("tokenizer",), probes=False)

    def load(self, *_):
        return self

    def run(self, inputs, *_):
        if not "".join(inputs["text"]):
            raise ValueError("another one")
        raise FileNotFoundError("merges.txt is not there")

def make():
    return Port()
"""


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A port that breaks in the same way in almost every case."""
    path = tmp_path / "broken.py"
    path.write_text(PORT, "utf-8")
    return f"{path}:make"


@pytest.mark.parametrize("jobs", [(), ("-n", 2)], ids=["one", "two"])
def test_the_same_error_is_told_once(main, broken: str, tmp_path: Path, jobs: tuple) -> None:
    """Later items of the same message name the first one, on one line; the files keep it all."""
    out = tmp_path / "out"
    code, told, _ = main("run", broken, "--component", "tokenizer", "--out", out, *jobs)
    assert code == 3
    going = told.partition("[192/192]")[0]
    assert going.count("FileNotFoundError: merges.txt is not there (") == 1
    rows = (out / "results.jsonl").read_text("utf-8").splitlines()
    lines = [line for line in map(json.loads, rows) if line["type"] == "case"]
    same = [line for line in lines if "merges.txt is not there" in line["message"]]
    assert 0 < len(lines) - len(same) < 9
    assert going.count("ValueError: another one (") == 1
    short = [row for row in told.splitlines() if row.endswith(f": as in {same[0]['case']}")]
    assert len(short) == len(same) - 1


def test_nothing_to_resume(main, port_file: str, tmp_path: Path) -> None:
    """A folder that holds no run is told; one that holds a run is gone on with."""
    words = ("run", port_file, "-k", "tokenizer/-/plain", "--out", tmp_path / "never", "--resume")
    note = f"nothing to resume in {tmp_path / 'never'}: starting anew\n"
    assert note in main(*words)[1]
    told = main(*words)[1]
    assert (note in told, "1 of 1 item is taken over" in told) == (False, True)
    assert note not in main(*words[:-1])[1], "nobody asked"


def test_weights_that_are_not_there(main, port_file: str, tmp_path: Path) -> None:
    """The option is named, and what it takes."""
    code, out, err = main("run", port_file, "--weights", tmp_path / "nope")
    assert (code, out) == (2, "")
    told = (
        "give a *.safetensors or *.ckpt of the CompVis layout, or a folder of the diffusers layout"
    )
    assert err == f"sd1-conformance: --weights {tmp_path / 'nope'} is missing: {told}\n"
