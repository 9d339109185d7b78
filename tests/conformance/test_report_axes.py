"""Reports of runs along the axes: what differs from itself is no error of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from conformance.explain import failing_items
from conformance.fingerprint import marks_of
from conformance.report.architecture import Architecture
from conformance.report.depth import Depth
from conformance.report.heat import Heat
from conformance.report.html import Page, write_html
from conformance.report.run import read_run
from conformance.report.trajectories import Trajectories

if TYPE_CHECKING:
    from pathlib import Path

AXES = [
    {"dtype": "policy:fp16-norm32"},
    {"dtype": "bf16-matmul", "mode": "splice"},
    {"backend": "channels_last"},
    {"backend": "plain", "mode": "batch"},
]


HOW = [{}, *AXES, {"mode": "repeat"}]
"""Those of all lines."""


def probes(ratio: float) -> list[dict[str, Any]]:
    """Build the records of two layers."""
    wrong = "fail" if ratio > 4 else "pass"
    facts = {"ratio": ratio, "verdict": wrong, "kind": "probe", "note": "", "err": 1e-6}
    return [{"name": name, **facts} for name in ("conv_in", "conv_out")]


@pytest.fixture
def lines(made_up) -> list[dict[str, Any]]:
    """A right case, run along every axis, and one that does not repeat itself."""
    own = [made_up.line(probes=probes(1.5)), *self_named(made_up)]
    item = "unet/tiny/base[float32-cpu-sdpa-repeat]"
    return [*own, made_up.line("fail", mode="repeat", case=item, probes=probes(900.0))]


def self_named(made_up) -> list[dict[str, Any]]:
    """Build a line for each axis, with the id that it has in a run."""
    found = []
    for axis in AXES:
        how = {"dtype": "float32", "backend": "sdpa", "mode": "trace"} | axis
        item = f"unet/tiny/base[{how['dtype']}-cpu-{how['backend']}-{how['mode']}]"
        found.append(made_up.line(case=item, probes=probes(2.0), **axis))
    return found


def view(section: Any, out: Path) -> Any:
    """Show a run to a section and return what its template gets."""
    return section.view(read_run(out, [section]))


def test_the_page_shows_every_axis(made_up, lines) -> None:
    """Each item is in the table of cases, and the failure is told by the mode that found it."""
    page = write_html(Page(made_up.write(lines))).read_text("utf-8")
    for line in lines:
        assert line["case"] in page
    assert "--mode repeat" in page  # how to run it again


def test_layers_are_coloured_by_their_errors(made_up, lines) -> None:
    """A layer is as wrong as it is by the golden: what does not repeat itself colours none."""
    found = view(Architecture(), made_up.write(lines))
    ratios = {look.ratio for network in found["networks"] for _, look in network["boxes"]}
    assert max(ratio for ratio in ratios if ratio is not None) == 2.0


def test_depth_draws_what_is_judged_by_the_golden(made_up, lines) -> None:
    """A series each arithmetic and backend, and none of a comparison of the port with itself."""
    (plot,) = view(Depth(), made_up.write(lines))["data"]["plots"]
    labels = [one["label"] for one in plot["series"]]
    assert labels == [
        "float32, cpu",
        "policy:fp16-norm32, cpu",
        "bf16-matmul, cpu",
        "float32, cpu, channels_last",
    ]


def test_heat_has_a_picture_for_each(made_up, lines) -> None:
    """Every way to compute has a picture of its own, and so has what a port is compared in."""
    pictures = view(Heat(), made_up.write(lines))["data"]["pictures"]
    kinds = {(p["dtype"], p["backend"], p["mode"]): len(p["cases"]) for p in pictures}
    ways = [{"dtype": "float32", "backend": "sdpa", "mode": "trace"} | axis for axis in HOW]
    assert kinds == {(way["dtype"], way["backend"], way["mode"]): 1 for way in ways}


def test_no_path_departs_from_itself(made_up) -> None:
    """A pipeline's paths are those of traces and splices."""
    trajectory = [{"step": 0, "name": "latents#0", "err": 1e-6, "ratio": 1.0, "kind": "probe"}]
    line = made_up.line(component="pipeline/txt2img", mode="threads", trajectory=trajectory)
    section = Trajectories()
    section.add(line)
    assert view(section, made_up.write([line])) is None


def test_no_mutant_explains_what_does_not_repeat(lines) -> None:
    """Such a failure is no item to be explained, and leaves no fingerprint."""
    assert failing_items(lines, "unet") == []
    only = [line for line in lines if line["mode"] == "repeat"]
    assert failing_items(only, "unet") == []
    right = [line for line in lines if line["mode"] == "trace" and line["dtype"] == "float32"]
    unstable = [line for line in lines if line["mode"] in {"repeat", "batch"}]
    assert marks_of([*right, *unstable], "unet") == marks_of(right, "unet")
