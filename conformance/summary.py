"""The verdict of a run: what summary.json says, drawn from the case lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from conformance import __version__
from conformance.case import COMPONENTS, all_cases
from conformance.errors import ExitCode
from conformance.execution import MEMORY
from conformance.levels import depth, level, missing_probes, next_level
from conformance.port import Hello
from conformance.position import position
from conformance.report.text import case_name
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.spec import BLOCKS
from conformance.stamps import stamps, stamps_missing
from conformance.tolerance import LIMIT, badness
from conformance.training import TRAININGS
from conformance.witness import is_witness

VERDICTS = ("pass", "warn", "fail", "error", "skip", "xfail", "xpass")


def _missing(offered: Collection[str]) -> list[str]:
    """Return the components that a port lacks; `scheduler/*` where it has no scheduler at all."""
    missing = [name for name in COMPONENTS if name not in {*BLOCKS, *offered}]
    for family in (SCHEDULERS, PIPELINES, TRAININGS):
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
    control: dict[str, Any] | None = None,
    missing_shards: Sequence[str] = (),
) -> dict[str, Any]:
    """Draw the verdict of a run.

    Args:
        lines: Case lines.
        port: Name, version and spec of the port.
        hello: What the port offers.
        scope: What was run.
        xfails: What is to be said of the list of expected failures, if there is one.
        control: What is to be said of the reference in the same job, if it was run.
        missing_shards: Parts of the run that are not there: what they hold may be wrong.

    Returns:
        The contents of summary.json but for environment, seconds and options.
    """
    counted = Counter(line["verdict"] for line in lines)
    counts = {verdict: counted[verdict] for verdict in VERDICTS}
    ratios = [float(line["ratio"]) for line in lines if line["ratio"] is not None]
    missing = _missing(hello.components)
    return {
        "suite": __version__,
        "port": port,
        "verdict": verdict_of(counts, xfails or {}, control or {}, missing_shards),
        "scope": "; ".join(
            [
                scope,
                *_listed("skipped", _skipped(lines)),
                *_listed("not offered", missing),
            ]
        ),
        "level": level(lines),
        "next_level": next_level(lines, hello.components),
        "depth": depth(lines),
        "missing_probes": missing_probes(lines),
        "offers": list(hello.components),
        "stamps": stamps(lines, hello),
        "stamps_missing": stamps_missing(lines, hello),
        "counts": counts,
        "selection": _selection(lines),
        "memory": _held(lines),
        "limit": LIMIT,
        "worst_ratio": max(ratios, key=badness) if ratios else None,
        "first_divergence": earliest(lines),
        "faults": [],
        "xfails": xfails,
        "control": control,
        "baseline": None,
        "missing_shards": list(missing_shards),
    }


def _listed(lead: str, names: Sequence[str]) -> list[str]:
    return [f"{lead}: {', '.join(names)}"] if names else []


def _skipped(lines: Collection[Mapping[str, Any]]) -> list[str]:
    """Return the arithmetics, devices, backends and modes of which every case was skipped.

    Where nothing at all was judged they are not told apart.
    """
    judged = [line for line in lines if line["verdict"] != "skip"]
    if not judged:
        return []
    found: dict[str, None] = {}
    for axis in ("dtype", "device", "backend", "mode"):
        known = {line[axis] for line in judged}
        found |= dict.fromkeys(line[axis] for line in lines if line[axis] not in {"", *known})
    return list(found)


def _selection(lines: Collection[dict[str, Any]]) -> dict[str, int]:
    """Count the cases that were run, and those that the suite has of the same kind.

    Of the same kind are cases of a component and variant of which any was run.
    """
    own = [line for line in lines if line["mode"] != MEMORY]
    names = {case_name(line["case"]) for line in own if not is_witness(line)}
    kinds = {name.rpartition("/")[0] for name in names}
    known = {case.id for case in all_cases() if case.id.rpartition("/")[0] in kinds}
    return {"cases": len(names), "of": len(known | names)}


def _held(lines: Collection[dict[str, Any]]) -> dict[str, int] | None:
    """Count the memory budgets that were judged, and those that were not kept; None for none."""
    verdicts = [n["verdict"] for n in lines if n["mode"] == MEMORY and n["verdict"] != "skip"]
    failed = sum(verdict == "fail" for verdict in verdicts)
    return {"judged": len(verdicts), "failed": failed} if verdicts else None


def verdict_of(
    counts: Mapping[str, int],
    xfails: Mapping[str, Any],
    control: Mapping[str, Any],
    missing_shards: Sequence[str],
) -> str:
    """Weigh the cases, the list of expected failures and the control: what is wrong wins.

    Args:
        counts: Case lines by verdict.
        xfails: As in summary.json.
        control: As in summary.json.
        missing_shards: As in summary.json.
    """
    wrong = (counts["fail"], counts["xpass"], xfails.get("problems"))
    if any((*wrong, control.get("failing"), control.get("moved"))):
        return "nonconformant"
    judged = counts["pass"] + counts["warn"] + counts["xfail"]
    broken = counts["error"] or control.get("broke") or missing_shards
    return "incomplete" if broken or not judged else "conformant"


def earliest(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first divergence that comes first; an expected failure is none."""
    found = [line for line in lines if line["first_divergence"] and line["verdict"] == "fail"]
    return min(found, key=position)["first_divergence"] if found else None


def exit_code(summary: dict[str, Any]) -> ExitCode:
    """Translate a verdict to an exit code.

    A conformant port that got worse is no success, nor one of which nothing could be compared.
    """
    baseline = summary.get("baseline")
    if summary["verdict"] == "conformant" and baseline:
        if baseline["regressions"]:
            return ExitCode.NONCONFORMANT
        if not baseline["cases"]:
            return ExitCode.BROKEN
    return {
        "conformant": ExitCode.CONFORMANT,
        "nonconformant": ExitCode.NONCONFORMANT,
        "incomplete": ExitCode.BROKEN,
    }[summary["verdict"]]
