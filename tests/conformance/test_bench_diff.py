"""`diff` of bench files: what is beyond noise, and how often noise is taken for more."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from conformance import cli
from conformance.bench.record import MORE, BenchFile, Reference, Row, write
from conformance.regression.bench import BETTER, SAME, UNDECIDED, WORSE, BenchDiff
from conformance.regression.ranks import ALPHA, holm, p_larger, p_least, runs_needed

HERE = {"cpu": "AMD", "torch": "2.13", "diffusers": "0.42.1"}


def file(*rows: Row, bench: str = "models", **facts: str) -> BenchFile:
    """Return a bench file that was read."""
    by_name = {row.name: row for row in rows}
    return BenchFile(Path("x.json"), bench, "1.0", {**HERE, **facts}, by_name, {})


def timed(name: str, rng, runs: int = 7, *, slower: float = 1.0, load: float = 1.0) -> Row:
    """Return a row whose runs vary by 4 %, now and then twice as long; the reference takes 2 s.

    Args:
        name: Its name.
        rng: Draws the noise.
        runs: How many.
        slower: Factor of the row alone.
        load: Factor of the machine, of both.
    """
    own, other = (np.exp(rng.normal(0, 0.04, (2, runs)))) * load
    busy = 1 + rng.exponential(1.0, runs) * (rng.random(runs) < 0.1)  # for both: they are in turns
    reference = Reference("diffusers", tuple((2 * other * busy).tolist()))
    return Row.measured(name, "s", tuple((slower * own * busy).tolist()), reference=reference)


def bench(rng, count: int = 30, slower: dict[int, float] | None = None, **given) -> BenchFile:
    """Return a file of many rows, some slower than the others."""
    factors = slower or {}
    rows = (timed(f"r{i}", rng, slower=factors.get(i, 1.0), **given) for i in range(count))
    return file(*rows)


def what(before: BenchFile, after: BenchFile) -> dict[str, str]:
    """Return what each row did."""
    return {moved.after.name: moved.what for moved in BenchDiff(before, after).moved}


@pytest.mark.parametrize(
    ("before", "after"),
    [([3, 1, 2], [4, 2.5]), ([1, 2, 2], [2, 3]), ([1, 1], [1, 1, 1]), ([5, 6], [1])],
    ids=["apart", "ties", "equal", "below"],
)
def test_rank_sum_is_exact(before: list[float], after: list[float]) -> None:
    """Against every way to say which values are `after`."""
    pool = [*before, *after]
    ranks = [sum(x < y for x in pool) + (sum(x == y for x in pool) + 1) / 2 for y in pool]
    found = sum(ranks[len(before) :])
    ways = list(itertools.combinations(ranks, len(after)))
    wanted = sum(sum(way) >= found for way in ways) / len(ways)
    assert p_larger(before, after) == pytest.approx(wanted)


def test_rank_sum_of_many() -> None:
    """Above 120 runs the sum is taken for normal; both agree where they meet."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 60), rng.normal(0.35, 1, 60)
    exact = p_larger(a, b)
    assert p_larger([*a, -9.0], [*b, -9.5]) == pytest.approx(exact, rel=0.15)
    assert p_larger([1.0] * 70, [1.0] * 70) == 1.0


def test_fewest_runs() -> None:
    """Every run of one beyond all of the other is as rare as the number of ways to choose them."""
    assert p_larger([1, 2, 3], [4, 5, 6]) == pytest.approx(p_least(3, 3)) == pytest.approx(1 / 20)
    assert runs_needed(1) == 3
    assert p_least(7, 7) <= ALPHA / 60 < p_least(6, 6) * 2
    assert runs_needed(60) == 7


def test_holm() -> None:
    """The smallest against alpha over all, the next against alpha over what is left."""
    assert holm([0.02, 0.01, 0.9]) == [True, True, False]
    assert holm([0.02, 0.03, 0.9]) == [False, False, False]
    assert holm([]) == []


def test_false_alarms() -> None:
    """Of the same code, at most one comparison of 30 rows in twenty says that any got worse."""
    rng = np.random.default_rng(1)
    alarms = sum(WORSE in what(bench(rng), bench(rng)).values() for _ in range(120))
    assert alarms <= 12  # 6 expected at most; more than 12 has a probability of 0.5 %


def test_false_alarms_of_a_slower_machine() -> None:
    """A machine that is busier the second time is so for the reference too: nothing is said."""
    rng = np.random.default_rng(2)
    alarms = sum(WORSE in what(bench(rng), bench(rng, load=1.3)).values() for _ in range(120))
    assert alarms <= 12


@pytest.mark.parametrize("load", [1.0, 1.3], ids=["quiet", "busier"])
def test_power(load: float) -> None:
    """A row that is 20 % slower at a noise of 4 % is found in nine of ten, and alone."""
    rng = np.random.default_rng(3)
    found = [what(bench(rng), bench(rng, slower={4: 1.2}, load=load)) for _ in range(60)]
    assert sum(rows["r4"] == WORSE for rows in found) >= 54
    others = sum(rows[name] == WORSE for rows in found for name in rows if name != "r4")
    assert others <= 6


def test_faster() -> None:
    """The same the other way round is better, and no regression."""
    rng = np.random.default_rng(4)
    found = BenchDiff(bench(rng), bench(rng, slower={4: 0.7}))
    assert [moved.after.name for moved in found.of(BETTER)] == ["r4"]
    assert not found.regressed
    assert found.of(BETTER)[0].factor == pytest.approx(0.7, abs=0.1)


def test_small_but_certain() -> None:
    """So many runs are certain of 1 %; it is still less than what they vary by."""
    rng = np.random.default_rng(5)
    before, after = (
        file(Row.measured("a", "s", tuple((f * np.exp(rng.normal(0, 0.04, 400))).tolist())))
        for f in (1.0, 1.01)
    )
    assert p_larger(before.rows["a"].runs, after.rows["a"].runs) < ALPHA
    assert what(before, after) == {"a": SAME}


def test_too_few_runs() -> None:
    """Three runs decide one row, not thirty; what would is said."""
    rng = np.random.default_rng(6)
    found = BenchDiff(bench(rng, runs=3), bench(rng, runs=3, slower={4: 9.0}))
    assert {moved.what for moved in found.moved} == {UNDECIDED}
    assert found.nothing
    assert any("measure both with --repeat 6" in note for note in found.notes)


def test_reference_changed() -> None:
    """Another diffusers: its ratios say nothing, seconds do."""
    rng = np.random.default_rng(7)
    before, after = bench(rng), bench(rng, slower={4: 1.3})
    changed = file(*after.rows.values(), diffusers="0.43.0")
    found = BenchDiff(before, changed)
    assert [moved.after.name for moved in found.of(WORSE)] == ["r4"]
    assert found.notes == ["diffusers changed: ratios to it are not compared, seconds are"]


def test_two_machines() -> None:
    """Twice the seconds say nothing; ratios to the reference of the same run do."""
    rng = np.random.default_rng(9)
    after = bench(rng, slower={4: 1.3}, load=2.0)
    own = Row.measured("alone", "s", (1.0, 1.1))
    watching = Row.measured("watching", "ratio", (1.1, 1.12, 1.09, 1.1, 1.11, 1.1, 1.1))
    before = file(*bench(rng).rows.values(), own, watching)
    found = BenchDiff(before, file(*after.rows.values(), own, watching, cpu="Intel"))
    assert [moved.after.name for moved in found.of(WORSE)] == ["r4"]
    assert {m.after.name: m.what for m in found.moved if m.after.name in {"alone", "watching"}} == {
        "alone": "not compared",
        "watching": SAME,
    }
    assert found.of(WORSE)[0].factor == pytest.approx(1.3, abs=0.08)
    assert found.notes[0].startswith("between two machines (cpu): seconds say nothing")
    neither = BenchDiff(before, file(*after.rows.values(), cpu="Intel", diffusers="9"))
    assert neither.nothing


def test_exact_rows() -> None:
    """What is counted moves by what it moves, in the direction that is worse for it."""
    before, after = (
        file(
            Row.counted("peak", "bytes", 130 + n),
            Row.counted("same", "bytes", 5),
            Row.counted("kept", "ratio", 0.5 + n, better=MORE),
            cpu=str(n),
        )
        for n in (0, 1)
    )
    assert what(before, after) == {"peak": WORSE, "same": SAME, "kept": BETTER}
    assert what(after, before) == {"peak": BETTER, "same": SAME, "kept": WORSE}


def test_measured_bytes_are_not_exact() -> None:
    """Memory of a process varies; a single run of it decides nothing."""
    before, after = (file(Row.measured("rss", "bytes", (x,))) for x in (1e6, 2e6))
    assert what(before, after) == {"rss": UNDECIDED}


def files(tmp_path: Path, *rows: list[Row], bench: str = "models") -> list[str]:
    """Write two files."""
    paths = [tmp_path / f"{name}.json" for name in "ab"]
    for path, own in zip(paths, rows, strict=True):
        write(path, bench, own)
    return list(map(str, paths))


def test_command(tmp_path: Path, capsys) -> None:
    """What got worse, what is only in one, exit 1; turned round, 0."""
    rng = np.random.default_rng(10)
    before = [
        timed("unet", rng),
        Row.counted("peak", "bytes", 2**20),
        Row.counted("old", "bytes", 1),
    ]
    after = [timed("unet", rng, slower=1.5), Row.counted("peak", "bytes", 2**21)]
    words = files(tmp_path, before, after)
    assert cli.main(["diff", *words]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "REGRESSION 2 worse; 2 rows of both"
    assert lines[3] == "  worse    peak 1.0 MiB -> 2.0 MiB (x 2), +1,048,576 B"
    assert lines[4].startswith("  worse    unet ")
    assert "; of the reference's 0." in lines[4]
    assert lines[5] == "  only A   old"
    assert cli.main(["diff", *words[::-1]]) == 0
    assert "NO REGRESSION 2 better" in capsys.readouterr().out
    assert cli.main(["diff", *words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["bench"], found["regression"], found["lost"]) == ("models", True, ["old"])
    unet = next(row for row in found["rows"] if row["name"] == "unet")
    assert unet["what"] == WORSE
    assert unet["before"]["ratio"] < unet["after"]["ratio"]


def test_nothing_in_common(tmp_path: Path, capsys) -> None:
    """Exit 2."""
    words = files(tmp_path, [Row.counted("a", "bytes", 1)], [Row.counted("b", "bytes", 1)])
    assert cli.main(["diff", *words]) == 2
    assert (
        "NOTHING COMPARED: no row of both files could be judged; 0 rows" in capsys.readouterr().out
    )


def test_mistakes(tmp_path: Path, capsys) -> None:
    """A folder beside a file, two kinds, one file twice: one line, exit 2."""
    a, b = files(tmp_path, [], [])
    other = tmp_path / "suite.json"
    write(other, "suite", [])
    for words, message in (
        ([a, str(tmp_path)], f"{a} is a file, {tmp_path} is a folder: name two folders of runs"),
        ([str(tmp_path / "no"), b], f"{b} is a file, {tmp_path / 'no'} is not there: name two"),
        ([a, a], f"{a} and {a} are the same file: name two"),
        ([a, str(other)], f"{a} is of `models`, {other} of `suite`: only two of the same"),
    ):
        assert cli.main(["diff", *words]) == 2
        assert message in capsys.readouterr().err
