"""The plugin: items, workers, and the same files as `sd1-conformance run`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.results import FILES

pytest.importorskip("torch")

from conformance.case import find_case
from conformance.execution import EXACT
from conformance.pytest_plugin import _conclude
from conformance.result import Result

MATRIX = Path(__file__).parents[1] / "test_conformance.py"

WRONG_PORT = """
from dataclasses import replace
from conformance.port import resolve

class Wrong:
    right = resolve("sd1_impl")

    def hello(self):
        return replace(self.right.hello(), name="wrong")

    def load(self, *arguments):
        component = self.right.load(*arguments)
        component.module.time_proj.flip_sin_to_cos = False
        return component
"""


def run_matrix(tmp_path, *arguments, chosen="unet"):
    """Run some golden items of the matrix on the smallest variants in a process of its own."""
    out = tmp_path / "report"
    expression = f"test_golden and ({chosen})"
    command = [sys.executable, "-m", "pytest", str(MATRIX), "-v", "-k", expression]
    command += ["--sd1-out", str(out), "--sd1-dtype", "float32", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=MATRIX.parents[1]
    )
    return done, out


def test_two_workers_write_one_report(tmp_path):
    """Every item is in results.jsonl once, and a variant's items ran on one worker."""
    arguments = ["--sd1-variant", "tiny-inpaint,tiny-dense", "--sd1-dtype", "float32,float64"]
    chosen = "unet or tokenizer/-/plain"
    done, out = run_matrix(tmp_path, *arguments, "-n", "2", chosen=chosen)

    assert done.returncode == 0, done.stdout
    lines = [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines()]
    cases = [line["case"] for line in lines if line["type"] == "case"]
    assert sorted(cases) == [
        "tokenizer/-/plain[int64-cpu]",
        "unet/tiny-dense/base[float32-cpu-sdpa-trace]",
        "unet/tiny-dense/base[float64-cpu-sdpa-trace]",
        "unet/tiny-inpaint/base[float32-cpu-sdpa-trace]",
        "unet/tiny-inpaint/base[float64-cpu-sdpa-trace]",
        "unet/tiny-inpaint/nonsquare[float32-cpu-sdpa-trace]",
        "unet/tiny-inpaint/nonsquare[float64-cpu-sdpa-trace]",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verdict"] == "conformant"
    assert summary["scope"] == (
        "tokenizer, unet; tiny-dense, tiny-inpaint; int64, float32, float64; cpu; trace; "
        "sd1 was not run"
    )
    assert {path.name for path in out.iterdir()} == set(FILES)
    workers = re.findall(r"\[(gw\d)\].*PASSED.*tiny-inpaint/", done.stdout)
    assert len(workers) == 4
    assert len(set(workers)) == 1, "loadgroup no longer groups: see the pytest pin"


def test_a_wrong_port_fails_with_its_divergence(tmp_path):
    """The item's message names the layer and the command that runs it alone."""
    port = tmp_path / "wrong.py"
    port.write_text(WRONG_PORT)

    done, out = run_matrix(tmp_path, "--sd1-port", f"{port}:Wrong", "--sd1-variant", "tiny-dense")

    assert done.returncode == 1
    assert "first wrong at time_proj" in done.stdout
    assert f'run {port}:Wrong -k "unet/tiny-dense/base"' in done.stdout
    assert "scope  unet; tiny-dense; float32; cpu; trace; sd1 was not run" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verdict"] == "nonconformant"
    assert summary["first_divergence"]["probe"] == "time_proj"


def test_wrong_ids_fail_with_both_token_lists():
    """The item's message shows the lists side by side, then the command that runs it alone."""
    case = find_case("tokenizer/-/plain")
    result = Result(case, EXACT, "fail", message="first wrong at input_ids", detail="> a\n> b")

    with pytest.raises(pytest.fail.Exception) as caught:
        _conclude(result.as_json(), "wrong.py:Wrong")

    assert str(caught.value).splitlines() == [
        "fail: first wrong at input_ids",
        "> a",
        "> b",
        'run it alone: sd1-conformance run wrong.py:Wrong -k "tokenizer/-/plain"',
    ]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--sd1-port", "nothing", r"unknown port 'nothing': choose from"),
        ("--sd1-variant", "huge", r"unknown variant 'huge': choose from"),
        ("--sd1-device", "tpu", r"offers no device 'tpu' here \(it says: cpu"),
    ],
    ids=["port", "variant", "device"],
)
def test_an_unknown_choice_is_a_usage_error(tmp_path, option, value, told):
    """A misspelt option stops the session with one line that lists the choices."""
    done, _ = run_matrix(tmp_path, option, value)

    assert done.returncode != 0
    told = rf"unknown \w+ '{value}': choose from|offers no device '{value}' here \(it says: cpu"
    assert re.search(told, done.stdout + done.stderr)
