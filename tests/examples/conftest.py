"""What the tests of the NumPy port share."""

from pathlib import Path

import pytest

from conformance.port import resolve
from conformance.runner import Runner

NUMPY_PORT = Path(__file__).resolve().parents[2] / "examples" / "numpy" / "port.py"


@pytest.fixture
def runner(monkeypatch):
    """Run cases on the NumPy port, without asking the live oracle for a golden's age."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    return Runner(resolve(f"{NUMPY_PORT}:factory"))
