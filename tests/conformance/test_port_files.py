"""What a folder or a file is read to offer as a port, without being imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.port_files import factory_advice

FILES = {
    "one": ({"a.py": "def factory():\n    return 1\n"}, "write {0}/a.py:factory"),
    "two": (
        {"b.py": "def factory(size=1): ...", "a.py": "def factory(): ...", "c.py": "x = 1"},
        "write {0}/a.py:factory or {0}/b.py:factory",
    ),
    "needs-an-argument": ({"a.py": "def factory(size): ..."}, "write {0}/FILE.py:NAME, NAME "),
    "not-at-the-top": ({"a.py": "class A:\n    def factory(): ..."}, "write {0}/FILE.py:NAME"),
    "broken": ({"a.py": "def factory(:"}, "write {0}/FILE.py:NAME"),
    "would-raise": ({"a.py": "1 / 0\ndef factory(): ..."}, "write {0}/a.py:factory"),
    "empty": ({}, "write {0}/FILE.py:NAME"),
}


@pytest.mark.parametrize(("files", "told"), FILES.values(), ids=FILES)
def test_a_folder(tmp_path: Path, files: dict[str, str], told: str) -> None:
    """Every file with a `factory` is named; without any, how a port is named."""
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    assert factory_advice(tmp_path).startswith(told.format(tmp_path))


def test_a_file(tmp_path: Path) -> None:
    """Its factory is named, or what a name would be."""
    path = tmp_path / "p.py"
    path.write_text("def make(): ...\n", "utf-8")
    assert factory_advice(path).startswith(f"write {path}:NAME, NAME being a function")
    path.write_text("def factory(): ...\n", "utf-8")
    assert factory_advice(path) == f"write {path}:factory"
