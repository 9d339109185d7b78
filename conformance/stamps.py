"""Stamps: what stands beside the ladder of levels, drawn from the case lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from conformance.case import NETWORKS
from conformance.execution import COMPILE, STABILITY
from conformance.golden import TRACE
from conformance.levels import FAILING
from conformance.port import Hello
from conformance.tolerance import EVERY_ARITHMETIC
from conformance.training import TRAININGS
from conformance.witness import is_witness, stamp

PRECISION, TRAINING, REAL_WEIGHTS = "precision", "training", "real-weights"

Line = Mapping[str, Any]

_WRONG = (*FAILING, "error")


def stamps(lines: Sequence[Line], hello: Hello) -> list[str]:
    """Return the stamps that a run gives.

    Args:
        lines: Case lines.
        hello: What the port offers.

    Returns:
        Their names: `precision:bfloat16` and the like, `training`, `real-weights`.
    """
    return [
        *_of_arithmetics([line for line in lines if not is_witness(line)], hello),
        *([TRAINING] if _is_trained(lines, hello) else []),
        *([REAL_WEIGHTS] if stamp(lines) else []),
    ]


def _of_arithmetics(lines: Sequence[Line], hello: Hello) -> Iterator[str]:
    """Yield the stamps of arithmetics.

    In it every network that the port offers was traced; every backend but `compile` that it offers
    was judged once at least, and so was every stability mode; and nothing failed.
    """
    networks = {name for name in hello.components if name in NETWORKS}
    backends = {name for name in hello.backends if name != COMPILE}
    for arithmetic in EVERY_ARITHMETIC:
        own = [line for line in lines if line["dtype"] == arithmetic]
        judged = _judged(line for line in own if line["component"] not in TRAININGS)
        if (
            networks
            and not any(line["verdict"] in _WRONG for line in judged)
            and networks <= {line["component"] for line in judged if line["mode"] == TRACE}
            and backends <= {line["backend"] for line in judged}
            and set(STABILITY) <= {line["mode"] for line in judged}
        ):
            yield f"{PRECISION}:{arithmetic}"


def _is_trained(lines: Iterable[Line], hello: Hello) -> bool:
    """Say whether every training component that the port offers was judged, and none failed."""
    offered = {name for name in hello.components if name in TRAININGS}
    judged = _judged(line for line in lines if line["component"] in TRAININGS)
    right = not any(line["verdict"] in _WRONG for line in judged)
    return bool(offered) and right and offered <= {line["component"] for line in judged}


def _judged(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line["verdict"] != "skip"]
