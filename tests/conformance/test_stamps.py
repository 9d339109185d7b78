"""Stamps: what a run has to hold for one, and what takes it away."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.case import NETWORKS
from conformance.execution import STABILITY
from conformance.port import Hello
from conformance.stamps import stamps, stamps_missing

BACKENDS = ("sdpa", "plain", "compile")
PORT = Hello("mine", "1", (*NETWORKS, "training", "training/vae"), backends=BACKENDS)


def line(component: str, mode: str = "trace", backend: str = "sdpa", **facts: Any) -> Any:
    """Build a case line."""
    case = {"case": f"{component}/tiny/base[x]", "variant": "tiny", "scenario": "base"}
    own = {"component": component, "mode": mode, "backend": backend, "dtype": "bfloat16"}
    return {**case, **own, "verdict": "pass", **facts}


WHOLE = [
    *(line(component) for component in NETWORKS),
    line("vae_decoder", "splice", "plain"),
    *(line("text_encoder", mode) for mode in STABILITY),
]
TRAINED = [line("training", dtype="float32"), line("training/vae", dtype="float64")]


def test_an_arithmetic() -> None:
    """Every network traced, every backend and stability mode seen once; `compile` may be absent."""
    assert stamps(WHOLE, PORT) == ["precision:bfloat16"]
    also = [{**own, "dtype": "tf32"} for own in WHOLE]
    assert stamps([*also, *WHOLE], PORT) == ["precision:bfloat16", "precision:tf32"]


@pytest.mark.parametrize("index", range(len(WHOLE)))
def test_a_gap(index: int) -> None:
    """No line of those is superfluous, and a skip is a gap."""
    gap = [own for i, own in enumerate(WHOLE) if i != index]
    assert stamps(gap, PORT) == []
    assert stamps([*gap, {**WHOLE[index], "verdict": "skip"}], PORT) == []


@pytest.mark.parametrize("verdict", ["fail", "xfail", "error"])
def test_a_failure(verdict: str) -> None:
    """What fails in an arithmetic takes its stamp away; in another, or in training, it does not."""
    extra = line("scheduler/ddim", "", "", verdict=verdict)
    assert stamps([*WHOLE, extra], PORT) == []
    for harmless in (line("training", verdict=verdict), {**extra, "dtype": "float16"}):
        assert stamps([*WHOLE, harmless], PORT) == ["precision:bfloat16"]


def test_what_is_missing() -> None:
    """Of a stamp that was begun, what failed and what was not judged is told; of others nothing."""
    assert stamps_missing(WHOLE, PORT) == {}
    few = [*WHOLE[1:-2], line("vae_decoder", verdict="fail"), line("training", dtype="float32")]
    assert stamps_missing(few, PORT) == {
        "precision:bfloat16": f"vae_decoder failed; {NETWORKS[0]} was not judged in trace mode; "
        f"modes {', '.join(STABILITY[-2:])} were not judged",
        "training": "training/vae was not judged",
    }
    own = [row for row in WHOLE if row["backend"] == "sdpa"]
    told = {"precision:bfloat16": "backend plain was not judged"}
    assert stamps_missing(own, PORT) == told
    assert stamps_missing([line("scheduler/ddim", "", "")], PORT) == {}


def held(component: str, backend: str, **facts: Any) -> Any:
    """Build a case line of mode memory."""
    return line(component, "memory", backend, dtype="float16", **facts)


HELD = [
    held(component, backend)
    for component in NETWORKS
    for backend in ("sdpa", "plain", "sliced")
    if backend != "sliced" or component == "unet"
]


def test_memory() -> None:
    """Every network by each attention that is offered, and no budget exceeded."""
    offers = Hello("mine", "1", NETWORKS, backends=("sdpa", "plain", "sliced", "math"))
    assert stamps(HELD, offers) == ["memory"]
    assert stamps_missing(HELD[:-1], offers) == {"memory": "vae_decoder was not judged by plain"}
    assert stamps_missing([*HELD, held("unet", "tiled", verdict="fail")], offers) == {
        "memory": "unet failed"
    }
    assert stamps_missing([{**own, "verdict": "skip"} for own in HELD], offers) == {}


def test_memory_judges_no_precision() -> None:
    """Nor training: what is held says nothing of what is computed."""
    over = line("unet", "memory", verdict="fail")
    assert "precision:bfloat16" in stamps([*WHOLE, over], PORT)
    gap = [own for own in WHOLE if own["backend"] != "plain"]
    assert "precision:bfloat16" not in stamps([*gap, line("unet", "memory", "plain")], PORT)
    heavy = line("training", "memory", verdict="fail")
    assert "training" in stamps([*TRAINED, heavy], PORT)


def test_a_port_without_networks() -> None:
    """What offers no network has nothing to be stamped."""
    port = Hello("mine", "1", ("scheduler/ddim",))
    assert stamps([line("scheduler/ddim", "", "")], port) == []


def test_training() -> None:
    """Every training component that is offered was judged, and nothing failed."""
    assert stamps(TRAINED, PORT) == ["training"]
    assert stamps(TRAINED[:1], PORT) == []
    assert stamps([TRAINED[0], {**TRAINED[1], "verdict": "fail"}], PORT) == []
    assert stamps([], Hello("mine", "1", NETWORKS)) == []
