"""The end of a run on the terminal: table, causes, first divergence, and colours."""

from __future__ import annotations

import io
import json
import re

import pytest

from conformance.report.terminal import verdict_lines, wants_colour

FAULTS = [
    {"probes": "down_blocks.*.norm1", "count": 9, "mutant": "unet-gn-eps", "confirmed": True},
    {"probes": "conv_out", "count": 1, "mutant": "unet-bias", "confirmed": False},
    {"probes": "x" * 200, "count": 2, "mutant": None, "confirmed": False},
    {"probes": "y", "count": 2, "mutant": None, "confirmed": False},
]


@pytest.fixture
def told(made_up):
    """Return a function that writes a run and returns what the terminal says of it."""

    def tell(lines, *, colour=False, **facts):
        out = made_up.write(lines, **facts)
        summary = json.loads((out / "summary.json").read_text("utf-8"))
        return verdict_lines(summary, lines, colour=colour)

    return tell


def test_table(told, made_up) -> None:
    """One row by component and arithmetic, in the order of components, columns aligned."""
    line = made_up.line
    lines = [
        line(component="scheduler/euler_ancestral", dtype="float64", ratio=0.25, worst_probe="s#7"),
        line("fail", worst_probe="up_blocks.0.resnets.0.norm1"),
        line(scenario="quiet"),
        line("skip", component="text_encoder", worst_probe=None),
    ]
    written = told(lines)
    assert written[written.index("") :] == [
        "",
        "  component                  dtype    items  pass  fail  skip  worst  where",
        "  text_encoder               float32      1                 1      –",
        "  unet                       float32      2     1     1           48  ….0.norm1",
        "  scheduler/euler_ancestral  float64      1     1               0.25  s#7",
        "",
        "First divergence in unet/tiny/base[float32-cpu-sdpa-trace]",
        "  probe  conv_in",
        "  after  time_embedding",
        "  ratio  48, limit 4",
        "  kind   fault",
        "  hint   the usual cause",
        '  rerun  sd1-conformance run mine.py:make -k "unet/tiny/base" --mode trace',
    ]


def test_what_stamps_lack(told, made_up) -> None:
    """It is told where a backend or a mode was asked for that only stamps need."""
    gaps = {"precision:float32": "mode batch was not judged", "training": "training failed"}
    line = made_up.line()
    text = "  unmet  precision:float32: mode batch was not judged. training: training failed"
    assert text not in told([line], stamps_missing=gaps)
    for other in ({"backend": "plain"}, {"mode": "repeat"}):
        assert text in told([line | other], stamps_missing=gaps)


def test_table_is_narrow(told, made_up) -> None:
    """Whatever names and counts there are, a row fits a terminal of 80 columns."""
    verdicts = ("pass", "warn", "fail", "error", "skip", "xfail", "xpass")
    lines = [
        made_up.line(verdict, component="scheduler/" + "x" * 300, worst_probe="y" * 300)
        for verdict in verdicts
    ]
    rows = [text for text in told(lines) if text.startswith("  scheduler/x")]
    assert len(rows) == 1
    wide = [
        made_up.line("fail", component="unet", dtype="bfloat16", worst_probe=f"p.{'q' * 90}.end")
    ]
    (row,) = [text for text in told(wide) if text.startswith("  unet")]
    assert len(row) <= 80
    assert row.endswith("q.end")


def test_many_components_are_folded(told, made_up) -> None:
    """What is right of a family is one row where there would be too many, and no case is lost."""
    lines = [
        made_up.line(component=f"scheduler/s{i}", dtype=dtype)
        for i in range(20)
        for dtype in ("float32", "float64")
    ]
    lines.append(made_up.line("fail", component="scheduler/wrong"))
    rows = [text.split()[:3] for text in told(lines) if text.startswith("  scheduler")]
    assert rows == [
        ["scheduler/*", "float32", "20"],
        ["scheduler/*", "float64", "20"],
        ["scheduler/wrong", "float32", "1"],
    ]
    lines = [made_up.line(component=f"c{i}") for i in range(100)]
    lines.append(made_up.line("fail", component="wrong"))
    told_of = [text.split() for text in told(lines) if re.match(r"  (c\d|wrong|\d+ more)", text)]
    assert len(told_of) == 14
    assert told_of[-1][:3] == ["88", "more", "88"]
    assert any(words[0] == "wrong" for words in told_of)


def test_causes_in_one_line(told, made_up) -> None:
    """Those that explain most are named, with how sure they are; all are counted."""
    lines = told([made_up.line("fail"), made_up.line("fail", scenario="quiet")], faults=FAULTS)
    (causes,) = [text for text in lines if text.startswith("  causes")]
    assert causes == (
        "  causes 1 cause explains part of 2 failures: unet-gn-eps (confirmed); "
        f"perhaps unet-bias; unknown at {'x' * 59}…, y"
    )
    lines = told([made_up.line("fail")], faults=FAULTS[:1])
    (causes,) = [text for text in lines if text.startswith("  causes")]
    assert causes == "  causes 1 cause explains 1 failure: unet-gn-eps (confirmed)"
    odd = [{"cause": "environment", "probes": "x", "count": 1}, {"probes": "", "mutant": None}]
    lines = told([made_up.line("fail")], faults=odd)
    assert "  causes 1 cause explains part of 1 failure: the environment" in lines


def test_first_divergence_is_short(told, made_up) -> None:
    """From the first divergence on there are at most 15 lines, the command to run it again last."""
    lines = told([made_up.line("fail")], faults=FAULTS)
    start = next(i for i, text in enumerate(lines) if text.startswith("First divergence"))
    assert len(lines) - start <= 15
    assert lines[-1] == '  rerun  sd1-conformance run mine.py:make -k "unet/tiny/base" --mode trace'


def test_control_and_baseline(told, made_up) -> None:
    """A reference that is wrong in the same job is told with what changed; a baseline likewise."""
    control = {"port": "diffusers", "cases": 9, "failing": ["unet/tiny/base"], "moved": []}
    control |= {"changed": {"driver": ["550.1", "560.2"], "new": [None, "1"]}}
    baseline = {"dir": "old", "worse": 2, "better": ["a"], "new": 0, "vanished": []}
    baseline |= {"regressions": ["unet/tiny/base: 1 to 3"], "ratchet": ["x"], "environment": {}}
    lines = told([made_up.line()], control=control, baseline=baseline)
    assert (
        "  control diffusers itself exceeds the limit in 1 case: the environment is at fault; "
        "changed: driver 550.1 to 560.2, new nothing to 1"
    ) in lines
    assert (
        "  baseline against old: 2 worse, 1 better; 1 case over twice the best ratio reached"
    ) in lines
    good = {"port": "diffusers", "cases": 9, "failing": [], "moved": [], "changed": {}}
    lines = told([made_up.line()], control=good, baseline={"dir": "old", "regressions": []})
    assert "  control diffusers agrees with the truth in 9 cases here" in lines
    assert "  baseline against old: nothing moved beyond noise" in lines


def test_colour_is_asked_for(told, made_up) -> None:
    """Colours mark the verdict and the rows that fail; without them there is no escape."""
    cases = [made_up.line("fail"), made_up.line(component="text_encoder")]
    plain, painted = told(cases), told(cases, colour=True)
    assert not any("\x1b" in text for text in plain)
    assert [re.sub(r"\x1b\[[\d;]*m", "", text) for text in painted] == plain
    assert [text.split()[0] for text in painted if "\x1b" in text] == [
        "\x1b[1;33mNOT",
        "\x1b[1;33m",
    ]


@pytest.mark.parametrize(
    ("terminal", "variables", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
    ids=["terminal", "pipe", "no-color", "empty-no-color", "dumb"],
)
def test_wants_colour(terminal, variables, expected, monkeypatch) -> None:
    """Colour is for a terminal whose user has not set NO_COLOR."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    assert wants_colour(stream) == expected
