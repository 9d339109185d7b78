"""Bench files: what they hold, and what is no bench file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from conformance import __version__
from conformance.bench.record import MORE, Reference, Row, read, require_writable, write
from conformance.errors import UsageError


def rows() -> list[Row]:
    """Return one row of each kind."""
    beside = Reference("diffusers", (2.0, 4.0, 8.0, 2.0))
    return [
        Row.measured("unet", "s", [1.0, 2.0, 2.0, 3.0], reference=beside, facts={"flops": 7}),
        Row.measured("watching", "ratio", [1.1]),
        Row.counted("peak", "bytes", 130),
        Row.measured("items", "ratio", [5.0, 6.0], better=MORE),
    ]


def test_round_trip(tmp_path: Path) -> None:
    """What is read is what was written; quartiles and the paired ratio stand beside the runs."""
    path = tmp_path / "a.json"
    write(path, "models", rows(), {"bytes": 12})
    found = read(path)
    assert list(found.rows.values()) == rows()
    assert (found.bench, found.suite, found.extra) == ("models", __version__, {"bytes": 12})
    assert found.environment["python"] == sys.version.split()[0]
    first, _, third, _ = json.loads(path.read_text())["rows"]
    assert (first["value"], first["spread"], first["better"]) == (2.0, [1.75, 2.25], "less")
    assert first["reference"]["value"] == 3.0
    assert first["ratio"] == 0.5  # the median of 0.5, 0.5, 0.25, 1.5; of the medians it is 0.67
    assert (third["runs"], third["spread"]) == ([], [130.0, 130.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no bench file: it is no JSON"),
        ("[]", "is no bench file: it has no key `bench`"),
        ('{"bench": 3}', "is no bench file: it has no key `bench`"),
        ('{"bench": "suite", "format": 9, "suite": "7"}', "of format 9, this suite"),
        ('{"bench": "suite", "format": 1}', "damaged bench file: no key 'rows'"),
        ('{"bench": "suite", "format": 1, "rows": [{}]}', "no key 'name'"),
        ('{"bench": "suite", "format": 1, "rows": [3]}', "damaged bench file"),
    ],
    ids=["json", "list", "number", "format", "rows", "row", "no-row"],
)
def test_no_bench_file(tmp_path: Path, text: str, message: str) -> None:
    """One line that names the file and the key."""
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"a\.json") as caught:
        read(path)
    assert message in str(caught.value)


def test_two_rows_of_one_name(tmp_path: Path) -> None:
    """A name is a row's identity."""
    write(tmp_path / "a.json", "suite", [Row.counted("a", "bytes", 1)] * 2)
    with pytest.raises(UsageError, match="it has two rows a"):
        read(tmp_path / "a.json")


def test_missing(tmp_path: Path) -> None:
    """A file that is not there, and one that cannot be written."""
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        read(tmp_path / "a.json")
    for path in (tmp_path / "no" / "a.json", Path("/proc/a.json")):
        with pytest.raises(UsageError, match=r"cannot write .*: its folder has to exist"):
            require_writable(path)
    with pytest.raises(UsageError, match=r"cannot write .*: it is a folder"):
        require_writable(tmp_path)
    require_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"cannot write .*: No such file"):
        write(tmp_path / "no" / "a.json", "suite", [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "ms"}, "unit is 'ms', expected one of s, bytes, ratio"),
        ({"better": "most"}, "better is 'most', expected less or more"),
        ({"value": float("nan")}, "negative or not finite"),
        ({"runs": (1.0, -1.0)}, "negative or not finite"),
        ({"reference": Reference("diffusers", (1.0,))}, "2 runs, 1 beside them"),
    ],
    ids=["unit", "better", "nan", "negative", "reference"],
)
def test_impossible_rows(changes: dict, message: str) -> None:
    """A row that says nonsense is refused where it is made, and so where it is read."""
    with pytest.raises(ValueError, match=message):
        Row(**{"name": "a", "unit": "s", "value": 1.0, "runs": (1.0, 2.0), **changes})
