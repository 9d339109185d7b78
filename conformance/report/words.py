"""The sentences of a report: the verdict in plain words, and the command that reruns a case."""

from __future__ import annotations

import re
import shlex

from conformance.report.records import Summary
from conformance.report.text import MISSING

LEVELS = ("contract", "components", "samplers", "trajectories")
MEASURED = ("pass", "warn", "fail", "xfail", "xpass")
_EXECUTION = re.compile(r"\[([^-\]]*(?:-matmul)?)-([^-\]]+)(?:-([^-\]]+)-[^-\]]+)?\]$")
_OPTIONS = ("--dtype", "--device", "--backend")
_DEFAULTS = ("float32", "cpu", "sdpa")
_PLAIN_ID = re.compile(r"[\w/.@:+-]+")


def headline(summary: Summary) -> str:
    """Return the verdict in one or two words."""
    words = {"conformant": "Conformant", "nonconformant": "Not conformant"}
    verdict = words.get(summary.verdict, "Incomplete")
    if not summary.finished:
        return f"{verdict}, unfinished" if summary.verdict in words else "Unfinished"
    return verdict


def sentence(summary: Summary) -> str:
    """Say in one sentence, to anyone, how the port stands; the scope is left to the caller."""
    counts = summary.counts
    port = f"{summary.port} {summary.port_version}".strip()
    measured = sum(counts[verdict] for verdict in MEASURED)
    cases = f"{measured} case{'' if measured == 1 else 's'} measured"
    if not summary.finished:
        found = f", {counts['fail']} of them wrong" if counts["fail"] else ", none of them wrong"
        return f"The run of {port} stopped before its end, with {cases}{found if measured else ''}."
    if summary.verdict == "nonconformant":
        return _what_is_wrong(summary, port, cases)
    if summary.verdict == "incomplete":
        broken = counts["error"]
        errors = f": {broken} case{'' if broken == 1 else 's'} broke" if broken else ""
        return f"Whether {port} computes Stable Diffusion v1 stays open{errors}; {cases}."
    if not measured:
        return f"Nothing of {port} was measured, so nothing contradicts Stable Diffusion v1."
    but = f", {counts['xfail']} of them known to fail" if counts["xfail"] else ""
    return f"{port} computes what Stable Diffusion v1 computes, as far as tried ({cases}{but})."


def _what_is_wrong(summary: Summary, port: str, cases: str) -> str:
    counts = summary.counts
    if counts["fail"]:
        return (
            f"{port} does not compute what Stable Diffusion v1 computes: "
            f"{counts['fail']} of {cases} differ{'s' if counts['fail'] == 1 else ''} by more than "
            "rounding explains."
        )
    if counts["xpass"]:
        return f"{port}: {counts['xpass']} of {cases} passed though listed as expected to fail."
    return f"{port}: its list of expected failures does not match the run ({cases})."


def level_text(summary: Summary) -> str:
    """Name the level reached."""
    if summary.level is None:
        return "below 0 (contract)" if summary.counts["fail"] else MISSING
    name = LEVELS[summary.level] if summary.level < len(LEVELS) else ""
    return f"{summary.level} {name}".strip()


def counts_text(summary: Summary) -> str:
    """List the counts that are not zero, passes first."""
    order = ("pass", "warn", "fail", "error", "xfail", "xpass", "skip")
    found = [f"{summary.counts[v]} {v}" for v in order if summary.counts[v]]
    return ", ".join(found) or "no case"


def case_name(case_id: str) -> str:
    """Return component/variant/scenario of a case id, without its execution."""
    return case_id.partition("[")[0]


def rerun_command(port: str, case_id: str) -> str:
    """Build the command that runs one case again.

    Args:
        port: The port as `run` takes it.
        case_id: The case, with or without its execution; what differs in it from the defaults of
            `run` becomes an option.

    Returns:
        A shell command of one line.
    """
    name = case_name(case_id)
    selection = f'"{name}"' if _PLAIN_ID.fullmatch(name) else shlex.quote(name)
    words = ["sd1-conformance", "run", shlex.quote(port), "-k", selection]
    segments = name.split("/")
    variant = segments[-2] if len(segments) > 2 else "-"  # noqa: PLR2004 - component/variant/scenario
    if variant not in ("", "-") and not variant.startswith(("tiny", "odd")):
        words += ["--variant", shlex.quote(variant)]
    execution = _EXECUTION.search(case_id.partition("]::")[0].removesuffix("]") + "]")
    if execution:
        for option, value, default in zip(_OPTIONS, execution.groups(), _DEFAULTS, strict=True):
            if value not in (None, "", "-", "int64", default):  # a tokenizer has no arithmetic
                words += [option, shlex.quote(value)]
    return " ".join(words)
