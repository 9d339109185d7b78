"""`run -n`: several processes, one verdict; one that dies costs one case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance.case import find_case
from conformance.errors import PortError, UsageError
from conformance.execution import Execution, items
from conformance.parallel import Job, groups, run_parallel
from conformance.results import plain
from conformance.runner import Runner

TEXTS = [f"tokenizer/-/{name}" for name in ("plain", "empty", "contractions")]
DDIM = [f"scheduler/ddim/-/{name}" for name in ("base", "steps7")]

PORT = '''
"""Right in what is exact; dies where it is asked for two texts of its list."""
import os
import signal

import numpy as np

from conformance.case import find_case
from conformance.golden_files import load_golden


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
                return load_golden(case).outputs, {}
        raise KeyError("text")


def make():
    return Port()


def broken():
    raise RuntimeError("no port today")
'''


@pytest.fixture
def mortal(tmp_path: Path) -> str:
    """Write the port and return the path of its file."""
    path = tmp_path / "mortal_port.py"
    path.write_text(PORT.replace("TEXTS:", f"{TEXTS!r}:"), "utf-8")
    return str(path)


def chosen(names: list[str]) -> list:
    """Return the items of some cases."""
    return list(items([find_case(name) for name in names], [Execution()]))


def told(line: dict) -> str:
    """Return what a line says, but for how long it took."""
    return json.dumps(plain(line | {"seconds": 0}))


@pytest.mark.parametrize("jobs", [1, 3])
def test_same_lines_as_alone(mortal: str, jobs: int) -> None:
    """The lines are those of a run in one process, whatever their order."""
    lines: list = []
    run_parallel(Job(f"{mortal}:make"), chosen(TEXTS), jobs, lines.append)
    runner = Job(f"{mortal}:make").runner()
    alone = [runner.run(case, execution).as_json() for case, execution in chosen(TEXTS)]
    assert sorted(map(told, lines)) == sorted(map(told, alone))
    assert {line["verdict"] for line in lines} == {"pass"}


def test_death_costs_one_case(mortal: str) -> None:
    """A port that kills its process loses the case, not the next one nor another group."""
    lines: list = []
    run_parallel(Job(f"{mortal}:make"), chosen(DDIM + TEXTS), 2, lines.append)
    verdicts = {line["case"].partition("[")[0]: line["verdict"] for line in lines}
    assert verdicts == dict.fromkeys(TEXTS, "pass") | dict.fromkeys(DDIM, "error")
    assert len(lines) == len(verdicts)
    messages = {line["message"] for line in lines if line["verdict"] == "error"}
    assert messages == {"the port ended the process (exit code -9)"}


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("{}:broken", PortError, "no port today"),
        ("{}:missing", UsageError, "has no 'missing'"),
        ("exec:no-such-program-anywhere", UsageError, "no program"),
    ],
)
def test_no_port(mortal: str, spec: str, error: type[Exception], message: str) -> None:
    """A port that cannot be made ends the run, whichever process notices."""
    with pytest.raises(error, match=message):
        run_parallel(Job(spec.format(mortal)), chosen(TEXTS), 2, lambda _: None)


def test_groups_keep_networks_together() -> None:
    """One group holds all of a component, variant and arithmetic, the largest comes first."""
    modes = [
        Execution(dtype=d, mode=m) for d in ("float32", "float64") for m in ("splice", "trace")
    ]
    names = ["unet/tiny/base", "unet/tiny/quiet", "vae_decoder/tiny/base", *TEXTS]
    found = groups(items([find_case(name) for name in names], modes))
    assert [len(group) for group in found] == [4, 4, 3, 2, 2]
    assert {len({(c.component, c.variant, e.dtype) for c, e in group}) for group in found} == {1}


def test_closed_at_the_end(fake) -> None:
    """A port may have something to end; one without `close` is left alone."""
    from conformance.port import close

    closed = []
    port = fake()
    close(port)
    port.close = lambda: closed.append(True)
    close(Runner(port).port)
    assert closed == [True]
