"""Stamps: what stands beside the ladder of levels, drawn from the case lines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from conformance.case import NETWORKS
from conformance.execution import LIMITED, MEMORY, STABILITY
from conformance.golden import TRACE
from conformance.levels import FAILING
from conformance.memory.cases import PATHS, configurations
from conformance.port import Hello
from conformance.tolerance import EVERY_ARITHMETIC
from conformance.training import TRAININGS
from conformance.witness import is_witness, stamp

PRECISION, TRAINING, REAL_WEIGHTS = "precision", "training", "real-weights"

Line = Mapping[str, Any]

_WRONG = (*FAILING, "error")
_SHOWN = 3


def stamps(lines: Sequence[Line], hello: Hello) -> list[str]:
    """Return the stamps that a run gives.

    Args:
        lines: Case lines.
        hello: What the port offers.

    Returns:
        Their names: `precision:bfloat16` and the like, `training`, `memory`, `real-weights`.
    """
    given = [name for name, _, gaps in _asked(lines, hello) if not gaps]
    return [*given, *([REAL_WEIGHTS] if stamp(lines) else [])]


def stamps_missing(lines: Sequence[Line], hello: Hello) -> dict[str, str]:
    """Say what a run lacks for the stamps that it judged a part of.

    Args:
        lines: Case lines.
        hello: What the port offers.

    Returns:
        By stamp, what failed or was not judged.
    """
    return {name: "; ".join(gaps) for name, begun, gaps in _asked(lines, hello) if begun and gaps}


def _asked(lines: Sequence[Line], hello: Hello) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield every stamp that the port could earn: whether a part was judged, and what it lacks."""
    known = [line for line in lines if line["verdict"] != "skip" and not is_witness(line)]
    judged = [line for line in known if line["mode"] != MEMORY]
    others = [line for line in judged if line["component"] not in TRAININGS]
    networks = [name for name in hello.components if name in NETWORKS]
    if networks:
        for arithmetic in EVERY_ARITHMETIC:
            own = [line for line in others if line["dtype"] == arithmetic]
            begun = any(line["component"] in networks for line in own)
            yield f"{PRECISION}:{arithmetic}", begun, _gaps(own, networks, hello)
    trained = [line for line in judged if line["component"] in TRAININGS]
    if offered := [name for name in hello.components if name in TRAININGS]:
        lacking = _without(offered, {line["component"] for line in trained})
        yield TRAINING, bool(trained), [*_failed(trained), *_told(lacking, "not judged")]
    held = [line for line in known if line["mode"] == MEMORY]
    if networks:
        yield MEMORY, bool(held), [*_failed(held), *_unheld(held, networks, hello)]


def _unheld(held: Iterable[Line], networks: Sequence[str], hello: Hello) -> list[str]:
    """Say which networks were not judged in mode `memory`, by each attention that is offered."""
    judged = {(line["component"], line["backend"]) for line in held}
    known = {(case.component, run.backend) for case, run in configurations()}
    ways = [name for name in PATHS if name in hello.backends]
    lacking = {way: [name for name in networks if (name, way) in known - judged] for way in ways}
    return [gap for way, names in lacking.items() for gap in _told(names, f"not judged by {way}")]


def _gaps(judged: Sequence[Line], networks: Sequence[str], hello: Hello) -> list[str]:
    """Say what the lines of an arithmetic lack for its stamp.

    In it every network that the port offers was traced; every backend that it offers (`packed` and
    `compile` excepted) and every stability mode was judged once at least; and nothing failed.
    """
    traced = {line["component"] for line in judged if line["mode"] == TRACE}
    backends = [name for name in hello.backends if name not in LIMITED]
    return [
        *_failed(judged),
        *_told(_without(networks, traced), "not judged in trace mode"),
        *_told(_without(backends, {line["backend"] for line in judged}), "not judged", "backend"),
        *_told(_without(STABILITY, {line["mode"] for line in judged}), "not judged", "mode"),
    ]


def _failed(judged: Iterable[Line]) -> list[str]:
    wrong = dict.fromkeys(line["component"] for line in judged if line["verdict"] in _WRONG)
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return [f"{', '.join(list(wrong)[:_SHOWN])}{more} failed"] if wrong else []


def _without(names: Iterable[str], known: Collection[str]) -> list[str]:
    return [name for name in names if name not in known]


def _told(names: Sequence[str], what: str, kind: str = "") -> list[str]:
    """Write `modes repeat, fresh were not judged`; nothing where there is no name."""
    one = len(names) == 1
    lead = f"{kind}{'' if one else 's'} " if kind else ""
    return [f"{lead}{', '.join(names)} {'was' if one else 'were'} {what}"] if names else []
