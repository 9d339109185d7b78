"""`sd1-conformance diff`: two runs, or two bench files; and what `run --baseline` prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance.cli_common import command, given
from conformance.environment import changes_text
from conformance.errors import ExitCode, UsageError
from conformance.regression.baseline import Baseline
from conformance.regression.bench import bench_diff
from conformance.regression.bench_text import bench_lines
from conformance.regression.diff import Diff, diff
from conformance.report.terminal import verdict_lines, wants_colour
from conformance.report.text import counted, number_text, one_line, size_text
from conformance.run_folder import plain

_WORSE, _BETTER, _CONTROL, _HELD, _RATCHET, _CHANGED = 6, 3, 3, 3, 3, 6
_TEXT = 400
_COUNTS = {
    "worse": ("probe worse", "probes worse"),
    "better": ("better", "better"),
    "vanished": ("case vanished", "cases vanished"),
    "skipped": ("case newly skipped", "cases newly skipped"),
    "lost": ("probe no longer handed out", "probes no longer handed out"),
    "new": ("case new", "cases new"),
    "not_run": ("case not run", "cases not run"),
}
"""What is counted, in the singular and the plural."""

_KINDS = ("kind of probes or cases", "kinds of probes or cases")
_LABELS = {"fell": "worse", "rose": "better"}


def add_command(commands: Any) -> None:
    """Declare the command."""
    own = command(
        commands, "diff", _diff, "say what got worse or better between two runs or benchmarks"
    )
    what = "the folder of a run, or a bench file"
    before, after = (given(name, what, Path) for name in "AB")
    own.add_argument("before", type=before, metavar="A", help=f"of the earlier: {what}")
    own.add_argument("after", type=after, metavar="B", help="of the later: the same kind")
    own.add_argument("--json", action="store_true", help="everything, as one JSON object")


def add_baseline(parser: argparse.ArgumentParser) -> None:
    """Offer the option that names an earlier run."""
    folder = given("--baseline", "a folder", Path)
    parser.add_argument(
        "--baseline", type=folder, metavar="DIR", help="an earlier run: exit 1 if this one is worse"
    )


def baseline_of(arguments: argparse.Namespace, port: str) -> Baseline | None:
    """Read the earlier run that the options name.

    Args:
        arguments: With `baseline` and `out`.
        port: Name of the port.

    Raises:
        UsageError: It cannot be compared with.
    """
    if arguments.baseline is None:
        return None
    return Baseline.read(arguments.baseline, arguments.out, port)


def _diff(arguments: argparse.Namespace) -> int:
    files = [path.is_file() for path in (arguments.before, arguments.after)]
    if all(files):
        return _bench_diff(arguments)
    if any(files):
        file, other = sorted((arguments.before, arguments.after), key=Path.is_file)[::-1]
        what = "a folder" if other.is_dir() else "not there"
        message = (
            f"{file} is a file, {other} is {what}: name two folders of runs, or two bench files"
        )
        raise UsageError(message)
    found = diff(arguments.before, arguments.after)
    if arguments.json:
        for text in _json(found, arguments.after):
            sys.stdout.write(text)
    else:
        object_ = found.as_json(arguments.after)
        for name in ("before", "after"):
            print(_run_text(name, object_[name]))
        control = [finding.as_json() for finding in found.control]
        print("\n".join(diff_lines({**found.facts(), "control": control})))
    if found.nothing:
        return int(ExitCode.USAGE)
    return int(ExitCode.NONCONFORMANT if found.regressed else ExitCode.CONFORMANT)


def _bench_diff(arguments: argparse.Namespace) -> int:
    found = bench_diff(arguments.before, arguments.after)
    if arguments.json:
        print(json.dumps(plain(found.as_json()), indent=1))
    else:
        print("\n".join(bench_lines(found)))
    if found.regressed:
        return int(ExitCode.NONCONFORMANT)
    return int(ExitCode.USAGE if found.nothing else ExitCode.CONFORMANT)


def print_verdict(lines: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Print the verdict of a run, and how it compares with its baseline.

    Args:
        lines: Its case lines.
        summary: What summary.json will say.
    """
    print("\n".join(verdict_lines(summary, lines, colour=wants_colour(sys.stdout))))
    if summary["baseline"] is not None:
        print("\n".join(diff_lines(summary["baseline"])))


def _json(found: Diff, folder: Path) -> Iterator[str]:
    """Yield the object of `--json` in pieces: a run can hold millions of probes that moved."""
    head = json.dumps(plain(found.as_json(folder)), indent=1)
    yield head.removesuffix("\n}") + ',\n "cases": ['
    for i, change in enumerate(found.cases.changes):
        yield (",\n  " if i else "\n  ") + json.dumps(plain(change.as_json()))
    yield "\n ]\n}\n"


def _run_text(name: str, run: Mapping[str, Any]) -> str:
    port = run["port"]
    told = f"{port['name']} {port['version']}, suite {run['suite']}, {run['started']}"
    return one_line(f"{name:6} {run['dir']}: {told}", _TEXT)


def diff_lines(facts: Mapping[str, Any]) -> list[str]:
    """Write a comparison for the terminal.

    Args:
        facts: `baseline` of summary.json; `control`, where the control moved too.

    Returns:
        A few lines, the worst first: what moved, by component and kind of probe.
    """
    regressions, control = facts["regressions"], facts.get("control", [])
    lead = "REGRESSION" if regressions or control else "NO REGRESSION"
    if not facts["cases"] and lead == "NO REGRESSION":
        lead = "NOTHING COMPARED: the two runs have no case in common that both judged;"
    lines = [one_line(f"{lead} against {facts['dir']}: {_counts_text(facts)}", _TEXT)]
    lines += [_fact("note", text) for text in facts["notes"]]
    lines += [_fact("begins", first["text"]) for first in facts["begins"]]
    lines += _findings("control", control, _CONTROL)
    lines += _findings("", regressions, _WORSE)
    lines += _findings("", facts["improvements"], _BETTER)
    held = facts.get("held", [])
    lines += [_fact("held", _held_text(item)) for item in held[:_HELD]]
    lines += _more(held, _HELD, ("configuration", "configurations"))
    slipped = facts.get("ratchet", [])
    for item in slipped[:_RATCHET]:
        ratios = f"{number_text(item['before'])}, now {number_text(float(item['after']))}"
        lines.append(_fact("ratchet", f"{item['case']}: the best ratio was {ratios}"))
    lines += _more(slipped, _RATCHET, ("case over twice its best", "cases over twice their best"))
    if facts["environment"]:
        lines.append(_fact("changed", changes_text(facts["environment"], _CHANGED)))
    return lines


def _held_text(item: Mapping[str, Any]) -> str:
    """Say by how much the peak of a configuration moved."""
    before, after = item["before"], item["after"]
    sizes = f"{size_text(before)} -> {size_text(after)} ({after - before:+,} bytes)"
    return f"{item['case']}: {sizes}"


def _counts_text(facts: Mapping[str, Any]) -> str:
    """Count what moved, and what there was to move."""
    texts = [
        f"{facts[key]} {words[facts[key] != 1]}" for key, words in _COUNTS.items() if facts[key]
    ]
    if facts.get("control"):
        texts.insert(0, "the control got worse, so the environment did")
    if not facts["cases"]:
        return ", ".join(texts) or "neither holds one"
    moved = ", ".join(texts) or "nothing moved beyond noise"
    probes, cases = facts["probes"], facts["cases"]
    compared = f"{counted(probes, 'probe')} in {counted(cases, 'case')}"
    return f"{moved}; {compared} compared"


def _findings(label: str, findings: list[Mapping[str, Any]], most: int) -> list[str]:
    lines = [
        _fact(label or _LABELS.get(found["what"], found["what"]), found["text"])
        for found in findings[:most]
    ]
    return lines + _more(findings, most, _KINDS)


def _more(items: list[Any], most: int, words: tuple[str, str]) -> list[str]:
    """Count what is not shown, in the singular or the plural."""
    more = len(items) - most
    return [_fact("", f"and {more} more {words[more != 1]}")] if more > 0 else []


def _fact(name: str, value: str) -> str:
    return f"  {name:<8} {one_line(value, _TEXT)}"
