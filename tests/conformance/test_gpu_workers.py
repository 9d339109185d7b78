"""Workers on a machine with several GPUs: each has one of its own before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import devices
from conformance.case import find_case
from conformance.devices import device_of, visible_devices
from conformance.execution import Execution
from conformance.parallel import Job, run_parallel

LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb-1)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-bbbb-2/7/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-cccc-3)
"""

PORT = '''
"""Says which GPUs it was given, and whether torch was there first; dies where it is told to."""
import os
import signal
import sys
from pathlib import Path

from conformance.errors import UnsupportedError

WHERE = Path(os.environ["SD1_TEST_FOLDER"])
(WHERE / str(os.getpid())).write_text(
    f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {'torch' in sys.modules}"
)


class Port:
    def hello(self):
        components = ["tokenizer", "unet", "scheduler/ddim"]
        return {"name": "gpu", "version": "1", "components": components,
                "devices": ["cpu", "cuda"], "arithmetics": ["float32", "float64", "float16"],
                "probes": False, "replace": False}

    def load(self, component, *_):
        if component == "scheduler/ddim":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UnsupportedError("nothing to see")
'''


@pytest.fixture(autouse=True)
def unseen(monkeypatch, tmp_path: Path) -> None:
    """Hide the GPUs of the machine that runs the tests."""
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "no-driver")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def port(tmp_path: Path, monkeypatch) -> str:
    """Write the port, and a folder in which each process of it leaves a file."""
    (tmp_path / "seen").mkdir()
    monkeypatch.setenv("SD1_TEST_FOLDER", str(tmp_path / "seen"))
    path = tmp_path / "gpu_port.py"
    path.write_text(PORT, "utf-8")
    return f"{path}:Port"


def seen(tmp_path: Path) -> list[str]:
    """Return what the processes of a port saw."""
    return sorted(path.read_text("utf-8") for path in (tmp_path / "seen").iterdir())


def lister(tmp_path: Path, body: str) -> None:
    """Put a `nvidia-smi` on the path."""
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("0", ["0"]),
        ("2,0, 1", ["2", "0", "1"]),
        ("GPU-8932f937,MIG-GPU-8932f937/1/2", ["GPU-8932f937", "MIG-GPU-8932f937/1/2"]),
        ("0,-1,1", ["0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,1", ["1"]),
    ],
)
def test_visible_by_variable(monkeypatch, tmp_path, asked: str, found: list[str]) -> None:
    """The variable decides, as CUDA reads it: nothing after the first name that is none."""
    lister(tmp_path, f"echo '{LISTED}'")
    monkeypatch.setenv(devices.VISIBLE, asked)
    assert visible_devices() == found


def test_visible_by_driver(tmp_path: Path, monkeypatch) -> None:
    """Without the variable the driver is asked; parts of a GPU stand for it."""
    assert visible_devices() == []
    driver = tmp_path / "driver"
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (driver / name).mkdir(parents=True)
    monkeypatch.setattr(devices, "_DRIVER", driver)
    assert visible_devices() == ["0", "1"]
    lister(tmp_path, f"[ \"$*\" = -L ] && echo '{LISTED}'")
    assert visible_devices() == ["MIG-bbbb-1", "MIG-GPU-bbbb-2/7/0", "GPU-cccc-3"]


@pytest.mark.parametrize("body", ["exit 9", "echo 'No devices found.'", r"printf '\377'"])
def test_a_broken_driver_lists_nothing(tmp_path: Path, body: str) -> None:
    """A driver that fails or says anything else is no device, and no traceback."""
    lister(tmp_path, body)
    assert visible_devices() == []


def test_in_turn() -> None:
    """Workers take the devices in turn; of one or none there is nothing to choose."""
    named = [device_of(i, ["0", "GPU-x"]) for i in range(3)]
    assert [own[devices.VISIBLE] for own in named] == ["0", "GPU-x", "0"]
    assert device_of(1, ["0"]) == device_of(1, []) == {}


def items(device: str, *names: str) -> list:
    """Return the items of some cases, one group each."""
    return [(find_case(name), Execution(device=device)) for name in names]


NAMES = ("unet/tiny/base", "unet/odd/base", "unet/tiny-dense/base", "tokenizer/-/plain")


def test_run_in_parallel(port: str, tmp_path: Path, monkeypatch) -> None:
    """`run -n` gives each worker the next device, and leaves its own environment alone."""
    monkeypatch.setenv(devices.VISIBLE, "0,GPU-x,5")
    lines: list = []
    run_parallel(Job(port), items("cuda", *NAMES), 4, lines.append)
    assert seen(tmp_path) == ["0 False", "0 False", "5 False", "GPU-x False"]
    assert len(lines) == len(NAMES)
    assert os.environ[devices.VISIBLE] == "0,GPU-x,5"


def test_run_on_the_cpu(port: str, tmp_path: Path, monkeypatch) -> None:
    """Where nothing runs on a GPU, the variable stays what it is."""
    monkeypatch.setenv(devices.VISIBLE, "0,1")
    run_parallel(Job(port), items("cpu", *NAMES[:2]), 2, lambda _: None)
    assert seen(tmp_path) == ["0,1 False"] * 2


def test_a_new_worker_takes_the_place_of_a_dead_one(port: str, tmp_path: Path, monkeypatch) -> None:
    """The device of a worker that died is used again, not the next one."""
    monkeypatch.setenv(devices.VISIBLE, "0,1")
    lines: list = []
    names = ("scheduler/ddim/-/base", "scheduler/ddim/-/steps7", "scheduler/ddim/-/eta1")
    run_parallel(Job(port), items("cuda", *names), 1, lines.append)
    assert [line["verdict"] for line in lines] == ["error"] * 3
    assert seen(tmp_path) == ["0 False"] * 3


TESTS = """
import os
import sys

import pytest

SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")
TORCH = "torch" in sys.modules


@pytest.mark.parametrize("i", range(8))
def test_alone(i, sd1_runner, worker_id):
    assert not TORCH
    assert SEEN == ["0", "MIG-x", "2"][int(worker_id[2:])]
    assert sd1_runner.hello.name == "gpu"


def test_judged(sd1_item, sd1_judge):
    sd1_judge(sd1_item)
"""


def test_pytest_workers(port: str, tmp_path: Path) -> None:
    """`pytest -n` does the same, before a conftest; the report does not tell it as a change."""
    (tmp_path / "conftest.py").write_text("from test_them import SEEN, TORCH\n", "utf-8")
    (tmp_path / "test_them.py").write_text(TESTS, "utf-8")
    path = os.environ["PATH"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment |= {devices.VISIBLE: "0,MIG-x,2", "PATH": f"{path}:{os.defpath}"}
    command = [sys.executable, "-m", "pytest", "-n", "3", "-p", "no:cacheprovider"]
    command += ["--sd1-port", port, "--sd1-variant", "tiny", "--sd1-out", str(tmp_path / "report")]
    command += ["-k", "alone or tokenizer/-/plain", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert "8 passed" in done.stdout, done.stdout
    assert set(seen(tmp_path)) == {"0 False", "MIG-x False", "2 False"}
    header = (tmp_path / "report" / "results.jsonl").read_text("utf-8").splitlines()[0]
    assert devices.VISIBLE not in header
