"""Causes, not probes: what the failures of a run come down to, in words."""

from __future__ import annotations

from conformance.report.records import Fault, Summary
from conformance.report.text import counted, shorten

_MOST, _PROBES = 3, 60


def causes_sentence(summary: Summary) -> str:
    """Say how many causes explain how many failures."""
    causes, failures = len(summary.faults), summary.counts["fail"]
    verb = "cause explains" if causes == 1 else "causes explain"
    return f"{causes} {verb} {counted(failures, 'failure')}"


def causes_text(summary: Summary) -> str:
    """Say it with the first few causes named; two of one name are told apart by their probes."""
    names = [cause_name(fault) for fault in summary.faults[:_MOST]]
    named = ", ".join(
        f"{name}, at {shorten(fault.probes, _PROBES)}" if names.count(name) > 1 else name
        for name, fault in zip(names, summary.faults, strict=False)
    )
    more = len(summary.faults) - _MOST
    return f"{causes_sentence(summary)}: {named}" + (f" and {more} more" if more > 0 else "")


def cause_name(fault: Fault) -> str:
    """Name one cause, and say how sure that is."""
    if fault.environment:
        return "the environment"
    if fault.text:
        return f"{fault.text}, at {shorten(fault.probes, _PROBES)}" if fault.probes else fault.text
    if not fault.mutant:
        return f"unknown, at {shorten(fault.probes, _PROBES)}" if fault.probes else "unknown"
    return f"{fault.mutant} (confirmed)" if fault.confirmed else f"perhaps {fault.mutant}"
