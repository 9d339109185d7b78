"""The audit's page: one self-contained HTML file in the style of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conformance.audit.names import finite
from conformance.audit.profile import Profile
from conformance.audit.report import Report
from conformance.audit.text import bits_text, share_text
from conformance.audit.text_questions import keep_option
from conformance.report.html import assemble, data_block, digest, template_environment
from conformance.run_folder import write_whole
from conformance.tolerance import LIMIT

_NAME = "audit"
_KERNELS = 12


def write_page(report: Report, path: Path) -> None:
    """Write the page of an audit.

    Args:
        report: What was found.
        path: The file: UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    write_whole(path, [render(report)])


def render(report: Report) -> str:
    """Return the page of an audit."""
    environment = template_environment()
    environment.filters |= {"bits": bits_text, "share": share_text}
    environment.globals |= {"keep_option": keep_option, "rows_of": _stages, "grid": _grid}
    style, script = assemble([_NAME], ".css"), assemble([_NAME], ".js")
    plots = {name: [_plot(p) for p in rows] for name, rows in report.components().items()}
    return environment.get_template("audit.html").render(
        report=report,
        limit=LIMIT,
        kernels={name: rows[:_KERNELS] for name, rows in report.kernels.items()},
        style=style,
        script=script,
        style_digest=digest(style),
        script_digest=digest(script),
        data=data_block(plots),
        page_data=data_block({"limit": LIMIT}),
    )


def _plot(profile: Profile) -> dict[str, Any]:
    """Return what the script draws of one case."""
    numbers = ("err", "local", "noise", "share")
    return {
        "variant": profile.variant,
        "names": [layer.name for layer in profile.layers],
        "stages": [layer.stage for layer in profile.layers],
        **{name: [_short(getattr(layer, name)) for layer in profile.layers] for name in numbers},
    }


def _short(value: float | None) -> float | None:
    known = finite(value)
    return None if known is None else float(f"{known:.3g}")


def _stages(profiles: list[Profile]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of the table of stages: by profile how a stage ends, and its share."""
    tables = [profile.stages() for profile in profiles]
    shares = [profile.by("stage") for profile in profiles]
    rows = []
    for stage in dict.fromkeys(name for table in tables for name in table):
        cells = []
        for table, share in zip(tables, shares, strict=True):
            last = table[stage][-1] if stage in table else None
            local = [layer.local for layer in table.get(stage, []) if layer.local is not None]
            cells.append(
                {
                    "bits": last and last.bits,
                    "ratio": last and last.ratio,
                    "local": max(local, default=None),
                    "share": share.get(stage) if last else None,
                }
            )
        rows.append((stage, cells))
    return rows


def _grid(cells: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of an attention's table: a head size and length, by regime."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        causal = ", causal" if cell["causal"] else ""
        found.setdefault(f"{cell['size']} x {cell['length']}{causal}", []).append(cell)
    return list(found.items())
