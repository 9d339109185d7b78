"""`diff` of two runs with mode `memory`: bytes, which are exact, beside what the verdicts say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.run_folder import row

ITEM = "unet/tiny/latent16-batch2[float32-cpu-{}-memory]"


def line(peak: int | None, backend: str = "sdpa", verdict: str = "pass") -> dict[str, Any]:
    """Build a case line of mode memory; without a peak it was skipped."""
    return {
        "type": "case", "case": ITEM.format(backend), "component": "unet", "variant": "tiny",
        "scenario": "latent16-batch2", "dtype": "float32", "device": "cpu", "backend": backend,
        "mode": "memory", "verdict": verdict, "ratio": None, "message": "", "probes": [],
        **({"memory": {"peak": peak}} if peak else {}),
    }  # fmt: skip


@pytest.fixture
def compare(tmp_path: Path, main):
    """Return a function that compares two runs: exit code, what is printed, and the JSON object."""

    def call(before: list[dict], after: list[dict]) -> tuple[int, str, dict[str, Any]]:
        for name, lines in (("a", before), ("b", after)):
            header = {"type": "header", "limit": 4.0, "goldens": "g", "environment": {}}
            header |= {"port": {"name": "mine", "version": "1"}, "offers": ["unet"]}
            (tmp_path / name).mkdir()
            text = "".join(map(row, [header, *lines, {"type": "footer"}]))
            (tmp_path / name / "results.jsonl").write_text(text, "utf-8")
        folders = tmp_path / "a", tmp_path / "b"
        code, told, _ = main("diff", *folders)
        return code, told, json.loads(main("diff", *folders, "--json")[1])

    return call


def test_peaks_that_moved(compare) -> None:
    """Before, after and by how many bytes, the largest change first; what is the same is not."""
    before = [line(2**20), line(3 * 2**20, "plain"), line(5, "sliced")]
    after = [line(2**20 + 64), line(2**20, "plain"), line(5, "sliced")]
    code, told, found = compare(before, after)
    assert code == 0
    rows = [text for text in told.splitlines() if text.startswith("  held")]
    assert rows == [
        f"  held     {ITEM.format('plain')}: 3 MiB -> 1 MiB (-2,097,152 bytes)",
        f"  held     {ITEM.format('sdpa')}: 1 MiB -> 1 MiB (+64 bytes)",
    ]
    assert found["held"][1] == {
        "case": ITEM.format("sdpa"),
        "before": 2**20,
        "after": 2**20 + 64,
    }


def test_a_budget_that_is_exceeded(compare) -> None:
    """The verdict makes it a regression, the bytes say by how much."""
    code, told, _ = compare([line(100)], [line(150, verdict="fail")])
    assert code == 1
    assert "(+50 bytes)" in told


def test_what_was_not_judged_twice(compare) -> None:
    """A skip holds nothing that could be compared."""
    _, told, found = compare([line(100), line(7, "plain")], [line(None, verdict="skip")])
    assert (found["held"], "  held" in told) == ([], False)


def test_only_a_few_are_told(compare) -> None:
    """The others are counted."""
    names = [f"b{i}" for i in range(5)]
    _, told, found = compare([line(9, n) for n in names], [line(10, n) for n in names])
    assert len(found["held"]) == 5
    assert "and 2 more configurations" in told
