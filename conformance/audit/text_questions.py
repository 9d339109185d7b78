"""The answers to what an audit was asked beside the profile, in plain text."""

from __future__ import annotations

import math

from conformance.audit.measure import Output, worst_output
from conformance.audit.report import Attention, Kept, Report
from conformance.audit.search import Found
from conformance.report.text import counted, number_text, one_line
from conformance.tolerance import LIMIT, badness

_BAR = 20


def questions_lines(report: Report) -> list[str]:
    """Write what `--keep`, `--target`, `--samples` and `--attention` found."""
    lines = []
    if report.kept:
        lines += ["", "== kept in float32 ==", *(line for k in report.kept for line in _kept(k))]
    if report.targets:
        lines += ["", "== fewest layers in float32 for the target =="]
        for case, found in report.targets.items():
            lines += _target(case, found)
    if report.samples:
        lines += ["", f"== {counted(report.samples[0].count, 'input')}: p50, p99, worst =="]
    for samples in report.samples:
        for name, spread in (
            ("error", samples.err),
            ("bits", samples.bits),
            ("ratio", samples.ratio),
        ):
            texts = [cell_text(spread[key]) for key in ("p50", "p99", "max")]
            lead = samples.case if name == "error" else ""
            lines.append(f"{lead:36s} {name:6s}" + "".join(f" {text:>9s}" for text in texts))
    if report.attention:
        lines += ["", *_attention(report.attention)]
    return lines


def _change(before: list[Output], after: list[Output]) -> str:
    """Write what changed in the output with the worst ratio."""
    old, new = worst_output(before), worst_output(after)
    bits = [f"{x.bits:.1f}" if x.bits is not None else "none" for x in (old, new)]
    ratios = [number_text(x.ratio) for x in (old, new)]
    return f"bits {bits[0]} -> {bits[1]}, ratio {ratios[0]} -> {ratios[1]} ({new.verdict})"


def _kept(kept: Kept) -> list[str]:
    count = f"{len(kept.layers)} of {counted(kept.of, 'layer')}"
    if not kept.layers:
        return [f"{kept.case}: no layer of it is named"]
    return [f"{kept.case}: {count}: {_change(kept.before, kept.after)}"]


def _target(case: str, found: Found) -> list[str]:
    effort = f"{counted(found.evaluations, 'evaluation')}"
    if not found.reached:
        ratios = f"ratio {number_text(found.before)}, with every layer in float32"
        text = f"{ratios} {number_text(found.with_all)} ({effort})"
        return [f"{case}: target {found.target:g} is not reached: {text}"]
    if not found.layers:
        return [f"{case}: ratio {number_text(found.before)} is under {found.target:g} as it is"]
    lead = "none of them can be left out" if found.minimal else "the search was cut short"
    ratios = f"{number_text(found.before)} to {number_text(found.ratio)}"
    count = f"{case}: {counted(len(found.layers), 'layer')} bring {ratios}"
    return [
        f"{count} (target {found.target:g}, {effort}; {lead}):",
        f"  {keep_option(found)}",
    ]


def cell_text(value: float | None) -> str:
    """Write a number for a narrow column."""
    return "NaN" if value is not None and math.isnan(value) else number_text(value)


def keep_option(found: Found) -> str:
    """Write the layers that a search found as the option that keeps them in float32."""
    return f"--keep '{','.join(found.globs)}'"


def _attention(attention: Attention) -> list[str]:
    """Write the table of an attention: the worst ratio over regimes, with a bar."""
    verdict = "FAILS" if attention.failed else "within"
    lines = [
        f"== attention {one_line(attention.function, 60)}: {verdict} the limit {LIMIT:g} ==",
        "size  keys   error over torch's attention (unit, sharp, outlier)   worst ratio",
    ]
    places = dict.fromkeys((c["size"], c["length"], c["causal"]) for c in attention.cells)
    for size, length, causal in places:
        cells = [
            c
            for c in attention.cells
            if (c["size"], c["length"], c["causal"]) == (size, length, causal)
        ]
        texts = [
            "none" if c["err"] is None else cell_text(c["err"] / c["sdpa"] if c["sdpa"] else None)
            for c in cells
        ]
        ratios = [c["ratio"] for c in cells if c["ratio"] is not None]
        worst = max(ratios, key=badness) if len(ratios) == len(cells) else None
        bar = "█" * round(_BAR * min(1.0, badness(LIMIT if worst is None else worst) / LIMIT))
        mark = "fail" if any(c["verdict"] == "fail" for c in cells) else "    "
        name = f"{size:4d} {length:5d}{' causal' if causal else '       '}"
        lines.append(
            f"{name}"
            + "".join(f" {text:>9s}" for text in texts)
            + f" {cell_text(worst):>9s} {mark} {bar}"
        )
    messages = dict.fromkeys(c["message"] for c in attention.cells if c["message"])
    lines += [f"  {one_line(message, 300)}" for message in list(messages)[:3]]
    for swap in attention.swaps:
        text = swap.message or f"{_change(swap.before, swap.after)}, {counted(swap.calls, 'call')}"
        lines.append(f"{swap.port:10s} {swap.case:30s} {one_line(text, 300)}")
    return lines
