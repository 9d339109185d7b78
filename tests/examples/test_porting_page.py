"""docs/porting.md: its ports are ports, in process and served, and do what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from conformance import cli

ROOT = Path(__file__).resolve().parents[2]
SERVE = ROOT / "conformance/adapters/serve.py"
SOURCE, WITH_TORCH = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/porting.md").read_text("utf-8"), re.DOTALL
)


@pytest.fixture
def page_port(tmp_path: Path) -> str:
    """Save the page's port as it says."""
    (tmp_path / "my_port.py").write_text(SOURCE, "utf-8")
    return f"{tmp_path}/my_port.py:factory"


@pytest.mark.parametrize("served", [False, True], ids=["in-process", "served"])
def test_the_pages_commands(page_port: str, tmp_path: Path, capsys, *, served: bool) -> None:
    """Smoke finds it sound, and it conforms; in splice mode too where the oracle is installed."""
    port = f"exec:{sys.executable} {SERVE} {page_port}" if served else page_port
    assert cli.main(["smoke", port]) == 0, capsys.readouterr().out
    assert cli.main(["run", port, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "CONFORMANT: my port 0.1" in out
    modes = 2 if importlib.util.find_spec("diffusers") else 1
    assert f"({modes} item{'s' * (modes > 1)} measured)" in out
    assert "not handed out" not in out


def test_a_misspelt_probe_is_named(page_port: str, tmp_path: Path, capsys) -> None:
    """What the port was asked for and did not show is in the line `depth`."""
    path = Path(page_port.rpartition(":")[0])
    path.write_text(SOURCE.replace('see("linear_1"', 'see("linear_one"'), "utf-8")
    cli.main(["run", page_port, "--mode", "trace", "--out", str(tmp_path / "out")])
    assert "probes not handed out: 1 of block/time_embedding (linear_1)" in capsys.readouterr().out


def test_with_torch(tmp_path: Path, capsys, monkeypatch) -> None:
    """The port of torch modules conforms, whosever UNet has the checkpoint's names."""
    pytest.importorskip("torch")
    from sd1_impl import UNet, UNetConfig

    mine = types.ModuleType("my_model")
    mine.MyUNet = lambda **sizes: UNet(UNetConfig(**_as_tuples(sizes)))
    monkeypatch.setitem(sys.modules, "my_model", mine)
    (tmp_path / "torch_port.py").write_text(WITH_TORCH, "utf-8")
    options = ["--component", "unet", "--variant", "tiny", "--scenario", "base", "--mode", "trace"]
    port = f"{tmp_path}/torch_port.py:factory"
    assert cli.main(["run", port, *options, "--out", str(tmp_path / "out")]) == 0
    assert "CONFORMANT: my_port 1.0" in capsys.readouterr().out


def _as_tuples(sizes: dict) -> dict:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items()}
