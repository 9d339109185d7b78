"""examples/README.md says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROW = re.compile(r"\| \[(\w+)\]\(\w+/README\.md\) .* \| (\d+) \| [\d.]+ \|")
ROWS = dict(ROW.findall((EXAMPLES / "README.md").read_text("utf-8")))


def test_every_port_is_listed() -> None:
    """A folder of examples is a port, with a page of its own."""
    assert set(ROWS) == {page.parent.name for page in EXAMPLES.glob("*/README.md")}


@pytest.mark.parametrize("port", ROWS)
def test_lines(port: str) -> None:
    """The lines of a port are those of its sources."""
    sources = [p for p in (EXAMPLES / port).rglob("*") if p.suffix in {".py", ".c"}]
    assert sum(len(p.read_text("utf-8").splitlines()) for p in sources) == int(ROWS[port])
