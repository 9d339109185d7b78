"""The file that a benchmark leaves: rows of figures, and the machine on which they were taken."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conformance import __version__
from conformance.environment import Facts, environment
from conformance.errors import UsageError
from conformance.run_folder import try_to_write, write_whole

FORMAT = 1
"""Of the file; another number is another meaning of its keys."""

BENCHES = ("models", "suite", "load", "budget")
UNITS = ("s", "bytes", "ratio")
LESS, MORE = "less", "more"

_OWN = ("bench", "format", "suite", "environment", "rows")


@dataclass(frozen=True)
class Reference:
    """What the same thing takes in another implementation, in the same process.

    Attributes:
        name: Its name, such as `diffusers`.
        runs: One for each run of the row, taken right beside it.
    """

    name: str
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: What was measured; the row's identity from file to file.
        unit: One of `UNITS`; a ratio needs no machine to be compared.
        value: The median of the runs; of what was counted, the count.
        runs: Every measurement, in order; none where the figure is counted, not measured: such
            a figure is exact.
        better: Whether `less` of it is better, or `more`.
        reference: The same of another implementation; None where there is none.
        facts: What else is known of it, by name: strict JSON.
    """

    name: str
    unit: str
    value: float
    runs: tuple[float, ...] = ()
    better: str = LESS
    reference: Reference | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def measured(
        cls,
        name: str,
        unit: str,
        runs: Sequence[float],
        *,
        better: str = LESS,
        reference: Reference | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Row:
        """Make a row of measurements, at least one."""
        value = float(np.median(runs))
        return cls(name, unit, value, tuple(runs), better, reference, facts or {})

    @classmethod
    def counted(
        cls,
        name: str,
        unit: str,
        value: float,
        *,
        better: str = LESS,
        facts: Mapping[str, Any] | None = None,
    ) -> Row:
        """Make a row of an exact figure, such as predicted bytes: it moves by what it moves."""
        return cls(name, unit, value, (), better, None, facts or {})

    def __post_init__(self) -> None:
        """Refuse what no file can hold.

        Raises:
            ValueError: A unit or direction that does not exist, a figure that is not finite or is
                negative, a reference that was not measured as often.
        """
        runs = (*self.runs, *(self.reference.runs if self.reference else ()))
        if self.unit not in UNITS:
            message = f"{self.name}: unit is {self.unit!r}, expected one of {', '.join(UNITS)}"
        elif self.better not in {LESS, MORE}:
            message = f"{self.name}: better is {self.better!r}, expected {LESS} or {MORE}"
        elif not all(math.isfinite(x) and x >= 0 for x in (self.value, *runs)):
            message = f"{self.name}: a figure is negative or not finite"
        elif self.reference and len(self.reference.runs) != len(self.runs):
            message = f"{self.name}: {len(self.runs)} runs, {len(self.reference.runs)} beside them"
        else:
            return
        raise ValueError(message)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the first and third quartile of the runs: their middle half."""
        return quartiles(self.runs or (self.value,))

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return each run over the run of the reference beside it; none without a reference."""
        others = self.reference.runs if self.reference else ()
        return tuple(a / b for a, b in zip(self.runs, others, strict=False) if b)

    def as_json(self) -> dict[str, Any]:
        """Return it as the file has it."""
        row: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "value": self.value,
            "spread": list(self.spread),
            "runs": list(self.runs),
            "better": self.better,
        }
        if self.reference:
            others = self.reference.runs
            row["reference"] = {
                "name": self.reference.name,
                "value": float(np.median(others)),
                "spread": list(quartiles(others)),
                "runs": list(others),
            }
            row["ratio"] = float(np.median(self.ratios))
        return row | ({"facts": dict(self.facts)} if self.facts else {})


def quartiles(runs: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile of runs, at least one."""
    low, high = np.quantile(runs, (0.25, 0.75))
    return float(low), float(high)


@dataclass(frozen=True)
class BenchFile:
    """A benchmark that was read.

    Attributes:
        path: Where from.
        bench: One of `BENCHES`.
        suite: Version of the suite that measured.
        environment: Facts of the machine, by name.
        rows: By name.
        extra: What else the file says.
    """

    path: Path
    bench: str
    suite: str
    environment: Facts
    rows: dict[str, Row]
    extra: dict[str, Any]


def require_writable(path: Path) -> None:
    """Check before measuring that the result can be kept.

    Raises:
        UsageError: It cannot.
    """
    what = "it is a folder"
    if not path.is_dir():
        try:
            try_to_write(path.absolute().parent)
        except OSError:
            what = "its folder has to exist and be writable"
        else:
            return
    message = f"cannot write {path}: {what}"
    raise UsageError(message)


def write(
    path: Path, bench: str, rows: Iterable[Row], extra: Mapping[str, Any] | None = None
) -> None:
    """Write a bench file, with the environment of this process.

    Args:
        path: The file; one that is there is replaced.
        bench: One of `BENCHES`.
        rows: The figures; no two of one name.
        extra: More keys of the file.

    Raises:
        UsageError: It cannot be written.
    """
    found = {"bench": bench, "format": FORMAT, "suite": __version__, "environment": environment()}
    found |= {"rows": [row.as_json() for row in rows], **(extra or {})}
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    try:
        write_whole(path, [text])
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise UsageError(message) from error


def read(path: Path) -> BenchFile:
    """Read a bench file.

    Args:
        path: What `write` wrote.

    Raises:
        UsageError: There is none, it is something else, or of another format; the message names
            the key.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise UsageError(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{path} is no bench file: it is no JSON ({error})"
        raise UsageError(message) from error
    if not isinstance(found, dict) or not isinstance(found.get("bench"), str):
        message = f"{path} is no bench file: it has no key `bench`; `bench --out FILE` writes one"
        raise UsageError(message)
    if found.get("format") != FORMAT:
        message = (
            f"{path} is a bench file of format {found.get('format')!r}, this suite "
            f"({__version__}) reads {FORMAT}: measure again with this one, or read it with the "
            f"suite that wrote it ({found.get('suite')})"
        )
        raise UsageError(message)
    try:
        rows = [_row(entry) for entry in found["rows"]]
        facts = {str(name): str(value) for name, value in found["environment"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        message = f"{path} is a damaged bench file: {what}"
        raise UsageError(message) from error
    names = [row.name for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        message = f"{path} is a damaged bench file: it has two rows {twice}"
        raise UsageError(message)
    extra = {key: value for key, value in found.items() if key not in _OWN}
    return BenchFile(
        path, found["bench"], str(found.get("suite")), facts, {r.name: r for r in rows}, extra
    )


def _row(entry: Mapping[str, Any]) -> Row:
    """Read a row; quartiles and ratio follow from its runs.

    Raises:
        KeyError: A key is missing.
        TypeError: It is no row.
        ValueError: A value cannot be.
    """
    other = entry.get("reference")
    reference = other and Reference(str(other["name"]), tuple(map(float, other["runs"])))
    return Row(
        name=str(entry["name"]),
        unit=entry["unit"],
        value=float(entry["value"]),
        runs=tuple(map(float, entry["runs"])),
        better=entry["better"],
        reference=reference or None,
        facts=entry.get("facts", {}),
    )
