"""Causes, not probes: what the failures of a run come down to, in words."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.report.records import Fault, Summary
from conformance.report.text import counted, shorten

_MOST, _PROBES = 3, 60


def causes_sentence(summary: Summary) -> str:
    """Say how many causes are known of how many failures: a mutant that was not tested is none."""
    known = sum(map(_is_known, summary.faults))
    failures = counted(summary.counts["fail"], "failure")
    if not known:
        return f"{failures} of unknown cause"
    verb = "cause explains" if known == 1 else "causes explain"
    some = "" if known == len(summary.faults) else "part of "
    return f"{known} {verb} {some}{failures}"


def causes_text(summary: Summary) -> str:
    """Say it with the first few causes named, then what is only likely, and where nothing is."""
    known = _named([fault for fault in summary.faults if _is_known(fault)])
    likely = _named([f for f in summary.faults if f.mutant and not _is_known(f)])
    rest = [f for f in summary.faults if not _is_known(f) and not f.mutant and f.probes]
    unknown = _few([shorten(fault.probes, _PROBES) for fault in rest])
    if unknown and not known and not likely:
        return f"{causes_sentence(summary)}, at {unknown}"
    more = f"unknown at {unknown}" if unknown else ""
    texts = "; ".join(text for text in (known, likely, more) if text)
    return f"{causes_sentence(summary)}: {texts}" if texts else causes_sentence(summary)


def _named(faults: Sequence[Fault]) -> str:
    """Name the first few causes; two of one name are told apart by their probes."""
    names = [cause_name(fault) for fault in faults]
    told = [
        f"{name}, at {shorten(fault.probes, _PROBES)}" if names.count(name) > 1 else name
        for name, fault in zip(names, faults, strict=True)
    ]
    return _few(told)


def _few(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
    return ", ".join(texts[:_MOST]) + more


def _is_known(fault: Fault) -> bool:
    return bool(fault.environment or fault.text or (fault.mutant and fault.confirmed))


def cause_name(fault: Fault) -> str:
    """Name one cause, and say how sure that is."""
    if fault.environment:
        return "the environment"
    if fault.text:
        return f"{fault.text}, at {shorten(fault.probes, _PROBES)}" if fault.probes else fault.text
    if not fault.mutant:
        return f"unknown, at {shorten(fault.probes, _PROBES)}" if fault.probes else "unknown"
    return f"{fault.mutant} (confirmed)" if fault.confirmed else f"perhaps {fault.mutant}"
