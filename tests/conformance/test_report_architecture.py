"""The architecture: every block is drawn once, and coloured by its worst error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from conformance import spec
from conformance.case import NETWORKS
from conformance.report.architecture import Architecture
from conformance.report.diagram import Box, stacked, u_shaped
from conformance.report.html import Page, write_html
from conformance.report.run import read_run

if TYPE_CHECKING:
    from pathlib import Path

RESNET = "down_blocks.0.resnets.0"


def diagram(network: str) -> Any:
    """Draw one network."""
    return u_shaped() if network == "unet" else stacked(network)


def probes(**ratios: object) -> list[dict[str, Any]]:
    """Build one record for each ratio, of layers of one resnet."""
    return [{"name": f"{RESNET}.{name}", "ratio": ratio} for name, ratio in ratios.items()]


def view(out: Path) -> Any:
    """Show a run to the section and return what its template gets."""
    section = Architecture()
    return section.view(read_run(out, [section]))


def looks(found: Any, network: str) -> dict[str, Any]:
    """Return how each block of a network is shown, by its name."""
    drawn = found["networks"][NETWORKS.index(network)]
    return {box.path: look for box, look in drawn["boxes"]}


def inside(inner: Box, outer: Box) -> bool:
    """Say whether one box lies within another."""
    return (
        outer.x <= inner.x
        and inner.x + inner.width <= outer.x + outer.width + 0.5
        and outer.y <= inner.y
        and inner.y + inner.height <= outer.y + outer.height
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_every_block_is_drawn_once(network: str) -> None:
    """All named blocks are there, parts inside their block, none over another."""
    drawn = diagram(network)
    paths = [box.path for box in drawn.boxes]
    assert len(paths) == len(set(paths))
    assert spec.block_names(network) <= set(paths)
    outer = [box for box in drawn.boxes if not box.inner]
    for box in drawn.boxes:
        assert inside(box, Box("", "", 0, 0, drawn.width, drawn.height))
        around = [one for one in outer if box.path.startswith(f"{one.path}.")]
        assert [inside(box, one) for one in around] == [True] * box.inner
    for i, one in enumerate(outer):
        for other in outer[i + 1 :]:
            beside = one.x + one.width <= other.x or other.x + other.width <= one.x
            assert beside or one.y + one.height <= other.y or other.y + other.height <= one.y


def test_the_unet_is_a_u() -> None:
    """Each level up stands beside the level down whose skips it reads; the middle lies deepest."""
    drawn = u_shaped()
    at = {box.path: box for box in drawn.boxes}
    for level in range(4):
        assert at[f"down_blocks.{level}"].y == at[f"up_blocks.{3 - level}"].y
        assert at[f"down_blocks.{level}"].x < at[f"up_blocks.{level}"].x
    assert at["mid_block"].y > at["down_blocks.3"].y
    assert len(drawn.skips) == 5


def test_layers_that_no_variant_has(made_up) -> None:
    """What is not there cannot be measured: its title names the sizes that lack it."""
    lines = [
        made_up.line(component="text_encoder", variant=name, probes=[{"name": "x", "ratio": 1.0}])
        for name in ("tiny", "tiny-lowvar", "<unknown>")
    ]
    found = looks(view(made_up.write(lines)), "text_encoder")
    layers = "text_model.encoder.layers"
    assert found[f"{layers}.2"].title == f"{layers}.2: not measured"
    assert found[f"{layers}.3"].title == f"{layers}.3: not in tiny"


def test_own_errors_come_first(made_up) -> None:
    """A block shows what splice mode measured, and only without it what trace mode did."""
    lines = [
        made_up.line("fail", probes=probes(norm1=50.0, conv1=60.0)),
        made_up.line(mode="splice", probes=probes(norm1=1.5, conv1=3.0)),
        made_up.line(
            "fail", component="vae_decoder", probes=[{"name": "post_quant_conv", "ratio": "nan"}]
        ),
    ]
    found = view(made_up.write(lines))
    resnet = looks(found, "unet")[RESNET]
    assert (resnet.ratio, resnet.state, resnet.own) == (3.0, "warn", True)
    assert resnet.title == f"{RESNET}: worst own error 3, over half the limit, at {RESNET}.conv1"
    assert looks(found, "unet")["down_blocks.0"].ratio == 3.0
    assert looks(found, "unet")["conv_in"].state == "none"
    broken = looks(found, "vae_decoder")["post_quant_conv"]
    assert (broken.state, broken.own) == ("fail", False)
    assert "inherited ones included" in broken.title
    assert found["networks"][NETWORKS.index("unet")]["whole"].ratio == 3.0


def test_the_worst_case_is_named(made_up) -> None:
    """Over all cases the worst ratio of a layer stands in the panel, with the case to open."""
    lines = [
        made_up.line(scenario="base", probes=probes(norm1=1.0, conv1=2.0)),
        made_up.line("fail", scenario="quiet", probes=probes(norm1="inf", conv1=1.0)),
        made_up.line("fail", scenario="loud", probes=probes(norm1=7.0)),
    ]
    data = view(made_up.write(lines))["data"]
    first, second = (made_up.line(scenario=name)["case"] for name in ("base", "quiet"))
    rows = {row[0]: row[3:] for row in data["components"]["unet"]}
    ratio, case = rows[f"{RESNET}.norm1"]
    assert (ratio, data["cases"][case]) == (float("inf"), second)
    ratio, case = rows[f"{RESNET}.conv1"]
    assert (ratio, data["cases"][case]) == (2.0, first)


def test_boxes_around(made_up) -> None:
    """Schedulers, pipelines and blocks alone have boxes, the ones not run without a ratio."""
    lines = [
        made_up.line(component="scheduler/ddim", mode="", probes=[{"name": "betas", "ratio": 0.5}]),
        made_up.line(component="block/time_embedding", probes=[{"name": "linear_1", "ratio": 1.0}]),
    ]
    found = view(made_up.write(lines))
    states = {look.name: look.state for look in found["schedulers"]}
    assert (states["ddim"], states["ddpm"]) == ("pass", "none")
    assert [look.name for look in found["others"]] == ["block/time_embedding"]
    assert found["tokenizer"].state == "none"


def test_links_and_text(made_up) -> None:
    """Each block is a link to its filter, and says its ratio in text and words."""
    name = "<script>alert(1)</script>"
    lines = [
        made_up.line("fail", probes=probes(norm1=48.0)),
        made_up.line(component=name, probes=[{"name": name, "ratio": 1.0}]),
    ]
    page = write_html(Page(made_up.write(lines))).read_text("utf-8")
    link = re.search(rf'<a class="block[^>]*data-path="{RESNET}"[^>]*>', page)
    assert link is not None
    assert f"#component=unet&amp;probe={RESNET}" in link.group()
    assert "beyond the limit" in link.group()
    assert ">48 ▲</text>" in page
    assert name not in page
    assert view(made_up.write([made_up.line("skip")])) is None
