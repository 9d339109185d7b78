"""Shards: the same parts everywhere, balanced by recorded cost, no case divided."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import cli, costs
from conformance.case import all_cases, find_case, select_cases
from conformance.costs import Costs, group_name, measured
from conformance.errors import GoldenError, UsageError
from conformance.execution import Execution, items
from conformance.run_folder import row
from conformance.shards import Selection, Shard, Unit, deal, units_of

RUNS = [Execution(mode=mode) for mode in ("splice", "trace")]
MATRIX = Path(__file__).parents[1] / "test_conformance.py"


def default_run() -> list:
    """Return the items of the default run."""
    return list(items(select_cases(), RUNS))


def chosen(*names: str) -> list:
    """Return the items of some cases."""
    return list(items([find_case(name) for name in names], RUNS))


@pytest.mark.parametrize(("text", "shard"), [("1/1", Shard(1, 1)), ("12/40", Shard(12, 40))])
def test_parse(text: str, shard: Shard) -> None:
    """I/N is read and written alike."""
    assert Shard.parse(text) == shard
    assert str(shard) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "0/2",
        "3/2",
        "1/0",
        "-1/2",
        "1/2/3",
        "a/b",
        "1.0/2",
        " 1/2",
        "1/99999",
        "\u0661/\u0662",
    ],
)
def test_parse_refuses(text: str) -> None:
    """What is no part of anything is refused in words that say what to write."""
    with pytest.raises(UsageError, match=r"write I/N, which part of how many, such as 2/4"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_parts_are_the_whole(count: int) -> None:
    """Every item is in exactly one part, in the order of the run, the same each time."""
    judged = default_run()
    parts = [Selection(judged, Shard(i, count)) for i in range(1, count + 1)]
    together = [item for part in parts for item in part.own]
    assert sorted(together) == sorted(run.item_id(case) for case, run in judged)
    again = [Selection(list(reversed(judged)), Shard(i, count)) for i in range(1, count + 1)]
    assert [part.own for part in again] == [part.own for part in parts]
    assert {json.dumps({**part.facts, "own": 0}) for part in parts} == {
        json.dumps({**Selection(judged).facts, "own": 0})
    }


@pytest.mark.parametrize("count", [2, 4, 8])
def test_balanced(count: int) -> None:
    """By recorded cost no part of the default run takes 2 % longer than the mean."""
    judged = default_run()
    recorded = Costs.recorded()
    totals = []
    for i in range(1, count + 1):
        own = Selection(judged, Shard(i, count)).own
        mine = [(case, run) for case, run in judged if run.item_id(case) in own]
        groups = {group_name(case.component, case.variant.name, run.dtype) for case, run in mine}
        loads = sum(recorded.loads.get(group, 0.0) for group in groups)
        totals.append(loads + sum(recorded.of(case, run) for case, run in mine))
    assert max(totals) < 1.02 * sum(totals) / count


def test_both_modes_stay_together() -> None:
    """A trace is explained by what splicing found: no case is divided."""
    judged = default_run()
    for i in (1, 2, 3):
        own = {item.partition("[")[0] for item in Selection(judged, Shard(i, 3)).own}
        others = {
            item.partition("[")[0]
            for j in {1, 2, 3} - {i}
            for item in Selection(judged, Shard(j, 3)).own
        }
        assert not own & others


def test_more_parts_than_cases() -> None:
    """An empty part would be no run: the most parts that make sense are named."""
    judged = chosen("unet/tiny/base", "unet/tiny/quiet")
    assert {len(Selection(judged, Shard(i, 2)).own) for i in (1, 2)} == {2}
    with pytest.raises(UsageError, match="2 cases cannot be shared by 3: ask for at most 2"):
        Selection(judged, Shard(3, 3))


LOADS = {"big": 10.0, "small": 0.0}


@pytest.mark.parametrize(
    ("units", "count", "parts"),
    [
        ({"a": ("big", 3), "b": ("big", 3), "c": ("small", 6)}, 2, {"a": 2, "b": 2, "c": 1}),
        ({"a": ("big", 30), "b": ("big", 30)}, 2, {"a": 1, "b": 2}),
        (
            {"a": ("", 5), "b": ("", 4), "c": ("", 3), "d": ("", 2)},
            2,
            dict(zip("abcd", (1, 2, 2, 1), strict=True)),
        ),
        ({"b": ("", 1), "a": ("", 1), "c": ("", 1)}, 3, {"a": 1, "b": 2, "c": 3}),
        ({"a": ("big", 1), "b": ("big", 1), "c": ("big", 1)}, 3, {"a": 1, "b": 2, "c": 3}),
    ],
    ids=["a-load-is-paid-once", "unless-it-pays", "longest-first", "ties-by-name", "none-empty"],
)
def test_deal(units: dict, count: int, parts: dict) -> None:
    """The longest goes first to the part that is done first with it, loading included."""
    made = [Unit(name, group, cost) for name, (group, cost) in units.items()]
    dealt = deal(made, count, LOADS)
    assert {unit.name: part for unit, part in dealt.items()} == parts


def test_costs_of_the_unknown() -> None:
    """What is not recorded costs the median of its network, else of its component, else of all."""
    known = Costs(
        {
            "unet/tiny/base[float32-cpu-sdpa-trace]": 1.0,
            "unet/tiny/quiet[float32-cpu-sdpa-trace]": 3.0,
            "unet/odd/base[float32-cpu-sdpa-trace]": 10.0,
        },
        {},
    )

    def cost(name: str, dtype: str = "float32") -> float:
        return known.of(find_case(name), Execution(dtype))

    assert cost("unet/tiny/base") == 1.0
    assert cost("unet/tiny/base", "float64") == 2.0
    assert cost("unet/tiny-dense/base") == 3.0
    assert cost("text_encoder/tiny/base") == 3.0
    assert Costs({}, {}).of(find_case("unet/tiny/base"), Execution()) == 1.0


def line(name: str, seconds: float, mode: str = "trace", verdict: str = "pass") -> dict:
    """Build what the tool reads of a case line."""
    case = find_case(name)
    item = Execution(mode=mode).item_id(case)
    facts = {"component": case.component, "variant": case.variant.name, "dtype": "float32"}
    return {"type": "case", "case": item, "mode": mode, "verdict": verdict, **facts} | {
        "seconds": seconds
    }


def write_run(path: Path, lines: list[dict]) -> Path:
    """Write a run's results."""
    header = {"type": "header", "suite": "1", "environment": {"machine": "x86_64"}}
    header["port"] = {"name": "p", "version": "2"}
    path.mkdir()
    (path / "results.jsonl").write_text("".join(map(row, [header, *lines])), "utf-8")
    return path


def test_measured(tmp_path: Path) -> None:
    """The first case of a network pays for its load; blocks add up; skips tell nothing."""
    blocks = [line("unet/odd/base", 2.0, "splice"), line("unet/odd/base", 1.0, "splice")]
    for i, block in enumerate(blocks):
        block["case"] += f"::{i}"
    first = [
        line("unet/tiny/base", 5.0),
        line("unet/tiny/quiet", 1.0),
        line("unet/tiny/loud", 3.0),
        line("unet/tiny/t0", 0.0, verdict="skip"),
        *blocks,
    ]
    second = [line("unet/odd/loud", 9.0), line("unet/tiny/base", 7.0), line("unet/tiny/t999", 4.0)]
    facts = measured([write_run(tmp_path / "a", first), write_run(tmp_path / "b", second)])
    trace = "[float32-cpu-sdpa-trace]"
    assert facts["items"] == {
        "unet/odd/base[float32-cpu-sdpa-splice]": 3.0,
        f"unet/odd/loud{trace}": 9.0,
        f"unet/tiny/base{trace}": 3.0,
        f"unet/tiny/loud{trace}": 3.0,
        f"unet/tiny/quiet{trace}": 1.0,
        f"unet/tiny/t999{trace}": 4.0,
    }
    assert facts["loads"] == {"unet/tiny[float32]": 3.0}
    assert facts["measured"] == ["p 2, suite 1, x86_64, torch -"]


def test_costs_tool(tmp_path: Path, golden_copy, capsys) -> None:
    """The tool writes the file of which `--shard` reads, and nothing else does."""
    run = write_run(tmp_path / "a", [line("unet/tiny/base", 5.0)])
    assert costs.main([str(run)]) == 0
    assert Costs.recorded().items == {"unet/tiny/base[float32-cpu-sdpa-trace]": 5.0}
    assert str(golden_copy.root) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        costs.main([str(tmp_path)])
    (golden_copy.root / "spec" / "costs.json").write_text("[]", "utf-8")
    with pytest.raises(
        GoldenError, match=r"costs\.json: .* write it: python -m conformance\.costs"
    ):
        Costs.recorded()


def test_recorded_costs_are_of_this_suite() -> None:
    """Every case that is recorded exists, and the default run is recorded nearly whole."""
    known = {case.id for case in all_cases()}
    recorded = Costs.recorded().items
    assert {item.partition("[")[0] for item in recorded} <= known
    default = {run.item_id(case) for case, run in default_run()}
    assert len(default & recorded.keys()) > 0.9 * len(default)


@pytest.mark.parametrize(
    ("shard", "message"),
    [("5/4", "shard '5/4': write I/N"), ("3/3", "2 cases cannot be shared by 3")],
)
def test_by_command_line(
    golden_copy, port_file, tmp_path, capsys, shard: str, message: str
) -> None:
    """A part that cannot be is bad usage, in one line, before anything is written."""
    assert golden_copy.root.exists()
    argv = ["run", port_file, "-k", "unet/tiny/base or unet/tiny/quiet", "--shard", shard]
    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told
    assert not (tmp_path / "out").exists()


def test_header_of_a_shard(golden_copy, port_file, tmp_path, capsys) -> None:
    """A shard says which part of what it is; each of its lines says where it stands in the run."""
    assert golden_copy.root.exists()
    argv = ["run", port_file, "-k", "unet/tiny/base or unet/tiny/quiet", "--shard", "2/2"]
    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "results.jsonl").read_text("utf-8")
    header, case, _ = map(json.loads, text.splitlines())
    assert header["shard"] == "2/2"
    assert (header["items"]["count"], header["items"]["own"]) == (2, 1)
    assert len(header["items"]["sha256"]) == 64
    assert case["place"] in {0, 1}
    assert "; shard 2 of 2" in header["scope"]
    assert "shard 2 of 2" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert (summary["shard"], summary["verdict"]) == ("2/2", "conformant")


def test_pytest_shards(tmp_path: Path) -> None:
    """In pytest the blocks and the live comparison of a case go where the case goes."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "pytest", str(MATRIX), "--collect-only", "-q", "-p"]
    command += ["no:cacheprovider", "-k", "text_encoder and (base or empty or short)"]
    command += ["--sd1-variant", "tiny", "--sd1-out", str(tmp_path / "report")]

    def collected(*options: str) -> set[str]:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=True, cwd=MATRIX.parents[1]
        )
        return {text for text in done.stdout.splitlines() if "::" in text}

    whole = collected()
    parts = [collected("--sd1-shard", f"{i}/2") for i in (1, 2)]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
    assert all(parts)
    judged = [
        {
            text.partition("[")[2].partition("[")[0]
            for text in part
            if "float32" in text and "cuda" not in text
        }
        for part in parts
    ]
    assert not judged[0] & judged[1]


def test_more_parts_than_cases_in_pytest(tmp_path: Path) -> None:
    """A worker that cannot choose its tests says why in one of them."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "pytest", str(MATRIX), "-n", "1", "-k", "tokenizer/-/plain"]
    command += ["--sd1-shard", "1/9", "--sd1-out", str(tmp_path / "report")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=MATRIX.parents[1]
    )
    assert done.returncode == 1
    assert "cases cannot be shared by 9: ask for at most" in done.stdout


def test_units_know_their_network() -> None:
    """The unit of an item holds all its modes, and costs what they cost together."""
    judged = chosen("unet/tiny/base")
    known = Costs({run.item_id(case): 2.0 for case, run in judged}, {})
    (unit,) = set(units_of(judged, known).values())
    assert (unit.group, unit.cost) == ("unet/tiny[float32]", 4.0)
