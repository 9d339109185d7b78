"""What can be judged of one port, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.case import NETWORKS
from conformance.choice import default_modes
from conformance.execution import MEMORY
from conformance.levels import LADDER, Rung
from conformance.port import Hello
from conformance.stamps import PRECISION, TRAINING
from conformance.tolerance import EVERY_ARITHMETIC
from conformance.training import TRAININGS


@dataclass(frozen=True)
class Reach:
    """A level, and what a port offers of it.

    Attributes:
        level: Its number.
        name: Its name.
        offered: Components of it.
        lacking: What a complete port offers beside them.
        because: Why nothing of it can be judged; empty where something can.
    """

    level: int
    name: str
    offered: tuple[str, ...]
    lacking: tuple[str, ...]
    because: str


@dataclass(frozen=True)
class Prospect:
    """What can be judged of a port.

    Attributes:
        name: The port's.
        version: The port's.
        highest: The level that it can reach.
        reaches: The levels from 1.
        modes: What `run` judges it in by default.
        stamps: Those that it can earn here.
        facts: What else it says of itself, in words.
    """

    name: str
    version: str
    highest: int
    reaches: list[Reach]
    modes: str
    stamps: list[str]
    facts: dict[str, str]


def prospect(hello: Hello, *, torch: bool) -> Prospect:
    """Say what can be judged of a port.

    Args:
        hello: What it offers.
        torch: Whether torch is installed: mode `memory` needs it.
    """
    reaches = [_reach(rung, hello) for rung in LADDER]
    looks = [what for what in ("probes", "replace") if getattr(hello, what)]
    return Prospect(
        hello.name,
        hello.version,
        max((reach.level for reach in reaches if reach.offered), default=0),
        reaches,
        default_modes(hello),
        _stamps(hello, torch=torch),
        {
            "arithmetics": ", ".join(hello.arithmetics),
            "devices": ", ".join(hello.devices),
            "backends": ", ".join(hello.backends),
            "variants": ", ".join(hello.variants),
            "shows": ", ".join(looks) or "outputs alone",
        },
    )


def _reach(rung: Rung, hello: Hello) -> Reach:
    offered = tuple(name for name in hello.components if rung.has(name))
    lacking = tuple(name for name in rung.whole if name not in offered)
    because = "" if offered else f"it offers no {rung.one}"
    return Reach(rung.level, rung.name, offered, lacking, because)


def _stamps(hello: Hello, *, torch: bool) -> list[str]:
    """Return the stamps that are drawn from what a port offers: `conformance.stamps` gives them."""
    networks = any(name in NETWORKS for name in hello.components)
    own = [a for a in EVERY_ARITHMETIC if networks and a in hello.arithmetics]
    trained = any(name in TRAININGS for name in hello.components)
    return [
        *(f"{PRECISION}:{arithmetic}" for arithmetic in own),
        *([TRAINING] if trained else []),
        *([MEMORY] if networks and torch else []),
    ]
