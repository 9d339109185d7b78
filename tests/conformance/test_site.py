"""`report`: the reports of one run made anew, and one site of several runs."""

from __future__ import annotations

import json
import re

import pytest

from conformance.errors import UsageError
from conformance.report.files import REPORTS
from conformance.report.site import MARKER, slug_of, write_site
from conformance.run_folder import RunFolder

HOSTILE = "<script>alert(1)</script>/../.."


@pytest.fixture
def rows(made_up, tmp_path):
    """Return a function that makes a site of runs and returns the rows of its table as texts."""

    def build(*runs: dict[str, object]) -> list[str]:
        folders = []
        for i, facts in enumerate(runs):
            lines = facts.pop("lines", [made_up.line()])
            folders.append(made_up.write(lines, f"run{i}", **facts))
        page = write_site(folders, tmp_path / "site").read_text("utf-8")
        body = page[page.index("<tbody>") : page.index("</tbody>")]
        texts = (re.sub(r"<[^>]*>", " ", row) for row in body.split("<tr")[1:])
        return [" ".join(text.partition(">")[2].split()) for text in texts]

    return build


def named(name: str, **facts: object) -> dict[str, object]:
    """Build the facts of a port's run."""
    return {"port": {"name": name, "version": "1", "spec": name}} | facts


def test_ports_by_levels(rows, made_up) -> None:
    """The best come first; each row says levels, ratio, causes, arithmetic and device."""
    fault = {"probes": "a", "count": 1, "mutant": "unet-gn-eps", "confirmed": True}
    because = {"level": 0, "because": "timesteps are wrong"}
    found = rows(
        named("bad", lines=[made_up.line("fail")], faults=[fault], level=None, next_level=because),
        named("middle", level=1, offers=["unet"]),
        named("best", level=3, stamps=["memory"], worst_ratio=1.5),
        named("empty", lines=[made_up.line("error")], verdict="incomplete", level=None),
    )
    assert [row.split()[0] for row in found] == ["best", "middle", "empty", "bad"]
    best, middle, _, bad = found
    assert (
        best
        == "best 1 Conformant 1 case, 2026-11-22 20:00:00 yes yes yes yes memory 1.5 – float32 cpu"
    )
    assert "yes 1 of 5 not reached not reached –" in middle
    assert "fails timesteps are wrong not reached" in bad
    assert "48 unet-gn-eps (confirmed) float32 cpu" in bad


def test_what_was_run_in_part(rows) -> None:
    """A level of which cases were left out is reached in part; none is where nothing is known."""
    share = {"cases": 4, "of": 96}
    part, little, blamed = rows(
        named("a", level=1, selection=share),
        named("b", level=1, selection=share, offers=["unet"]),
        named("c", level=1, verdict="nonconformant", first_divergence={"kind": "environment"}),
    )
    assert "yes part not reached" in part or "yes part not reached" in little
    assert "yes 1 of 5, part not reached" in part + little
    assert blamed.count("not known") == 4


def test_runs_of_one_port_are_told_apart(rows, made_up, tmp_path) -> None:
    """Each run of a port has its row and its page, and says what it was judged in."""
    half = [made_up.line(dtype="bfloat16", device="cuda")]
    found = rows(named("mine"), named("mine", lines=half), named("mine"))
    assert sum("float32 cpu" in row for row in found) == 2
    assert sum("bfloat16 cuda" in row for row in found) == 1
    site = tmp_path / "site"
    pages = sorted(path.parent.name for path in site.glob("*/index.html"))
    assert pages == ["mine-1-bfloat16-cuda", "mine-1-float32-cpu", "mine-1-float32-cpu-2"]
    for page in pages:
        assert (site / page / "badge.svg").read_text("ascii").startswith("<svg ")
        assert f'href="{page}/index.html"' in (site / "index.html").read_text("utf-8")
        assert 'href="../index.html"' in (site / page / "index.html").read_text("utf-8")


def test_a_run_given_twice_counts_once(made_up, tmp_path) -> None:
    """The same folder under two names is one run."""
    folder = made_up.write([made_up.line()], "run")
    page = write_site([folder, folder / ".." / "run"], tmp_path / "site")
    assert page.read_text("utf-8").count('<tr class="conformant"') == 1


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, ""),
        ({"suite": "0.2.0"}, "the same suite."),
        ({"goldens": "b" * 64}, "the same goldens."),
        ({"suite": "0.2.0", "goldens": "b" * 64}, "the same suite and goldens."),
    ],
    ids=["same", "suite", "goldens", "both"],
)
def test_different_judges_are_said(made_up, tmp_path, other, expected) -> None:
    """Runs that another suite or other goldens judged are not compared in silence."""
    first = made_up.write([made_up.line()], "a")
    second = made_up.write([made_up.line()], "b", **other)
    page = write_site([first, second], tmp_path / "site").read_text("utf-8")
    assert ("Compare with care" in page) == bool(expected)
    assert expected in page
    assert ("Judged by</th>" in page) == bool(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My Port 1.0", "my-port-1-0"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "port"),
        ("ü\ud800\x00/", "port"),
        (HOSTILE, "script-alert-1-script"),
        ("x" * 300, "x" * 60),
        ("x" * 59 + " y", "x" * 59),
    ],
    ids=["plain", "path", "empty", "foreign", "markup", "long", "cut"],
)
def test_slug(text, expected) -> None:
    """A port's name becomes a harmless folder's name, which stays what it is when made again."""
    assert slug_of(text) == expected
    assert slug_of(expected) == expected


def test_hostile_ports_stay_inside(made_up, tmp_path) -> None:
    """Hostile names become text, and folders of the site alone."""
    runs = [
        made_up.write([made_up.line(dtype=HOSTILE, device=HOSTILE)], f"r{i}", **named(HOSTILE))
        for i in range(3)
    ]
    site = tmp_path / "a" / "site"
    page = write_site(runs, site).read_text("utf-8")
    assert "<script>alert" not in page
    assert len(list(site.glob("*/index.html"))) == 3
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["site"]


def test_written_anew(made_up, tmp_path) -> None:
    """A site is written over an earlier one, whose pages go; what else lies there stays."""
    site = tmp_path / "site"
    old = made_up.write([made_up.line()], "old", **named("old"))
    new = made_up.write([made_up.line()], "new", **named("new"))
    write_site([old], site)
    (site / "CNAME").write_text("mine", "ascii")
    write_site([new], site)
    names = {path.name for path in site.iterdir()}
    assert names == {"index.html", MARKER, "CNAME", "new-1-float32-cpu"}


def test_a_marker_that_lies(made_up, tmp_path) -> None:
    """A marker can have nothing removed but folders that this command could have written."""
    site, outside = tmp_path / "site", tmp_path / "outside"
    site.mkdir()
    outside.mkdir()
    (site / "Kept").mkdir()
    pages = ["../outside", "..", ".", "", "Kept", str(outside), None, 3]
    (site / MARKER).write_text(json.dumps({"pages": pages}), "ascii")
    write_site([made_up.write([made_up.line()], "run")], site)
    assert outside.is_dir()
    assert (site / "Kept").is_dir()


@pytest.mark.parametrize("kind", ["file", "folder", "run"])
def test_a_foreign_folder_is_refused(made_up, tmp_path, kind) -> None:
    """What is there and is no site is not written into."""
    run = made_up.write([made_up.line()], "run")
    out = run if kind == "run" else tmp_path / "there"
    if kind == "file":
        out.write_text("mine", "ascii")
    elif kind == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("mine", "ascii")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="give another --out"):
        write_site([run], out)
    assert sorted(tmp_path.rglob("*")) == before


def test_report_of_one_run(made_up, main) -> None:
    """The reports of a run are made of its folder again; those edited by hand are replaced."""
    out = made_up.write([made_up.line()])
    for name in REPORTS:
        (out / name).write_text("old", "utf-8")
    code, told, _ = main("report", out)
    assert (code, told) == (0, f"{out / 'index.html'}\n")
    assert all((out / name).read_text("utf-8") != "old" for name in REPORTS)


def test_report_of_several_runs(made_up, main, tmp_path) -> None:
    """Several runs need a folder for the site, each of them has to be one."""
    one, two = (made_up.write([made_up.line()], name) for name in ("a", "b"))
    code, _, error = main("report", one, two)
    assert (code, "--out SITE" in error) == (2, True)
    code, told, _ = main("report", one, two, "--out", tmp_path / "site")
    assert (code, told) == (0, f"{tmp_path / 'site' / 'index.html'}\n")
    code, _, error = main("report", one, tmp_path / "none", "--out", tmp_path / "other")
    assert (code, "no results.jsonl" in error) == (2, True)
    assert not (tmp_path / "other").exists()


def edited(out, old: str, new: str, name: str = "results.jsonl") -> None:
    """Change a run's file."""
    text = (out / name).read_text("utf-8")
    assert old in text
    (out / name).write_text(text.replace(old, new, 1), "utf-8")


DAMAGES = {
    "broken-line": (("results.jsonl", '{"type": "case"', '{"type" "case"'), "line 2"),
    "other-counts": (("results.jsonl", '"verdict": "pass"', '"verdict": "warn"'), "footer counts"),
    "no-header": (("results.jsonl", '{"type": "header"', '{"type": "case"'), "line 1"),
    "counts": (("summary.json", '"pass": 2', '"pass": 3'), "its counts differs"),
    "port": (("summary.json", '"name": "mine"', '"name": "yours"'), "its port differs"),
    "suite": (("summary.json", '"suite": "0.1.0"', '"suite": "9"'), "its suite differs"),
    "scope": (("summary.json", '"scope": "unet', '"scope": "vae'), "its scope differs"),
    "verdict": (("summary.json", '"conformant"', '"nonconformant"'), "its verdict differs"),
}


@pytest.mark.parametrize(("edit", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused(main, made_up, edit: tuple[str, str, str], message: str) -> None:
    """Lines, footer and summary.json that do not agree make no page: one line, exit 2."""
    out = made_up.write([made_up.line(), made_up.line(scenario="quiet")])
    assert main("report", out)[0] == 0
    (out / "index.html").unlink()
    edited(out, *edit[1:], name=edit[0])
    for command in (("report", out), ("report", out, "--out", out / "site")):
        code, _, err = main(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert str(out / edit[0]) in err
        assert message in err
    assert not (out / "index.html").exists()
    assert not (out / "site").exists()


def test_a_line_that_was_deleted(main, made_up) -> None:
    """The footer tells that a line is missing."""
    out = made_up.write([made_up.line(), made_up.line(scenario="quiet")])
    rows = (out / "results.jsonl").read_text("utf-8").splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(rows[:1] + rows[2:]), "utf-8")
    code, _, err = main("report", out)
    assert (code, "results.jsonl is damaged: 1 of 2 cases; run it again" in err) == (2, True)


@pytest.mark.parametrize("content", [b"\x00\xff\x1b" * 999, b"", b"[1]\n", b"[" * 99_999])
def test_random_bytes(main, tmp_path, content: bytes) -> None:
    """What is no run makes no page."""
    (tmp_path / "results.jsonl").write_bytes(content)
    code, _, err = main("report", tmp_path)
    assert (code, err.count("\n"), "is damaged" in err) == (2, 1, True)


@pytest.mark.parametrize("cut", [b'{"type": "ca', b""])
def test_a_run_that_was_cut(main, made_up, cut: bytes) -> None:
    """A cut last line of a run that did not end is no damage."""
    out = made_up.write([made_up.line()])
    rows = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(b"".join(rows[:-1]) + cut)
    code, text, _ = main("report", out)
    assert (code, text) == (0, f"{out / 'index.html'}\n")
    assert "the run was stopped" in (out / "index.html").read_text("utf-8")


def test_a_run_that_still_goes_on(main, made_up) -> None:
    """The page is made, and the terminal says who still writes."""
    out = made_up.write([made_up.line()])
    rows = (out / "results.jsonl").read_text("utf-8").splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(rows[:-1]), "utf-8")
    edited(out, '"type": "header"', '"type": "header", "process": 4711')
    folder = RunFolder(out)
    code, text, _ = main("report", out)
    assert (code, "process 4711 still writes to it" in text) == (0, True)
    folder.close()
    assert "still writes" not in main("report", out)[1]


@pytest.mark.parametrize(("content", "what"), [(None, "is missing"), ("{", "cannot be read")])
def test_without_a_summary(main, made_up, content: str | None, what: str) -> None:
    """A run that has ended without a readable summary.json has no verdict, and that is said."""
    out = made_up.write([made_up.line()])
    (out / "summary.json").unlink()
    if content is not None:
        (out / "summary.json").write_text(content, "utf-8")
    code, text, _ = main("report", out)
    told = f"The verdict is not known: summary.json {what}: run again with --resume"
    assert (code, told in text) == (0, True)
    assert told in (out / "index.html").read_text("utf-8")
