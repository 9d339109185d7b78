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
    assert report["bench"] == "load"
    dtype, width = ("float32", 4) if name == "a.safetensors" else ("bfloat16", 2)
    rows = {row["name"].partition(":")[2]: row for row in report["rows"]}
    assert {row["name"].partition(":")[0] for row in report["rows"]} == {f"unet/tiny[{dtype}]"}
    for own in (rows, {name: row["reference"] for name, row in rows.items()}):
        assert all(len(row["runs"]) == 1 for row in own.values())
        assert 0 < own["call"]["value"] <= own["ready"]["value"]
        assert own["peak"]["value"] >= own["growth"]["value"] > 0
    assert report["parameters"] == 8_605_284
    assert report["bytes"] == 8_605_284 * width
    assert "python" in report["environment"]
    told = capsys.readouterr().out.splitlines()
    assert (
        told[0] == f"{files / name}: UNet, 8,605,284 parameters, {report['bytes'] / 2**20:,.0f} MiB"
    )
    assert (
        told[-1]
        == f"ratio {rows['ready']['ratio']:.2f} until every weight was read once (medians of 1)"
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--repeat", "0"], 2, "--repeat 0: give a positive number"),
        (["--weights", "nowhere"], 2, "nowhere is missing"),
        (["--out", "no/f"], 2, "cannot write no/f: its folder has to exist and be writable"),
        (["--out", "."], 2, "cannot write .: it is a folder"),
    ],
    ids=["repeat", "weights", "out", "folder"],
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
