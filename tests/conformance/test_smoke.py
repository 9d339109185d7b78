"""`smoke` says whether the harness of a port is broken, and how, or its mathematics."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conformance import smoke as smoke_module
from conformance.adapters.process import ExecPort
from conformance.errors import ExitCode
from conformance.smoke import Check, conclusion, smoke

HARNESS = Path(__file__).with_name("broken_harness.py")

BROKEN = {
    "swaps bytes": ("echo: float32", "its bytes are swapped"),
    "writes columns first": ("echo: float32", "column by column"),
    "moves channels to the end": ("echo: shapes", "came back in shape (2, 4, 5, 3)"),
    "makes scalars vectors": ("echo: shapes", "came back in shape (1,)"),
    "knows float32 alone": ("echo: dtypes", "came back as float32"),
    "begins 4 bytes late": ("echo: float32", "begins at the wrong byte"),
    "forgets to write": ("echo: float32", "all its elements are zero"),
    "loses the last tensor": ("echo: dtypes", "tensors were lost: ['bool']"),
    "reuses a buffer of 64 MB": ("echo: 100 MB", "came back in shape (16777216,)"),
    "cannot load": ("text_encoder/tiny/base", "KeyError"),
    "forgets an output": ("text_encoder/tiny/base", "output pooler_output is missing"),
    "loads whatever it is asked for": ("unknown component", "it loads a component"),
    "ends at an error": ("unknown component", "ended while it was asked for load (exit code 1)"),
    "does not know its errors": ("unknown component", "it loads a component"),
    "fails at the end": ("bye and restart", "it ends with exit code 1 after `bye`"),
}
"""What a harness does, the first check that finds it, and what that says."""


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch):
    """Return a function that checks a harness with one fault."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def check(fault: str) -> list[Check]:
        if fault != "reuses a buffer of 64 MB":
            monkeypatch.setattr(smoke_module, "_LARGE", 1000)
        port = ExecPort(f"{sys.executable} {HARNESS} '{fault}'")
        try:
            return list(smoke(port))
        finally:
            port.close()

    return check


@pytest.mark.parametrize(("fault", "found"), BROKEN.items(), ids=BROKEN)
def test_broken_harness(look, fault: str, found: tuple[str, str]) -> None:
    """Each is found by the check that is there for it, and the conclusion names it."""
    checks = look(fault)
    first = next(check for check in checks if check.verdict == smoke_module.BROKEN)
    name, message = found
    assert (first.name, message in first.message) == (name, True), first
    text, code = conclusion(checks, "exec:./port")
    assert code is ExitCode.BROKEN
    assert text.startswith(f"The harness is broken ({name}")


def test_sound_harness(look) -> None:
    """With a sound harness, zeros are wrong mathematics."""
    checks = look("none")
    wrong = [check.name for check in checks if check.verdict != smoke_module.OK]
    assert wrong == ["text_encoder/tiny/base"]
    text, code = conclusion(checks, "exec:./port")
    assert text.startswith("The harness is sound. The mathematics is wrong")
    assert "`sd1-conformance run exec:./port` names the layer" in text
    assert code is ExitCode.NONCONFORMANT


def test_in_process(port_file, main) -> None:
    """A port in process is asked what can be asked of it; the command's exit code follows."""
    code, out, _ = main("smoke", port_file)
    assert "ok     hello                    fake 1.0: tokenizer, unet" in out
    assert "echo" not in out
    assert out.endswith(f"Next: `sd1-conformance run {port_file}`.\n")
    assert code == 0


def test_no_port(main) -> None:
    """A command that is no program is bad usage."""
    code, out, err = main("smoke", "exec:no-such-program-anywhere")
    assert (code, "no program" in out + err) == (ExitCode.BROKEN, True)
