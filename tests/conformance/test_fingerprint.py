"""Fingerprints: what a wrong run leaves, how alike two are, and which mutant's is the nearest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import fingerprint
from conformance.fingerprint import (
    Known,
    Mark,
    Marks,
    kind_of_probe,
    library,
    likeness,
    marks_of,
    rank,
    write_library,
)

if TYPE_CHECKING:
    from pathlib import Path

CONV = "down_blocks.{}.resnets.0.conv1".format
CONV_KIND = kind_of_probe(CONV(0))


def line(*wrong: tuple[str, float], **changes: object) -> dict[str, Any]:
    """Build a case line; probes that are right stand before those that are wrong."""
    right = {"name": "conv_in", "verdict": "pass", "ratio": 1.0}
    warned = {"name": "time_proj", "verdict": "warn", "ratio": 3.0}
    failed = [{"name": name, "verdict": "fail", "ratio": ratio} for name, ratio in wrong]
    made = {
        "case": "unet/tiny/base[float32-cpu-sdpa-splice]",
        "component": "unet",
        "variant": "tiny",
        "scenario": "base",
        "mode": "splice",
        "dtype": "float32",
        "verdict": "fail" if wrong else "pass",
        "message": "",
        "probes": [right, warned, *failed],
    }
    return made | changes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("conv_in", "conv_in"),
        ("down_blocks.0.resnets.1.norm2", "down_blocks.*.resnets.*.norm*"),
        ("text_model.encoder.layers.11.mlp.fc2.input", "text_model.encoder.layers.*.mlp.fc*.input"),
        ("samples#19", "samples#*"),
    ],
)
def test_kind_of_probe(name: str, kind: str) -> None:
    """All layers of one kind share a name: the one without numbers."""
    assert kind_of_probe(name) == kind


def test_splice_marks_every_wrong_probe() -> None:
    """In splice mode all wrong probes count, by kind, with the worst ratio's logarithm."""
    wrong = [(CONV(0), 100.0), (CONV(1), 1e4), ("conv_out", 20.0)]
    assert marks_of([line(*wrong)], "unet") == {
        "unit/base/splice": {
            CONV_KIND: (2, 4.0, (CONV(0), CONV(1))),
            "conv_out": (1, 1.3, ("conv_out",)),
        }
    }


@pytest.mark.parametrize("mode", ["trace", ""])
def test_trace_marks_the_first_wrong_probe(mode: str) -> None:
    """In a trace, or in the one mode of a scheduler, what follows inherits the error."""
    lines = [line((CONV(0), 100.0), (CONV(1), 1e4), ("conv_out", 20.0), mode=mode)]
    assert marks_of(lines, "unet") == {f"unit/base/{mode}": {CONV_KIND: (1, 2.0, (CONV(0),))}}


@pytest.mark.parametrize(("count", "named"), [(1, 1), (3, 3), (4, 0), (9, 0)])
def test_names_are_kept_while_few(count: int, named: int) -> None:
    """Three wrong probes of a kind are remembered by name, more only by their number."""
    marks = marks_of([line(*((CONV(i), 10.0) for i in range(count)))], "unet")
    found, ratio, names = marks["unit/base/splice"][CONV_KIND]
    assert (found, ratio) == (count, 1.0)
    assert names == tuple(CONV(i) for i in range(named))


@pytest.mark.parametrize("ratio", [math.inf, math.nan, "inf", "nan", 1e300], ids=repr)
def test_ratios_have_a_ceiling(ratio: float) -> None:
    """What is not finite, or beyond measure, is marked 12; from JSON it comes as a word."""
    marks = marks_of([line((CONV(0), ratio))], "unet")
    assert marks["unit/base/splice"][CONV_KIND][1] == 12.0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([line()], {"unit/base/splice": {}}),
        ([line(verdict="warn")], {"unit/base/splice": {}}),
        ([line((CONV(0), 10.0), verdict="skip")], {}),
        ([line((CONV(0), 10.0), component="vae_encoder")], {}),
        (
            [line(), line((CONV(0), 10.0), dtype="bfloat16")],  # the one that fails counts
            {"unit/base/splice": {CONV_KIND: (1, 1.0, (CONV(0),))}},
        ),
        ([line(verdict="skip", dtype="float64"), line()], {"unit/base/splice": {}}),
        ([line(variant="tiny-lowvar", scenario="quiet")], {"lowvar/quiet/splice": {}}),
        ([line(component="unet", variant="-", mode="")], {"unit/base/": {}}),
        ([], {}),
    ],
    ids=["right", "warn", "skip", "other", "half", "skipped-first", "regime", "sizeless", "none"],
)
def test_what_leaves_a_mark(lines: list[dict[str, Any]], expected: Marks) -> None:
    """A right case leaves an empty mark; a skip, another component or arithmetic leave none."""
    assert marks_of(lines, "unet") == expected


def test_errors_leave_a_mark() -> None:
    """An exception is marked by its type; its words, which name sizes and places, are not."""
    message = "the port raised RuntimeError: shapes 32 and 64 (unet.py: 7)"
    marks = marks_of([line(verdict="error", message=message, probes=[])], "unet")
    assert marks == {"unit/base/splice": {"!the port raised RuntimeError": (1, 0.0, ())}}


def test_blocks_of_a_case_are_joined() -> None:
    """Items of one case, block by block, leave one mark: numbers add up, the worst ratio stays."""
    one, other = line((CONV(0), 10.0)), line((CONV(1), 1000.0), ("conv_out", 10.0))
    assert marks_of([one, other], "unet") == marks_of(
        [line((CONV(0), 10.0), (CONV(1), 1000.0), ("conv_out", 10.0))], "unet"
    )
    many = [line((CONV(i), 10.0)) for i in range(5)]
    assert marks_of(many, "unet")["unit/base/splice"] == {CONV_KIND: (5, 1.0, ())}


SIZES = {"odd": ["odd"], "sd1": ["sd1"], "both": ["tiny", "odd"], "all": ["tiny", "odd", "sd1"]}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_size_is_left_out(sizes: list[str]) -> None:
    """The same failures on any size, or on several in one run, leave the same fingerprint."""
    wrong = [(CONV(0), 100.0), ("conv_out", 20.0)]
    tiny = marks_of([line(*wrong)], "unet")
    assert likeness(tiny, marks_of([line(*wrong, variant=s) for s in sizes], "unet")) == 1.0


def mark(*kinds: str, count: int = 1, ratio: float = 3.0) -> dict[str, Mark]:
    """Build what one case leaves."""
    return {kind: (count, ratio, (kind,)) for kind in kinds}


SOME: Marks = {"unit/base/splice": mark("a"), "unit/base/trace": mark("a"), "unit/t0/trace": {}}

MARK = st.tuples(
    st.integers(1, 40), st.floats(0.6, 12), st.lists(st.sampled_from("pqr"), max_size=3).map(tuple)
)
MARKS = st.dictionaries(
    st.sampled_from(["unit/base/splice", "unit/base/trace", "lowvar/base/splice", "unit/t0/trace"]),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), MARK),
)


@given(MARKS, MARKS)
def test_likeness_is_a_likeness(a: Marks, b: Marks) -> None:
    """It is symmetric, from 0 to 1, and 1 (but for rounding) between a fingerprint and itself."""
    assert likeness(a, b) == pytest.approx(likeness(b, a))
    assert 0 <= likeness(a, b) <= 1 + 1e-12
    assert likeness(a, a) == pytest.approx(1.0 if a else 0.0)


DIFFERENT = {
    "ratio": ({"unit/base/splice": mark("a", ratio=5.0)}, 0.75, 0.99),
    "count": ({"unit/base/splice": mark("a", count=4)}, 0.75, 0.99),
    "name": ({"unit/base/splice": {"a": (1, 3.0, ("other",))}}, 0.75, 0.99),
    "one-more": ({"unit/base/splice": mark("a", "b")}, 0.5, 0.75),
    "kind": ({"unit/base/splice": mark("b")}, 0.0, 0.3),
    "elsewhere": ({"unit/base/splice": mark("b"), "unit/base/trace": mark("b")}, 0.0, 0.1),
    "right": ({"unit/base/splice": {}}, 0.0, 0.3),
    "nothing-common": ({"lowvar/base/splice": mark("a")}, 0.0, 0.0),
    "not-run": ({}, 0.0, 0.0),
}


@pytest.mark.parametrize(("changes", "low", "high"), DIFFERENT.values(), ids=DIFFERENT)
def test_likeness_falls(changes: Marks, low: float, high: float) -> None:
    """Another ratio, number or name costs a little; another kind of probe costs everything."""
    fewer = changes if "unit/base/splice" not in changes else SOME | changes
    assert low <= likeness(SOME, fewer) <= high


def test_likeness_asks_both() -> None:
    """Only cases that both were run on count: a short run can be recognised."""
    assert likeness(SOME, {"unit/base/trace": mark("a"), "sharp/base/trace": mark("b")}) == 1.0


def test_right_cases_say_little() -> None:
    """Many cases that are right in both do not hide that the wrong ones differ."""
    right: Marks = {f"unit/{i}/trace": {} for i in range(10)}
    assert likeness(right | SOME, right | {"unit/base/splice": mark("b")}) < 0.5


def test_splice_says_more_than_trace() -> None:
    """Two fingerprints that differ in splice mode are less alike than two that do in a trace."""
    spliced = likeness(SOME, SOME | {"unit/base/splice": mark("b")})
    traced = likeness(SOME, SOME | {"unit/base/trace": mark("b")})
    assert spliced < 0.5 < traced


def known(name: str, marks: Marks, component: str = "unet") -> Known:
    """Build a catalogued fingerprint."""
    return Known(name, component, f"{name} is wrong", marks)


NEAR, EXACT = SOME | {"unit/base/splice": mark("a", ratio=4.0)}, SOME
FAR: Marks = {"unit/base/splice": mark("b"), "unit/base/trace": mark("b")}
CATALOGUE = [
    known("near", NEAR),
    known("far", FAR),
    known("exact", EXACT),
    known("another-component", SOME, "vae_encoder"),
]


def test_rank() -> None:
    """The most alike comes first; other components and what is hardly alike do not come at all."""
    assert [k.id for k in rank(SOME, "unet", CATALOGUE)] == ["exact", "near"]
    assert [k.id for k in rank(NEAR, "unet", iter(CATALOGUE))] == ["near", "exact"]
    assert [k.id for k in rank(SOME, "vae_encoder", CATALOGUE)] == ["another-component"]
    assert rank(SOME, "text_encoder", CATALOGUE) == []


def test_rank_of_what_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a list, the library that is shipped is searched; an empty list stays empty."""
    monkeypatch.setattr(fingerprint, "library", lambda: tuple(CATALOGUE))
    assert [k.id for k in rank(SOME, "unet")] == ["exact", "near"]
    assert rank(SOME, "unet", []) == []


def test_library_round_trip(tmp_path: Path) -> None:
    """What is written is read back equal, one mutant a line, though the file was missing before."""
    path = tmp_path / "fingerprints.json"
    assert library(path) == ()
    error = {"unit/base/trace": {"!the port raised ValueError": (1, 0.0, ())}}
    written = [*CATALOGUE, known("raises", error), known("nothing", {})]
    write_library(written, path)
    assert library(path) == tuple(written)
    assert len(path.read_text("utf-8").splitlines()) == len(written) + 2
    write_library(written[:1], path)
    assert library(path) == (written[0],)


def test_real_marks_survive_the_library(tmp_path: Path) -> None:
    """A fingerprint of a run and the same one from the file are exactly alike."""
    lines = [line(*((CONV(i), 10.0**i) for i in range(1, n))) for n in (2, 3, 6)]
    marks = marks_of([*lines, line((CONV(0), math.nan), mode="trace")], "unet")
    write_library([known("own", marks)], tmp_path / "own.json")
    assert library(tmp_path / "own.json")[0].marks == marks
