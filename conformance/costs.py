"""What cases cost: `golden/spec/costs.json`, written from runs by `python -m conformance.costs`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from conformance.case import Case
from conformance.errors import GoldenError, SuiteError, UsageError
from conformance.execution import MEMORY, Execution
from conformance.report.text import one_line
from conformance.run_folder import RESULTS, write_whole
from conformance.run_records import read_records
from sd1_weights.names import golden_root

_UNKNOWN = 1.0
"""Seconds of an item, where nothing at all is recorded."""

_IMAGINED = 1.5
"""Seconds of an item of mode `memory`, of any size: nothing is computed."""

_LEAST = 0.005
"""Seconds of any item: the line of one that takes no time has to be written too."""


def group_name(component: str, variant: str, dtype: str) -> str:
    """Return the name of what is loaded at once: a network in one arithmetic."""
    return f"{component}/{variant}[{dtype}]"


def group_of(case: Case, run: Execution) -> str:
    """Return what an item loads; those of mode `memory` load no weights."""
    return group_name(
        case.component, case.variant.name, run.mode if run.mode == MEMORY else run.dtype
    )


@dataclass(frozen=True)
class Costs:
    """Recorded costs.

    Attributes:
        items: Seconds by item id.
        loads: Seconds by `group_name`.
    """

    items: Mapping[str, float]
    loads: Mapping[str, float]

    @classmethod
    def recorded(cls) -> Costs:
        """Read `golden/spec/costs.json`.

        Raises:
            GoldenError: It is missing or damaged.
        """
        path = _path()
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return cls(_seconds(facts["items"]), _seconds(facts["loads"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path}: {error}; restore it, or write it: python -m conformance.costs"
            raise GoldenError(message) from error

    def of(self, case: Case, run: Execution) -> float:
        """Return the seconds of an item; of one that is not recorded, the median of those alike."""
        if run.mode == MEMORY:
            return _IMAGINED
        known = self.items.get(run.item_id(case))
        if known is None:
            names = (f"{case.component}/{case.variant.name}", case.component, "")
            known = next((self._medians[n] for n in names if n in self._medians), _UNKNOWN)
        return max(known, _LEAST)

    @cached_property
    def _medians(self) -> dict[str, float]:
        """By component and variant, by component, and of all."""
        found: dict[str, list[float]] = {}
        for item, cost in self.items.items():
            network = item.partition("[")[0].rpartition("/")[0]
            for name in (network, network.rpartition("/")[0], ""):
                found.setdefault(name, []).append(cost)
        return {name: median(costs) for name, costs in found.items()}


def _path() -> Path:
    return golden_root() / "spec" / "costs.json"


def _seconds(given: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(cost) for name, cost in given.items()}


@dataclass(frozen=True)
class _Timed:
    """A line of a run: how long an item took, and whether its network had to be loaded."""

    item: str
    group: str
    mode: str
    seconds: float
    loads: bool


def measured(paths: Iterable[Path]) -> dict[str, Any]:
    """Measure what cases cost from the results of runs in one process (`-n 1`).

    The first case of a network that was just loaded takes longer than others of its mode: the
    difference is the load's. Of several measurements the median is taken.

    Args:
        paths: Files `results.jsonl`, or folders that hold one.

    Returns:
        The contents of costs.json.

    Raises:
        UsageError: One of them holds no results.
    """
    items: dict[str, list[float]] = {}
    loads: dict[str, list[float]] = {}
    sources = []
    for path in paths:
        header, *lines = _lines(path / RESULTS if path.is_dir() else path)
        sources.append(_source(header))
        rows = list(_timed(lines))
        for row in rows:
            load = _load(row, rows) if row.loads else 0.0
            items.setdefault(row.item, []).append(row.seconds - load)
            if load:
                loads.setdefault(row.group, []).append(load)
    return {
        "unit": "seconds, in one process",
        "measured": list(dict.fromkeys(sources)),
        "loads": {name: _rounded(median(loads[name])) for name in sorted(loads)},
        "items": {name: _rounded(median(items[name])) for name in sorted(items)},
    }


def _load(row: _Timed, rows: Iterable[_Timed]) -> float:
    """Return how much longer a case took than others that found their network loaded."""
    alike = [
        other.seconds
        for other in rows
        if other.group == row.group and other.mode == row.mode and not other.loads
    ]
    return max(0.0, row.seconds - median(alike)) if alike else 0.0


def _timed(lines: Iterable[Mapping[str, Any]]) -> Iterator[_Timed]:
    """Yield what was measured, once an item: pytest writes a line a block."""
    before = ""
    seconds: dict[str, float] = {}
    found: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        item = line["case"].partition("::")[0]
        if line["verdict"] not in {"skip", "error"} and line["mode"] != MEMORY:
            seconds[item] = seconds.get(item, 0.0) + float(line["seconds"])
            found.setdefault(item, line)
    for item, line in found.items():
        group = group_name(line["component"], line["variant"], line["dtype"])
        yield _Timed(item, group, line["mode"], seconds[item], loads=group != before)
        before = group


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the header of a run and its case lines."""
    try:
        header, *lines = read_records(path)
    except (OSError, ValueError) as error:
        message = f"{path} holds no results of a run: give folders that `run -n 1 --out` wrote"
        raise UsageError(message) from error
    return [header, *(line for line in lines if line["type"] == "case")]


def _source(header: Mapping[str, Any]) -> str:
    """Say what was measured, where."""
    port, machine = header["port"], header["environment"]
    return ", ".join(
        one_line(text, 60)
        for text in (
            f"{port['name']} {port['version']}",
            f"suite {header['suite']}",
            str(machine.get("machine", "?")),
            f"torch {machine.get('torch', '-')}",
        )
    )


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.3g}")


def main(argv: list[str] | None = None) -> int:
    """Write `golden/spec/costs.json`.

    Args:
        argv: Folders of runs; None for the arguments of the process.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m conformance.costs", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="folders of runs with -n 1")
    try:
        facts = measured(parser.parse_args(argv).results)
    except SuiteError as error:
        parser.error(str(error))
    write_whole(_path(), [json.dumps(facts, indent=1), "\n"])
    sys.stdout.write(f"{_path()}: {len(facts['items'])} items, {len(facts['loads'])} loads\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
