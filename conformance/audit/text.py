"""An audit in plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from conformance.audit.measure import Output
from conformance.audit.picture import bits_picture
from conformance.audit.profile import Layer, Profile
from conformance.audit.report import Report
from conformance.audit.text_questions import cell_text, questions_lines
from conformance.report.text import MISSING, counted, number_text, one_line, shorten
from conformance.tolerance import LIMIT

_NAME, _KINDS, _WORST = 46, 5, 10
_TINY = 0.0005
"""Shares below are written as 0."""


def report_lines(report: Report) -> list[str]:
    """Write an audit for the terminal, about 80 columns wide.

    Args:
        report: What was found.

    Returns:
        Lines: for each component at most 60, then the answers to what else was asked, then the
        environment.
    """
    who = f"{one_line(report.port, 60)} {one_line(report.version, 40)}"
    lines = [
        f"{who} in {report.dtype} on {report.device}, against the oracle in float64",
        f"a ratio is an error over the reference's own noise in {report.dtype}: limit {LIMIT:g}",
    ]
    if report.policy:
        rules = ", ".join(f"{glob} {a}" for glob, a in report.policy.items())
        lines.append(f"policy: {one_line(rules, 200)}")
    for component, profiles in report.components().items():
        lines += ["", *_component(component, profiles)]
    lines += [f"{case}: not audited: {one_line(why, 300)}" for case, why in report.skipped.items()]
    lines += questions_lines(report)
    return [line.rstrip() for line in lines + _environment(report)]


def _component(component: str, profiles: list[Profile]) -> list[str]:
    lines = [f"== {component} =="]
    for profile in profiles:
        lines += [f"{profile.case} (noise: {profile.noise})", *map(output_line, profile.outputs)]
        lines += [f"  {one_line(note, 200)}" for note in profile.notes]
    with_layers = [profile for profile in profiles if profile.layers]
    for profile in with_layers:
        lines.append(f"bits right over {counted(len(profile.layers), 'probe')}, {profile.variant}")
        bits = [layer.bits for layer in profile.layers]
        lines += bits_picture(bits, [layer.stage for layer in profile.layers])
    if with_layers:
        lines += _stages(with_layers)
        for profile in with_layers:
            lines += _worst(profile)
    return lines


def output_line(output: Output) -> str:
    """Write the errors of one output in one line."""
    return (
        f"  {output.name:18s} {bits_text(output.bits)} bits right (worst element "
        f"{bits_text(output.worst_bits)}), error {number_text(output.err)}, "
        f"ratio {number_text(output.ratio)} {output.verdict}"
    )


def bits_text(bits: float | None) -> str:
    """Write a number of bits."""
    return MISSING if bits is None else f"{bits:.1f}"


def share_text(share: float | None) -> str:
    """Write a share in percent."""
    if share is None:
        return MISSING
    return "0" if abs(share) < _TINY else f"{100 * share:.1f} %"


def _stages(profiles: list[Profile]) -> list[str]:
    """Write a table: of every stage the bits at its end, and its share of the output's error."""
    head = "".join(f" | {p.variant:^26s}" for p in profiles)
    under = " | bits  ratio  local   share" * len(profiles)
    lines = [f"{'':16s}{head}", f"{'stage':16s}{under}"]
    tables = [profile.stages() for profile in profiles]
    shares = [profile.by("stage") for profile in profiles]
    for stage in dict.fromkeys(name for table in tables for name in table):
        cells = [
            _stage_cell(table.get(stage, []), share.get(stage))
            for table, share in zip(tables, shares, strict=True)
        ]
        lines.append(f"{shorten(stage, 16):16s}" + "".join(f" | {cell}" for cell in cells))
    for profile in profiles:
        if profile.explained is None:
            continue
        kinds = list(profile.by("kind").items())[:_KINDS]
        text = ", ".join(f"{kind} {share_text(share)}" for kind, share in kinds)
        total = f"{100 * profile.explained:.0f} %"
        lines.append(f"of the squared error, {profile.variant}: {text}; together {total}")
    return lines


def _stage_cell(layers: list[Layer], share: float | None) -> str:
    if not layers:
        return f"{MISSING:26s}"
    last = layers[-1]
    local = max((layer.local for layer in layers if layer.local is not None), default=None)
    return (
        f"{bits_text(last.bits):>4s} {cell_text(last.ratio):>6s} {cell_text(local):>7s}"
        f" {share_text(share):>6s}"
    )


def _worst(profile: Profile) -> list[str]:
    rows = profile.worst(_WORST)
    shared = profile.explained is not None
    what = "the layers that cost most" if shared else "the layers with the largest local error"
    lines = [f"{f'{what}, {profile.variant}':{_NAME}s}  share    local    trace  gain"]
    for layer in rows:
        name = layer.name if len(layer.name) <= _NAME else f"…{layer.name[1 - _NAME :]}"
        lines.append(
            f"{name:{_NAME}s} {share_text(layer.share):>6s} {cell_text(layer.local):>8s} "
            f"{cell_text(layer.err):>8s} {cell_text(layer.gain):>5s}"
        )
    return lines


def _environment(report: Report) -> list[str]:
    """Write what rounds numbers: dtype, device, threads, switches, kernels."""
    facts = report.environment
    names = ("torch", "cpu", "cpu capability", "torch threads", "mkl", "onednn version", "MKL_CBWR")
    known = [f"{name} {facts[name]}" for name in names if facts.get(name)]
    if report.device != "cpu":
        known += [f"{name} {v}" for name, v in facts.items() if name.startswith(("cuda", "cudnn"))]
    lines = ["", "== environment ==", *_wrapped(f"{report.dtype} on {report.device}", known)]
    if report.switches:
        on = [f"{name} {value}" for name, value in report.switches.items()]
        lines += _wrapped("switches", on)
    for component, kernels in report.kernels.items():
        rows = [f"{row['name']} x{row['count']}" for row in kernels]
        lines += _wrapped(f"kernels of {component}", rows[:8])
    return lines


_WIDTH = 100


def _wrapped(lead: str, parts: Iterable[str]) -> list[str]:
    """Write parts after a lead, as many on a line as fit."""
    lines, line = [], f"{lead}: "
    for part in (one_line(part, _WIDTH) for part in parts):
        if len(line) + len(part) > _WIDTH and line.strip():
            lines.append(line.rstrip(", "))
            line = "  "
        line += f"{part}, "
    return [*lines, line.rstrip(", :")] if line.strip(" :,") else lines
