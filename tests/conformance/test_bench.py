"""`bench load`: what loading takes, beside diffusers."""

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from conformance import cli


@pytest.mark.parametrize("name", ["a.safetensors", "brain"])
def test_load(files: Path, tmp_path: Path, capsys, name: str) -> None:
    """Both loaders, in fresh processes; the figures are kept with the environment."""
    out = tmp_path / "load.json"
    words = ["bench", "load", "--weights", str(files / name), "--repeat", "1", "--out", str(out)]
    assert cli.main(words) == 0
    report = json.loads(out.read_text())
    assert [row["loader"] for row in report["runs"]] == ["sd1_impl", "diffusers"]
    dtype, width = ("float32", 4) if name == "a.safetensors" else ("bfloat16", 2)
    for row in report["runs"]:
        assert (row["parameters"], row["dtype"]) == (8_605_284, dtype)
        assert 0 < row["call"] <= row["ready"]
        assert row["peak"] >= row["growth"] > 0
    assert report["bytes"] == 8_605_284 * width
    medians = report["medians"]
    assert report["ratio"] == medians["sd1_impl"]["ready"] / medians["diffusers"]["ready"]
    assert "python" in report["environment"]
    told = capsys.readouterr().out.splitlines()
    assert (
        told[0] == f"{files / name}: UNet, 8,605,284 parameters, {report['bytes'] / 2**20:,.0f} MiB"
    )
    assert (
        told[-1] == f"ratio {report['ratio']:.2f} until every weight was read once (medians of 1)"
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--repeat", "0"], 2, "--repeat 0: give a positive number"),
        (["--weights", "nowhere"], 2, "nowhere is missing"),
    ],
    ids=["repeat", "weights"],
)
def test_mistakes(capsys, words: list[str], code: int, message: str) -> None:
    """One line."""
    assert cli.main(["bench", "load", *words]) == code
    assert capsys.readouterr().err == f"sd1-conformance: {message}\n"


def test_weights_that_are_incomplete(files: Path, tmp_path: Path, capsys) -> None:
    """A loader that fails is named, with its reason."""
    path = tmp_path / "unet"
    path.mkdir()
    (path / "config.json").write_text((files / "brain" / "unet" / "config.json").read_text())
    (path / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08" + bytes(7) + b'{"a":1} ')
    assert cli.main(["bench", "load", "--weights", str(path)]) == 2
    assert capsys.readouterr().err.endswith("a has 1, expected data_offsets, dtype, shape\n")
