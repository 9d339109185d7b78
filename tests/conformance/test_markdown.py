"""The Markdown summary for a CI job's page."""

from __future__ import annotations

import re

import pytest

from conformance.report.markdown import markdown
from conformance.report.run import read_run

HOSTILE = "<b>a</b> [x](http://e.vil) `c` | *d* _e_ ~f~ $g$ @user a@b.com www.e.vil ![i](j)\n# h"


@pytest.fixture
def written(made_up):
    """Return a function that writes a run and returns its Markdown."""
    return lambda lines, **facts: markdown(read_run(made_up.write(lines, **facts)))


def test_conformant(written, made_up) -> None:
    """The verdict comes first; nothing speaks of a divergence."""
    text = written([made_up.line(), made_up.line("skip", scenario="odd")])
    assert text.startswith("## ✓ Conformant: mine\n\n**mine 1.0 computes what Stable Diffusion v1")
    assert "| unet | float32 | 2 | 1 | 1 | 1.2 | `conv_in` |" in text
    assert "###" not in text


def test_failing(written, made_up) -> None:
    """First divergence, command and causes are there, in this order."""
    faults = [{"probes": "a.*", "count": 1, "mutant": "unet-gn-eps", "confirmed": True}]
    text = written([made_up.line("fail")], faults=faults)
    places = [
        text.index(part)
        for part in (
            "## ▲ Not conformant: mine",
            "| unet | float32 | 1 | 1 | 48 | `conv_in` |",
            "### First divergence",
            "- Probe: `conv_in`, after `time_embedding`",
            '`sd1-conformance run mine.py:make -k "unet/tiny/base" --mode trace`',
            "### 1 cause explains 1 failure",
            "- unet-gn-eps (confirmed): 1 probe, `a.*`",
        )
    ]
    assert places == sorted(places)


def test_regression_is_said_first(written, made_up) -> None:
    """A conformant run that is worse than its baseline says so in heading and second sentence."""
    text = written([made_up.line()], baseline={"dir": "old", "worse": 2, "regressions": ["unet"]})
    assert text.startswith("## ✓ Conformant, ▲ worse than the baseline: mine\n")
    assert text.splitlines()[4] == "**▲ Worse than the baseline old: 2 worse**"


def test_it_is_short(written, made_up) -> None:
    """However much is wrong, the summary has at most 60 lines."""
    lines = [made_up.line("fail", component=f"c{i}", dtype=f"d{i}") for i in range(200)]
    faults = [{"probes": "x", "count": 1, "mutant": f"m{i}"} for i in range(50)]
    many = [f"case {i}" for i in range(90)]
    changed = {f"library {i}": ["1", "2"] for i in range(90)}
    control = {"port": "diffusers", "cases": 90, "failing": many, "changed": changed}
    baseline = {"dir": "old", "regressions": many, "environment": changed, "worse": many}
    xfails = {"file": "x", "entries": 90, "used": 0, "problems": many}
    facts = {"faults": faults, "control": control, "baseline": baseline, "xfails": xfails}
    text = written(lines, **facts)
    assert len(text.splitlines()) <= 60
    for part in ("### Control", "### Baseline", "library 4 1 to 2, 85 more", "- and 46 more"):
        assert part in text


def test_hostile_names(written, made_up) -> None:
    """Names are shown as they are: no markup, no link, no mention, no line of their own."""
    line = made_up.line("fail", component=HOSTILE, worst_probe=HOSTILE, case=HOSTILE)
    line["first_divergence"] |= {"probe": HOSTILE, "after": HOSTILE, "hint": HOSTILE}
    faults = [{"probes": HOSTILE, "count": 1, "mutant": HOSTILE}]
    port = {"name": HOSTILE, "version": HOSTILE, "spec": HOSTILE}
    text = written([line], port=port, scope=HOSTILE, faults=faults)
    code = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
    prose = code.sub("", re.sub(r"\\.", "", text))
    assert not re.search(r"<(?!!-- -->)", prose)
    assert not re.search(r"[\[\]*~$]|!\[", prose.replace("**", ""))
    assert "://" not in prose
    assert "www." not in prose
    assert not re.search(r"@(?!<!-- -->)", prose)
    assert "\n# h" not in text
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.parametrize("ticks", [1, 2, 3, 7])
def test_backticks_in_a_name(written, made_up, ticks) -> None:
    """A name with backticks stands between more of them."""
    name = f"a{'`' * ticks}b`c"
    text = written([made_up.line(worst_probe=name)])
    assert f" {'`' * (ticks + 1)} {name} {'`' * (ticks + 1)} " in text
