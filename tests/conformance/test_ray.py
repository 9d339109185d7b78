"""`run --executor ray`: the same lines as one run, whatever dies; on a local Ray."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance import cli, ray_executor
from conformance.case import find_case
from conformance.errors import PortError, UsageError
from conformance.execution import Execution, items
from conformance.parallel import Job
from conformance.ray_executor import run_on_ray, session
from conformance.requirements import adding
from conformance.run_folder import plain

TEXTS = [f"tokenizer/-/{name}" for name in ("plain", "empty", "contractions", "roman-numerals")]

PORT = '''
"""Right in what is exact; says which process ran what, and dies where it is told to."""
import os
import signal
from pathlib import Path

import numpy as np

from conformance.case import find_case
from conformance.golden_files import load_golden

FOLDER = Path(__file__).parent


class Port:
    def hello(self):
        return {"name": "mortal", "version": "1", "components": ["tokenizer", "scheduler/ddim"],
                "probes": False, "replace": False}

    def load(self, component, *_):
        return self

    def run(self, inputs, probes=(), replace=None):
        if "text" not in inputs:
            os.kill(os.getpid(), signal.SIGKILL)
        for name in TEXTS:
            case = find_case(name)
            if np.array_equal(case.inputs()["text"], inputs["text"]):
                with (FOLDER / "ran").open("a") as file:
                    file.write(f"{os.getpid()} {name}\\n")
                mortal = FOLDER / "mortal"
                if mortal.exists() and mortal.read_text() == name:
                    mortal.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
                return load_golden(case).outputs, {}
        raise KeyError("text")


def broken():
    raise RuntimeError("no port today")
'''


def chosen(*names: str) -> list:
    """Return the items of some cases."""
    return list(items([find_case(name) for name in names], [Execution()]))


def told(line: dict[str, Any]) -> str:
    """Return what a line says, but for how long it took."""
    return json.dumps(plain(line | {"seconds": 0}))


def test_without_ray(monkeypatch, capsys, tmp_path: Path) -> None:
    """Where Ray is not installed, one line says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = ["run", "sd1_impl", "--executor", "ray", "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--executor ray needs Ray" in line
    assert line.endswith(adding(["ray"]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start one cluster for the tests that need no other."""
    pytest.importorskip("ray")
    with session(3) as ray:
        yield ray


@pytest.fixture
def mortal(tmp_path: Path) -> str:
    """Write the port and return the path of its file."""
    path = tmp_path / "mortal_port.py"
    path.write_text(PORT.replace("TEXTS:", f"{TEXTS!r}:"), "utf-8")
    return str(path)


def ran(tmp_path: Path) -> list[tuple[int, str]]:
    """Return which process ran which text."""
    rows = (tmp_path / "ran").read_text("utf-8").splitlines()
    return [(int(row.split()[0]), row.split()[1]) for row in rows]


def alone(port: str) -> list[str]:
    """Return the lines of a run in this process."""
    runner = Job(f"{port}:Port").runner()
    return sorted(told(runner.run(*item).as_json()) for item in chosen(*TEXTS))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("jobs", [1, 2])
def test_same_lines_as_alone(mortal: str, tmp_path: Path, jobs: int) -> None:
    """The lines are those of a run in one process, and come from another one."""
    lines: list = []
    run_on_ray(Job(f"{mortal}:Port"), chosen(*TEXTS), jobs, lines.append)
    assert os.getpid() not in dict(ran(tmp_path))
    assert sorted(map(told, lines)) == alone(mortal)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("by", ["itself", "another"])
def test_a_worker_killed_in_the_middle(mortal: str, tmp_path: Path, by: str) -> None:
    """What it ran is run again by another; what it had done is not, and nothing is lost."""
    lines: list = []
    if by == "itself":
        (tmp_path / "mortal").write_text(TEXTS[1], "utf-8")

    def report(line: dict[str, Any]) -> None:
        lines.append(line)
        if by == "another" and len(lines) == 2:
            os.kill(ran(tmp_path)[-1][0], signal.SIGKILL)

    run_on_ray(Job(f"{mortal}:Port"), chosen(*TEXTS), 1, report)
    assert len({process for process, _ in ran(tmp_path)}) == 2
    assert sorted(map(told, lines)) == alone(mortal)


@pytest.mark.usefixtures("cluster")
def test_what_kills_twice_is_an_error(mortal: str) -> None:
    """A case that ends every worker is an `error`; those of other groups are not touched."""
    names = ["scheduler/ddim/-/base", *TEXTS]
    lines: list = []
    run_on_ray(Job(f"{mortal}:Port"), chosen(*names), 2, lines.append)
    verdicts = {line["case"].partition("[")[0]: line["verdict"] for line in lines}
    assert verdicts == dict.fromkeys(TEXTS, "pass") | {names[0]: "error"}
    assert len(lines) == len(names)
    (message,) = [line["message"] for line in lines if line["verdict"] == "error"]
    assert message.startswith("the worker ended, 2 times: ")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [("broken", PortError, "no port today"), ("missing", UsageError, "has no 'missing'")],
)
def test_no_port(mortal: str, factory: str, error: type[Exception], message: str) -> None:
    """A port that cannot be made ends the run with the same words as elsewhere."""
    with pytest.raises(error, match=message):
        run_on_ray(Job(f"{mortal}:{factory}"), chosen(*TEXTS), 2, lambda _: None)


@pytest.mark.usefixtures("cluster")
def test_no_room(mortal: str, monkeypatch) -> None:
    """A cluster without a GPU says so instead of waiting for one for ever."""
    monkeypatch.setattr(ray_executor, "_PATIENCE", 2)
    case = find_case("unet/tiny/base")
    with pytest.raises(UsageError, match="no node had a CPU and a GPU"):
        run_on_ray(Job(f"{mortal}:Port"), [(case, Execution(device="cuda"))], 1, print)


def test_leaves_a_cluster_that_it_was_given(cluster) -> None:
    """Whoever has connected before stays connected."""
    with session() as ray:
        assert ray is cluster
    assert cluster.is_initialized()


REAL = "scheduler/ddim/-/base or scheduler/euler/-/base or text_encoder/tiny/base"


@pytest.mark.usefixtures("cluster")
def test_a_real_run(tmp_path: Path, monkeypatch) -> None:
    """The command on Ray leaves the same verdict, counts and ratios as without."""
    pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    argv = ["run", "sd1_impl", "-k", REAL, "--mode", "trace", "--out"]
    assert cli.main([*argv, str(tmp_path / "one"), "-n", "2"]) == 0
    assert cli.main([*argv, str(tmp_path / "ray"), "-n", "2", "--executor", "ray"]) == 0
    one, other = (
        json.loads((tmp_path / name / "summary.json").read_text("utf-8")) for name in ("one", "ray")
    )
    for changing in ("seconds", "environment"):
        one.pop(changing), other.pop(changing)
    assert other == one
