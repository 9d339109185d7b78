"""Causes, not probes: what the failures of a run come down to, in words."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.report.records import Fault, Summary
from conformance.report.text import counted, shorten

_MOST, _PROBES = 3, 60


def causes_sentence(summary: Summary) -> str:
    """Say how many causes are known of how many failures."""
    known = sum(not _is_unknown(fault) for fault in summary.faults)
    failures = counted(summary.counts["fail"], "failure")
    if not known:
        return f"{failures} of unknown cause"
    verb = "cause explains" if known == 1 else "causes explain"
    some = "" if known == len(summary.faults) else "part of "
    return f"{known} {verb} {some}{failures}"


def causes_text(summary: Summary) -> str:
    """Say it with the first few causes named; two of one name are told apart by their probes."""
    known = [fault for fault in summary.faults if not _is_unknown(fault)]
    names = [cause_name(fault) for fault in known[:_MOST]]
    named = [
        f"{name}, at {shorten(fault.probes, _PROBES)}" if names.count(name) > 1 else name
        for name, fault in zip(names, known, strict=False)
    ]
    unknown = [shorten(f.probes, _PROBES) for f in summary.faults if _is_unknown(f) and f.probes]
    at = ", ".join(unknown[:_MOST]) + _more(unknown)
    if not known:
        return causes_sentence(summary) + (f", at {at}" if unknown else "")
    text = f"{causes_sentence(summary)}: {', '.join(named)}{_more(known)}"
    return f"{text}; unknown at {at}" if unknown else text


def _more(several: Sequence[object]) -> str:
    return f" and {len(several) - _MOST} more" if len(several) > _MOST else ""


def _is_unknown(fault: Fault) -> bool:
    return not (fault.environment or fault.text or fault.mutant)


def cause_name(fault: Fault) -> str:
    """Name one cause, and say how sure that is."""
    if fault.environment:
        return "the environment"
    if fault.text:
        return f"{fault.text}, at {shorten(fault.probes, _PROBES)}" if fault.probes else fault.text
    if not fault.mutant:
        return f"unknown, at {shorten(fault.probes, _PROBES)}" if fault.probes else "unknown"
    return f"{fault.mutant} (confirmed)" if fault.confirmed else f"perhaps {fault.mutant}"
