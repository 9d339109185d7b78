"""Trajectories: where a sampling run departs from the truth first, in numbers and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from conformance.report import trajectories
from conformance.report.html import Page, write_html
from conformance.report.run import read_run
from conformance.report.trajectories import Trajectories

if TYPE_CHECKING:
    from pathlib import Path

TXT2IMG = {"component": "pipeline/txt2img"}


def view(out: Path) -> Any:
    """Show a run to the section and return what its template gets."""
    section = Trajectories()
    return section.view(read_run(out, [section]))


def steps(*rows: dict[str, object]) -> list[dict[str, Any]]:
    """Build a trajectory: each row gives the ratios of one step's terms."""
    return [
        {"step": i}
        | {term: {"err": 1e-6, "noise": 1e-7, "ratio": ratio} for term, ratio in row.items()}
        for i, row in enumerate(rows)
    ]


def test_who_departs_first(made_up) -> None:
    """Splice mode names the term that is wrong by itself, trace mode where the limit is left."""
    own = steps({"model": 1.0, "guidance": 0.5}, {"model": 0.9, "guidance": 900.0})
    trace = steps({"model": 1.0, "guidance": 0.5}, {"model": 1.0, "guidance": 30.0}, {"model": 8.0})
    lines = [
        made_up.line("fail", **TXT2IMG, mode="splice", trajectory=own),
        made_up.line("fail", **TXT2IMG, mode="trace", trajectory=trace),
    ]
    found = view(made_up.write(lines))
    ((path, words),) = found["worded"]
    assert path.name == "pipeline/txt2img/tiny/base[float32-cpu-sdpa]"
    assert dict(words) == {
        "splice": "guidance is wrong by itself first, at step 1: ratio 900; model never",
        "trace": "guidance departs first, at step 1: ratio 30",
    }
    assert found["lead"] == (
        "1 of 1 runs leave the limit. The term that is wrong first: guidance in 1."
    )
    points = found["data"]["paths"][0]["points"]["trace"]
    assert points["step"] == [0, 0, 1, 1, 2]
    assert points["ratio"] == [1.0, 0.5, 1.0, 30.0, 8.0]
    assert [found["data"]["terms"][i] for i in points["term"][:2]] == ["model", "guidance"]


def test_healthy_run(made_up) -> None:
    """Where nothing departs, the worst of all steps is named."""
    found = view(made_up.write([made_up.line(**TXT2IMG, trajectory=steps({"model": 1.5}))]))
    assert found["lead"] == "All 1 runs stay within the limit at every step."
    ((_, words),) = found["worded"]
    assert words == [
        ("trace", "within the limit at every step; the worst is 1.5 in model at step 0")
    ]


def test_open_loop(made_up) -> None:
    """A scheduler's inputs and samples are its steps; tables are none."""
    records = [{"name": "betas", "ratio": 99.0}, {"name": "model_inputs#0", "ratio": 0.0}]
    records += [{"name": "samples#0", "ratio": "nan", "err": 0.1}, {"name": "samples#x"}]
    line = made_up.line("fail", component="scheduler/ddim", mode="", probes=records)
    found = view(made_up.write([line]))
    ((_, words),) = found["worded"]
    assert words == [("", "scheduler departs first, at step 0: ratio not a number; input never")]
    page = write_html(Page(made_up.write([line]))).read_text("utf-8")
    assert "Scheduler departs first" in page


def test_of_many_runs_the_worst(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page holds the worst runs, and says of how many."""
    monkeypatch.setattr(trajectories, "_KEPT", 3)
    lines = [
        made_up.line(**TXT2IMG, scenario=f"s{i}", trajectory=steps({"model": float(i % 7)}))
        for i in range(20)
    ]
    found = view(made_up.write(lines))
    assert (found["shown"], found["seen"]) == (3, 20)
    assert [path.badness for path, _ in found["worded"]] == [(1, 6.0), (1, 6.0), (1, 5.0)]


@pytest.mark.parametrize(
    "trajectory",
    [None, "x", 7, [], [None], [{"step": "x", "model": 3}], [{"model": {"ratio": None}}]],
)
def test_garbled(made_up, trajectory: object) -> None:
    """What is no trajectory is none."""
    assert view(made_up.write([made_up.line(**TXT2IMG, trajectory=trajectory)])) is None
