"""Where the blocks of Stable Diffusion v1 are drawn, from the names of its probes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from conformance import spec
from conformance.report.layers import part_of

WIDTH = 160
"""Of one block; a network is one of them wide, the UNet two and a gap for its skips."""

_GAP, _SPACE = 50, 10
_SINGLE, _SEVERAL = 24, 54
"""Heights of a block without parts and with some."""

_INSET, _PART_TOP, _PART_HEIGHT, _PART_GAP = 6, 24, 24, 3
_SHORT = {"resnets": "R", "attentions": "A", "downsamplers": "↓", "upsamplers": "↑"}


@dataclass(frozen=True)
class Box:
    """A block, or a part of one, which is drawn inside it.

    Attributes:
        path: Its canonical name.
        label: What is written on it.
        x: Left edge, like all others in pixels from the top left.
        y: Upper edge.
        width: Its width.
        height: Its height.
        inner: Whether it is a part.
    """

    path: str
    label: str
    x: float
    y: float
    width: float
    height: float
    inner: bool = False


@dataclass
class Diagram:
    """One network.

    Attributes:
        component: Its name.
        boxes: Its blocks in the order of execution, each followed by its parts.
        arrows: SVG paths of what flows from block to block.
        skips: SVG paths of the UNet's skip connections.
        width: Of the whole.
        height: Of the whole.
    """

    component: str
    boxes: list[Box] = field(default_factory=list)
    arrows: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)
    width: float = WIDTH
    height: float = 0.0

    def put(self, path: str, x: float, y: float) -> Box:
        """Draw a block and its parts, and return it."""
        inside = parts(self.component, path)
        box = Box(path, _label(path), x, y, WIDTH, _SEVERAL if inside else _SINGLE)
        self.boxes.append(box)
        room = WIDTH - 2 * _INSET + _PART_GAP
        width = round(room / max(1, len(inside)) - _PART_GAP, 1)
        for i, part in enumerate(inside):
            left = round(x + _INSET + i * (width + _PART_GAP), 1)
            self.boxes.append(
                Box(part, _short(part), left, y + _PART_TOP, width, _PART_HEIGHT, inner=True)
            )
        self.height = max(self.height, box.y + box.height)
        return box

    def stack(self, paths: Iterable[str], x: float, y: float) -> list[Box]:
        """Draw blocks below one another, joined by arrows."""
        placed: list[Box] = []
        for path in paths:
            placed.append(self.put(path, x, y))
            y += placed[-1].height + _SPACE
        middle = x + WIDTH / 2
        self.arrows += [f"M{middle:g} {box.y - _SPACE:g}V{box.y - 1:g}" for box in placed[1:]]
        return placed


def parts(component: str, path: str) -> list[str]:
    """Return the named blocks inside a block, in the order of execution."""
    inside = spec.block_names(component)
    return [n for n in spec.execution_order(component) if n in inside and n.startswith(f"{path}.")]


def blocks(component: str) -> list[str]:
    """Return the outermost blocks of a network in the order of execution."""
    return list(dict.fromkeys(part_of(component, n) for n in spec.execution_order(component)))


def stacked(component: str) -> Diagram:
    """Draw a network whose blocks follow one another."""
    diagram = Diagram(component)
    diagram.stack(blocks(component), 0, 0)
    return diagram


def u_shaped() -> Diagram:
    """Draw the UNet: down on the left, up on the right, skips across."""
    diagram = Diagram("unet", width=2 * WIDTH + _GAP)
    right = WIDTH + _GAP
    names = blocks("unet")
    down = [name for name in names if name.startswith("down_blocks.")]
    up = [name for name in names if name.startswith("up_blocks.")]
    diagram.stack(["time_proj", "time_embedding"], 0, 0)
    top = 2 * (_SINGLE + _SPACE) + _SPACE
    entry, *left = diagram.stack(["conv_in", *down], 0, top)
    mid = diagram.put("mid_block", (right) / 2, left[-1].y + left[-1].height + 2 * _SPACE)
    levels = [box.y for box in left]
    climbing = [diagram.put(name, right, y) for name, y in zip(up, levels[::-1], strict=True)]
    outer = [
        diagram.put(n, right, top - i * (_SINGLE + _SPACE))
        for i, n in enumerate(("conv_norm_out", "conv_out"))
    ]
    centre = right + WIDTH / 2
    diagram.arrows += [
        f"M{centre:g} {box.y + box.height + _SPACE:g}V{box.y + box.height + 1:g}"
        for box in [*climbing[1:], *outer]
    ]
    deep = mid.y + mid.height / 2
    below = left[-1].y + left[-1].height
    diagram.arrows += [
        f"M{WIDTH / 4:g} {below:g}V{deep:g}H{mid.x - 1:g}",
        f"M{mid.x + WIDTH:g} {deep:g}H{right + 3 * WIDTH / 4:g}V{below + 1:g}",
    ]
    across = [box.y + box.height / 2 for box in left]
    diagram.skips = [f"M{WIDTH} {y:g}H{right}" for y in across]
    diagram.skips.append(
        f"M{WIDTH} {entry.y + entry.height / 2:g}H{WIDTH + _GAP / 2:g}V{across[0]:g}"
    )
    return diagram


def _label(path: str) -> str:
    """Shorten a block's name to what tells it from others of its network."""
    words = path.split(".")
    return ".".join(words[-2:]) if words[-1].isdigit() else words[-1]


def _short(path: str) -> str:
    kind, _, number = path.rpartition(".")
    letter = _SHORT.get(kind.rpartition(".")[2], "")
    return f"{letter}{number}" if letter in "RA" else letter
