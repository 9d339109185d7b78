"""Levels: how far a port gets, what keeps it from the next, and how deep it could be seen."""

from __future__ import annotations

from typing import Any

import pytest

from conformance import summary
from conformance.case import COMPONENTS
from conformance.levels import LADDER, NAMES, depth, level, next_level
from conformance.training import TRAININGS

DDIM, PICTURE = "scheduler/ddim", "pipeline/txt2img"
BLOCK = "block/time_embedding"
WRONG_NUMBER = {"name": "conv_in", "verdict": "fail", "note": "worst element"}
WRONG_SHAPE = {"name": "conv_in", "verdict": "fail", "note": "shape (1,), expected (2,)"}
WRONG_TABLE = {"name": "betas", "verdict": "fail", "note": "entry 3"}


def line(
    verdict: str = "pass",
    component: str = "unet",
    *probes: dict[str, Any],
    name: str = "base",
    mode: str = "trace",
    message: str = "",
    dtype: str = "float32",
    backend: str = "sdpa",
) -> dict[str, Any]:
    """Build a case line."""
    return {
        "case": f"{component}/tiny/{name}[{dtype}-cpu-{backend}-{mode}]",
        "component": component,
        "dtype": dtype,
        "backend": backend,
        "mode": mode,
        "verdict": verdict,
        "message": message,
        "probes": list(probes),
    }


def wrong(component: str = "unet", *probes: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Build a line that fails."""
    return line("fail", component, *(probes or [WRONG_NUMBER]), **facts)


LEVELS = {
    "pass": ([line(), line("warn")], 1),
    "with-skip": ([line(), line("skip")], 1),
    "wrong-number": ([line(), wrong()], 0),
    "known-failure": ([line(), line("xfail", "unet", WRONG_NUMBER)], 0),
    "unexpected-pass": ([line("xpass")], 1),
    "wrong-shape": ([wrong("unet", WRONG_NUMBER, WRONG_SHAPE)], None),
    "known-wrong-shape": ([line("xfail", "unet", WRONG_SHAPE)], None),
    "wrong-ids": ([line(), wrong("tokenizer")], None),
    "right-ids": ([line(), line(component="tokenizer")], 1),
    "no-tokenizer": ([line("skip", "tokenizer"), wrong()], 0),
    "error": ([line(), line("error")], None),
    "skip": ([line("skip")], None),
    "nothing": ([], None),
    "block": ([line(component=BLOCK)], 1),
    "wrong-block": ([line(), wrong(BLOCK)], 0),
    "samplers": ([line(), line(component=DDIM)], 2),
    "samplers-without-components": ([wrong(), line(component=DDIM)], 0),
    "wrong-sampler": ([line(), wrong(DDIM)], 1),
    "wrong-table": ([line(), wrong(DDIM, WRONG_TABLE)], None),
    "samplers-alone": ([line(component=DDIM)], 2),
    "trajectories": ([line(), line(component=DDIM), line(component=PICTURE)], 3),
    "no-sampler": ([line(), line(component=PICTURE)], 3),
    "wrong-in-half": ([line(), wrong(dtype="bfloat16")], 1),
    "wrong-in-slices": ([line(), wrong(backend="sliced")], 1),
    "unstable": ([line(), wrong(mode="repeat")], 1),
    "wrong-gradient": ([line(), wrong("training")], 1),
    "integers": ([line(component="tokenizer", dtype="int64", backend="", mode="")], 1),
    "wrong-trajectory": ([line(), line(component=DDIM), wrong(PICTURE)], 2),
}


@pytest.mark.parametrize(("lines", "expected"), LEVELS.values(), ids=LEVELS)
def test_level(lines: list[dict[str, Any]], expected: int | None) -> None:
    """A level is reached where it was judged and nothing up to it is wrong, known or not.

    Level 0 is every name, shape, dtype, token id, timestep and table.
    """
    assert level(lines) == expected


THREE = ("unet", DDIM, PICTURE)
NOTHING = "nothing was traced in float32 or float64 by the port's own backend"
NEXT = {
    "no-scheduler": ([line()], ("unet",), 2, "it offers no scheduler"),
    "not-run": ([line(), line(component=DDIM)], THREE, 3, "its pipelines were not run"),
    "skipped": (
        [line(), line("skip", DDIM, message="no DDIM today")],
        THREE,
        2,
        "its schedulers were skipped: no DDIM today",
    ),
    "component": ([line(), wrong(name="t0")], THREE, 1,
                  "unet fails in 1 of 2 cases, such as unet/tiny/t0"),
    "cases-are-counted-once": (
        [line(mode="splice"), wrong(), wrong(name="t0"), wrong(name="t0", mode="splice")],
        THREE,
        1,
        "unet fails in 2 of 2 cases, such as unet/tiny/base",
    ),
    "two": ([wrong(), wrong("vae_decoder"), line("pass", "vae_decoder", name="quiet")], THREE, 1,
            "unet fails in 1 of 1 case, vae_decoder fails in 1 of 2 cases, such as unet/tiny/base"),
    "many": ([wrong(component) for component in LADDER[0].whole[1:]], THREE, 1,
             ", ".join(f"{component} fails in 1 of 1 case" for component in LADDER[0].whole[1:4])
             + ", others too, such as text_encoder/tiny/base"),
    "known": ([line("xfail", "unet", WRONG_NUMBER)], THREE, 1,
              "unet fails in 1 of 1 case, as expected, such as unet/tiny/base"),
    "partly-known": ([line("xfail", "unet", WRONG_NUMBER), wrong(name="t0")], THREE, 1,
                     "unet fails in 2 of 2 cases, such as unet/tiny/base"),
    "sampler": ([line(), wrong(DDIM)], THREE, 2,
                "scheduler/ddim fails in 1 of 1 case, such as scheduler/ddim/tiny/base"),
    "sampler-alone": ([wrong(DDIM)], (DDIM,), 2,
                      "scheduler/ddim fails in 1 of 1 case, such as scheduler/ddim/tiny/base"),
    "failure-before-absence": (
        [line(), wrong(PICTURE)],
        ("unet", PICTURE),
        3,
        "pipeline/txt2img fails in 1 of 1 case, such as pipeline/txt2img/tiny/base",
    ),
    "training": ([line(component="training")], ("training",), 0,
                 "training counts for no level: its stamp says it"),
    "training-and-more": ([line(component="training"), line(backend="plain")], THREE, 0, NOTHING),
    "other-arithmetic": ([line(dtype="bfloat16")], THREE, 0, NOTHING),
    "shape": (
        [line(), wrong("unet", WRONG_SHAPE, name="t0")],
        THREE,
        0,
        f"it is broken in 1 of 2 cases, such as unet/tiny/t0: conv_in has {WRONG_SHAPE['note']}",
    ),
    "table": ([wrong(DDIM, WRONG_TABLE)], THREE, 0,
              "it is broken in 1 of 1 case, such as scheduler/ddim/tiny/base: betas is wrong"),
    "ids": ([wrong("tokenizer")], THREE, 0,
            "it is broken in 1 of 1 case, such as tokenizer/tiny/base: the token ids are wrong"),
    "error": ([line("error", message="the port raised ValueError")], THREE, 0,
              "it is broken in 1 of 1 case, such as unet/tiny/base: the port raised ValueError"),
    "nothing": ([], THREE, 0, NOTHING),
    "skipped-in-part": ([line(dtype="bfloat16"), line("skip")], THREE, 0, NOTHING),
    "all-skipped": (
        [
            line("skip", message="p does not offer arithmetic float64", name=name)
            for name in ("base", "t0")
        ]
        + [line("skip", message="no values of unet/tiny/base: --traces DIR")],
        THREE,
        0,
        ("nothing was measured, every item was skipped: p does not offer arithmetic float64 "
        "(2 items); no values of CASE: --traces DIR (1 item)"),
    ),
    "many-reasons": (
        [line("skip", message=f"reason {i}") for i in (1, 2, 3, 4, 5)],
        THREE,
        0,
        ("nothing was measured, every item was skipped: reason 1 (1 item); reason 2 (1 item); "
        "reason 3 (1 item); 2 other reasons"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "offered", "rung", "because"), NEXT.values(), ids=NEXT)
def test_next_level(lines: list[Any], offered: tuple[str, ...], rung: int, because: str) -> None:
    """What keeps a port from the next level is said in one sentence: failures before absence."""
    assert next_level(lines, offered) == {"level": rung, "because": because}


def diverging(name: str, probe: str, ratio: float, **facts: Any) -> dict[str, Any]:
    """Build a line that fails, with its first divergence."""
    own = wrong(name=name, **facts)
    probes = [probe_ | {"kind": "probe"} for probe_ in own["probes"]]
    first = {"case": own["case"], "probe": probe, "ratio": ratio}
    return own | {"first_divergence": first, "probes": probes}


@pytest.mark.parametrize("verdict", ["fail", "xfail"])
def test_the_case_that_is_named_is_that_of_the_first_divergence(verdict: str) -> None:
    """Level and first divergence name one case, whichever was run first."""
    lines = [
        diverging("base", "conv_in", 5.0) | {"verdict": verdict},
        diverging("t0", "conv_out", 1e6),
        diverging("quiet", "conv_in", 90.0),
    ]
    named = summary.earliest(lines)
    assert named is not None
    assert named["case"].startswith("unet/tiny/quiet[")
    told = next_level(lines, THREE)
    text = "unet fails in 3 of 3 cases, such as unet/tiny/quiet"
    assert told == {"level": 1, "because": text}


def test_nothing_is_above_the_last_level() -> None:
    """A port that reaches level 3 lacks nothing."""
    assert next_level([line(component=name) for name in THREE], THREE) is None


def test_every_component_has_one_level() -> None:
    """The ladder holds whatever can be judged today, blocks to come included, each once."""
    untrained = [component for component in COMPONENTS if component not in TRAININGS]
    for component in (*untrained, BLOCK, "scheduler/euler", "pipeline/inpaint"):
        assert sum(rung.has(component) for rung in LADDER) == 1, component
    assert NAMES == ("contract", "components", "samplers", "trajectories")
    assert [rung.level for rung in LADDER] == [1, 2, 3]


@pytest.mark.parametrize(
    ("kinds", "mode", "expected"),
    [
        (["probe", "output"], "trace", "trace"),
        (["probe", "output"], "splice", "splice"),
        (["output"], "trace", "outputs"),
        ([], "trace", None),
        (["probe", "output"], "repeat", None),
    ],
    ids=["probes", "spliced", "outputs", "nothing", "against-itself"],
)
def test_depth(kinds: list[str], mode: str, expected: str | None) -> None:
    """The depth says whether probes were judged, and alone, or outputs only."""
    lines = [line("skip"), line("pass", "unet", *({"kind": kind} for kind in kinds), mode=mode)]
    assert depth(lines) == expected
