"""What a benchmark found, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from conformance.bench.record import Row, quartiles

_UNITS = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "us")), "bytes": ((2**20, "MiB"), (1, "B"))}
_COLUMNS: tuple[str, ...] = (
    "",
    "sd1_impl",
    "middle half",
    "diffusers",
    "ratio",
    "paired, middle half",
    "CPU seconds",
    "GFLOP/s",
    "of peak",
    "a second",
)


def table(product: Row, rows: Sequence[Row]) -> list[str]:
    """Write the figures of `models.measure`; docs/bench.md explains the columns.

    Args:
        product: The seconds of a large product of matrices.
        rows: The others.

    Returns:
        Lines, the columns aligned.
    """
    kind = product.name.partition("[")[2].rstrip("]")  # dtype and device, those of all rows
    flops = product.facts["flops"]
    head = (
        f"{kind}: the peak is that of a large product of matrices, "
        f"{product.facts['peak'] / 1e9:,.1f} GFLOP/s at best and "
        f"{flops / product.value / 1e9:,.1f} in the median of {len(product.runs)}"
    )
    texts = [_COLUMNS]
    for row in rows:
        name = row.name.replace(f"[{kind}-", " ").replace("]", "")
        texts.append(_compared(name, row) if row.reference else _held(name, row))
    worst = max(row.facts["error"] for row in rows if row.reference)
    agree = f"outputs agree within {worst:.1e} (relative L2)"
    return [head, *aligned(texts), agree, *_compiling(rows)]


def _compared(name: str, row: Row) -> tuple[str, ...]:
    """Write the seconds of both."""
    others = row.reference.runs if row.reference else ()
    value, other = row.value, float(np.median(others))
    flops, peak, batch = (row.facts[key] for key in ("flops", "peak", "batch"))
    cpu = (row.facts["cpu seconds"], row.facts["reference cpu seconds"])
    return (
        name,
        figure(value, row.unit),
        between(*row.spread, row.unit),
        figure(other, row.unit),
        f"{value / other:.2f}",
        f"{np.median(row.ratios):.2f}, {between(*quartiles(row.ratios), 'ratio')}",
        " / ".join(f"{seconds:.3g}" for seconds in cpu),
        " / ".join(f"{flops / seconds / 1e9:,.0f}" for seconds in (value, other)),
        " / ".join(f"{flops / seconds / peak:.0%}" for seconds in (value, other)),
        " / ".join(f"{batch / seconds:.3g}" for seconds in (value, other)),
    )


def _held(name: str, row: Row) -> tuple[str, ...]:
    """Write the bytes of both."""
    other = row.facts["reference bytes"]
    ratio = f"{row.value / other:.2f}" if other else ""
    bytes_ = (figure(row.value, row.unit), "", figure(other, row.unit))
    return (name, *bytes_, ratio, "", "", "", "", "")


def _compiling(rows: Sequence[Row]) -> list[str]:
    """Say how long the first call of what is compiled took: it compiles."""
    return [
        f"{row.name}: first call {row.facts['first call']:.3g} s, "
        f"diffusers {row.facts['reference first call']:.3g} s"
        for row in rows
        if row.facts.get("compiled")
    ]


def figure(value: float, unit: str) -> str:
    """Write a figure with its unit: `1.23 s`, `45.6 ms`, `12.0 MiB`, `0.81`."""
    if unit not in _UNITS:
        return f"{value:.3g}"
    size, name = next((u for u in _UNITS[unit] if value >= u[0]), _UNITS[unit][-1])
    return f"{value / size:.3g} {name}" if unit == "s" else f"{value / size:,.1f} {name}"


def between(low: float, high: float, unit: str) -> str:
    """Write a range with one unit: `1.20 to 1.31 s`."""
    if unit not in _UNITS:
        return f"{low:.2f} to {high:.2f}"
    size, name = next((u for u in _UNITS[unit] if high >= u[0]), _UNITS[unit][-1])
    return f"{low / size:.3g} to {high / size:.3g} {name}"


def aligned(texts: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Write columns: the first to the left, the others to the right; or those that are named."""
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in texts
    ]
