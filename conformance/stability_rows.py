"""What a run shows, row by row in execution order, and comparing two runs of a port.

A row is a probe, an output, or one step of an output that holds every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from conformance import spec, tolerance
from conformance.case import Case
from conformance.compare import Record, max_abs_of, misshapen, relative_error, rms_of
from conformance.golden import Golden
from conformance.port import Arrays
from conformance.sampling import TIMESTEPS, step_name
from conformance.training import scale_name

Rows = dict[str, np.ndarray]


def rows_of(case: Case, golden: Golden, outputs: Arrays, probes: Arrays) -> Rows:
    """Return copies of what a port showed, in execution order.

    Args:
        case: The case.
        golden: Says of which outputs the steps are kept one by one.
        outputs: By name.
        probes: By name.
    """
    rows = dict(probes)
    for name, array in outputs.items():
        if name in golden.sketched and name not in golden.probes:
            rows |= {step_name(name, k): step for k, step in enumerate(array)}
        else:
            rows[name] = array
    names: Iterable[str] = rows
    if not case.is_network:
        names = sorted(rows, key=lambda name: spec.place(case.component, name))
    return {name: np.array(rows[name]) for name in names}


@dataclass(frozen=True)
class Unit:
    """What an error of a row is measured by.

    Attributes:
        norm: L2 norm of the oracle's tensor.
        size: Number of its elements.
        noise: The reference's own relative error.
    """

    norm: float
    size: int
    noise: float

    def norm_of(self, row: np.ndarray) -> float:
        """Return the norm of a row that may be a part of the tensor: that of so many elements."""
        return self.norm * math.sqrt(row.size / self.size) if self.size else 0.0


def units_of(golden: Golden, arithmetic: str) -> dict[str, Unit]:
    """Return the unit of every row that a golden judges by noise, by name."""
    noise, outputs = golden.noise.get(arithmetic, ()), golden.output_noise.get(arithmetic, {})
    rows = zip(golden.probes, golden.norms.tolist(), golden.shapes, noise, strict=False)
    units = {name: Unit(norm, math.prod(shape), float(own)) for name, norm, shape, own in rows}
    for name, own in outputs.items():
        if name in golden.outputs or name in golden.large:
            norm, size = golden.output_norm(scale_name(name)), math.prod(golden.output_shapes[name])
            units[name] = Unit(norm, size, float(own[0]))
    return units


@dataclass(frozen=True)
class Ruler:
    """Compares rows of two runs in one arithmetic.

    Attributes:
        units: By row.
        arithmetic: What was computed in.
        outputs: Names of the outputs; all else are probes.
        exact: Whether bits must agree; else the difference is judged in units of noise.
    """

    units: dict[str, Unit]
    arithmetic: str
    outputs: frozenset[str]
    exact: bool

    def compare(self, before: Rows, after: Rows) -> list[Record]:
        """Compare two runs, row by row.

        Args:
            before: What the first run showed, or the part of it that the second has to equal.
            after: What the second one showed.

        Returns:
            A record a row. In units of noise there is none of what no noise was recorded of:
            tables, pixels, steps that no golden keeps.
        """
        records = []
        for name, own in before.items():
            other = after.get(name)
            kind = "output" if name.partition("#")[0] in self.outputs else "probe"
            if other is None:
                records.append(_gone(name, kind, own))
            elif other.shape != own.shape or other.dtype != own.dtype:
                records.append(misshapen(name, kind, other, own.shape))
            elif self.exact or name == TIMESTEPS or own.dtype.kind not in "fu":
                records.append(self._bits(name, kind, own, other))
            elif name in self.units:
                records.append(self._noise(name, kind, own, other))
        return records

    def _bits(self, name: str, kind: str, own: np.ndarray, other: np.ndarray) -> Record:
        """Judge a row that must have the same bits."""
        unit, changed = self.units.get(name), differing(own, other)
        count = int(np.count_nonzero(changed))
        record = self._record(name, kind, other, 0.0, unit)
        if count:
            text = f"{count} of {own.size} elements differ"
            if own.dtype.kind == "f":
                record.err = _error(own, other, unit)
                text += f", by up to {ulps(own, other, self.arithmetic)}"
                if unit is not None:
                    ratio = tolerance.ratio(record.err, unit.noise, self.arithmetic)
                    text += f"; error {ratio:.2g} times the noise"
            record.ratio, record.verdict, record.note = float("inf"), "fail", text
        return record

    def _noise(self, name: str, kind: str, own: np.ndarray, other: np.ndarray) -> Record:
        """Judge a row whose difference may be rounding noise."""
        unit = self.units[name]
        record = self._record(name, kind, other, _error(own, other, unit), unit)
        record.ratio = tolerance.ratio(record.err, unit.noise, self.arithmetic)
        record.verdict = tolerance.verdict(record.ratio)
        if record.verdict == "fail":
            count = int(np.count_nonzero(differing(own, other)))
            record.note = f"{count} of {own.size} elements differ"
        return record

    @staticmethod
    def _record(name: str, kind: str, row: np.ndarray, err: float, unit: Unit | None) -> Record:
        noise = unit.noise if unit else 0.0
        return Record(
            name, kind, list(row.shape), err, noise, 0.0, "pass", approximate=False,
            rms=rms_of(row) if row.dtype.kind in "fiu" else float("nan"),
            max_abs=max_abs_of(row) if row.dtype.kind in "fi" else float("nan"),
        )  # fmt: skip


def _gone(name: str, kind: str, row: np.ndarray) -> Record:
    nan = float("nan")
    return Record(
        name,
        kind,
        list(row.shape),
        nan,
        nan,
        nan,
        "fail",
        approximate=False,
        note="it is not shown",
    )


def _error(own: np.ndarray, other: np.ndarray, unit: Unit | None) -> float:
    """Return the L2 distance of two rows over the oracle's norm, or over their own."""
    with np.errstate(all="ignore"):
        wide = own.astype(np.float64)
        distance = float(np.linalg.norm(other.astype(np.float64) - wide))
        return relative_error(distance, unit.norm_of(own) if unit else float(np.linalg.norm(wide)))


def differing(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which elements of two arrays of one shape and dtype have other bits."""
    if own.dtype.kind != "f":
        return np.asarray(own != other)
    bits = f"u{own.dtype.itemsize}"
    return np.asarray(
        np.ascontiguousarray(own).view(bits) != np.ascontiguousarray(other).view(bits)
    )


_BFLOAT16_STEP = 1 << 16
"""One step of bfloat16 is so many of the float32 that it travels in."""


def ulps(own: np.ndarray, other: np.ndarray, arithmetic: str) -> str:
    """Say by how many units in the last place two floating arrays differ at most."""
    changed = differing(own, other)
    own, other = own[changed], other[changed]
    if not (np.isfinite(own).all() and np.isfinite(other).all()):
        return "values that are not finite"
    first, second = _ordered(own), _ordered(other)
    apart = np.maximum(first, second).astype(np.uint64) - np.minimum(first, second).astype(
        np.uint64
    )
    most = int(apart.max())
    if arithmetic == "bfloat16":
        most //= _BFLOAT16_STEP
    return f"{most:,} ulps" if most != 1 else "1 ulp"


def _ordered(array: np.ndarray) -> np.ndarray:
    """Return floats as integers that count in units in the last place, through zero."""
    bits = np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}").astype(np.int64)
    lowest = -(1 << (8 * array.dtype.itemsize - 1))
    return np.where(bits < 0, lowest - bits, bits)
