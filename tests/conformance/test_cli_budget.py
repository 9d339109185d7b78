"""`budget` on the terminal: sizes that are none, savings that a port lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

PORT = """
from conformance.adapters.sd1_impl_networks import NETWORKS
from conformance.adapters.torch_module import TorchPort

def port():
    return TorchPort("small", "1", {"vae_decoder": NETWORKS["vae_decoder"]})
"""


def test_a_negative_size_is_no_option(main) -> None:
    """The field and the fix are named, instead of `expected one argument`."""
    code, out, err = main("budget", "-k", "text_encoder/tiny", "--max", "-1GiB")
    assert (code, out) == (2, "")
    assert err == "sd1-conformance: --max '-1GiB' is no size: write 8GiB or 512MiB\n"


@pytest.mark.parametrize(
    "command", [["budget"], ["run", "--mode", "memory"]], ids=["budget", "run"]
)
def test_a_saving_that_a_port_lacks(main, tmp_path: Path, command: list[str]) -> None:
    """It is said what gives a port one."""
    (tmp_path / "small.py").write_text(PORT)
    words = [command[0], f"{tmp_path / 'small.py'}:port", *command[1:]]
    if command[0] == "run":
        words += ["--out", str(tmp_path / "out"), "--control", "none"]
    code, out, err = main(*words, "--variant", "tiny", "--backend", "tiled")
    assert code in {2, 3}
    assert "small has no way to compute vae_decoder tiled: a switch gives it one, " in out + err
    assert "TorchPort(..., saving=...)" in out + err
