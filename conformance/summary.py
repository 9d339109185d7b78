"""The verdict of a run: what summary.json says, drawn from the case lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from conformance import __version__, spec
from conformance.case import COMPONENTS, all_cases
from conformance.errors import ExitCode
from conformance.golden import SPLICE
from conformance.levels import depth, level, missing_probes, next_level
from conformance.port import Hello
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.spec import BLOCKS
from conformance.tolerance import LIMIT, badness
from conformance.witness import stamp

VERDICTS = ("pass", "warn", "fail", "error", "skip", "xfail", "xpass")
REAL_WEIGHTS = "real-weights"


def _missing(offered: Collection[str]) -> list[str]:
    """Return the components that a port lacks; `scheduler/*` where it has no scheduler at all."""
    missing = [name for name in COMPONENTS if name not in {*BLOCKS, *offered}]
    for family in (SCHEDULERS, PIPELINES):
        if set(family) <= set(missing):
            place = missing.index(family[0])
            missing[place : place + len(family)] = [f"{family[0].partition('/')[0]}/*"]
    return missing


def summarise(
    lines: list[dict[str, Any]],
    port: dict[str, str],
    hello: Hello,
    scope: str,
    xfails: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw the verdict of a run.

    Args:
        lines: Case lines.
        port: Name, version and spec of the port.
        hello: What the port offers.
        scope: What was run.
        xfails: What is to be said of the list of expected failures, if there is one.

    Returns:
        The contents of summary.json but for environment, seconds and options.
    """
    counted = Counter(line["verdict"] for line in lines)
    counts = {verdict: counted[verdict] for verdict in VERDICTS}
    if counts["fail"] or counts["xpass"] or (xfails and xfails["problems"]):
        verdict = "nonconformant"
    elif counts["error"] or not counts["pass"] + counts["warn"] + counts["xfail"]:
        verdict = "incomplete"
    else:
        verdict = "conformant"
    ratios = [float(line["ratio"]) for line in lines if line["ratio"] is not None]
    missing = _missing(hello.components)
    return {
        "suite": __version__,
        "port": port,
        "verdict": verdict,
        "scope": scope + (f"; not offered: {', '.join(missing)}" if missing else ""),
        "level": level(lines),
        "next_level": next_level(lines, hello.components),
        "depth": depth(lines),
        "missing_probes": missing_probes(lines),
        "offers": list(hello.components),
        "stamps": [REAL_WEIGHTS] if stamp(lines) else [],
        "counts": counts,
        "limit": LIMIT,
        "worst_ratio": max(ratios, key=badness) if ratios else None,
        "first_divergence": earliest(lines),
        "faults": [],
        "xfails": xfails,
    }


def earliest(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first divergence earliest in execution order; of equals, the clearest.

    An expected failure is none. Of a component, what splice mode found comes first. Settings of SD
    v1 come before others: a port that ignores those is told so last.
    """
    found = [line for line in lines if line["first_divergence"] and line["verdict"] == "fail"]
    beyond_sd1 = {case.id for case in all_cases() if case.scenario.asks} if found else set()

    def position(line: dict[str, Any]) -> tuple[int, bool, bool, tuple[int, ...], int, float]:
        component, first = line["component"], line["first_divergence"]
        outputs = [p["name"] for p in line["probes"] if p["kind"] == "output"]
        return (
            COMPONENTS.index(component),
            line["case"].partition("[")[0] in beyond_sd1,
            line["mode"] != SPLICE,
            spec.place(component, first["probe"]),
            outputs.index(first["probe"]) if first["probe"] in outputs else -1,
            -badness(float(first["ratio"])),
        )

    return min(found, key=position)["first_divergence"] if found else None


def exit_code(summary: dict[str, Any]) -> ExitCode:
    """Translate a verdict to an exit code."""
    return {
        "conformant": ExitCode.CONFORMANT,
        "nonconformant": ExitCode.NONCONFORMANT,
        "incomplete": ExitCode.BROKEN,
    }[summary["verdict"]]
