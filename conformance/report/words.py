"""The sentences of a report: the verdict in plain words, and the command that reruns a case."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from fnmatch import fnmatchcase

from conformance.case import DEFAULT_VARIANTS
from conformance.execution import MEMORY, Execution
from conformance.golden import SPLICE, TRACE
from conformance.levels import LADDER, NAMES
from conformance.report.records import Divergence, Expected, Share, Summary
from conformance.report.text import MISSING, case_name, counted, number_text

MEASURED = ("pass", "warn", "fail", "xfail", "xpass")
DEPTHS = {
    "outputs": "outputs alone, it hands out no probe",
    TRACE: "trace: probes, with the errors that they inherit",
    SPLICE: "splice: layers by themselves",
}
KINDS = {
    "fault": (
        "one layer is wrong by itself: what goes into it is right, what comes out of it is not"
    ),
    "precision": "the layer computes in a lower precision than the port declares",
    "accumulation": (
        "no layer is wrong by itself; honest errors add up to more than they do in the reference"
    ),
    "unexplained": (
        "the error grows beyond what is honest, but no single layer could be shown to be wrong"
    ),
    MEMORY: "what is held at once is not what the budget says; what is computed may be right",
    "environment": (
        "the reference itself is wrong here: a driver, a library or the device, not the port"
    ),
}
"""What the kinds of a first divergence mean."""

CONTROL = "diffusers"
"""What `run` takes for a control by itself, where it takes one: not on the CPU."""

_OPTIONS = ("--dtype", "--device", "--backend", "--mode")
_DEFAULTS = ("float32", "cpu", "sdpa", "")
_PLAIN_ID = re.compile(r"[\w/.@:+-]+")
_SHAPES = re.compile(r"shape \([^()]*\), expected \([^()]*\)")
_NAMED = 3
"""So many components or probes that are missing are named."""


def headline(summary: Summary) -> str:
    """Return the verdict in a few words; one that got worse says so."""
    words = {"conformant": "Conformant", "nonconformant": "Not conformant"}
    verdict = words.get(summary.verdict, "Incomplete")
    if not summary.finished:
        return f"{verdict}, unfinished" if summary.verdict in words else "Unfinished"
    if summary.regressed and summary.verdict == "conformant":
        return f"{verdict}, ▲ worse than the baseline"
    return verdict


def sentence(summary: Summary) -> str:
    """Say in one sentence, to anyone, how the port stands; the scope is left to the caller."""
    counts = summary.counts
    port = f"{summary.port} {summary.port_version}".strip()
    measured = sum(counts[verdict] for verdict in MEASURED)
    cases = f"{counted(measured, 'item')} measured"
    if not summary.finished:
        found = f", {counts['fail']} of them wrong" if counts["fail"] else ", none of them wrong"
        return f"The run of {port} stopped before its end, with {cases}{found if measured else ''}."
    if summary.verdict == "nonconformant":
        return _what_is_wrong(summary, port, cases)
    if summary.verdict == "incomplete":
        why = "; ".join(_what_is_open(summary, measured))
        return (
            f"Whether {port} computes Stable Diffusion v1 stays open ({cases})"
            f"{f': {why}' if why else ''}."
        )
    if not measured:
        return f"Nothing of {port} was measured, so nothing contradicts Stable Diffusion v1."
    but = f", {counts['xfail']} of them known to fail" if counts["xfail"] else ""
    if measured == summary.memory.judged:
        return f"{port} holds no more than its memory budgets allow ({cases}{but})."
    return f"{port} computes what Stable Diffusion v1 computes, as far as tried ({cases}{but})."


def _what_is_open(summary: Summary, measured: int) -> list[str]:
    """Say why a run is incomplete, and what would complete it."""
    shards, broken, skipped = (
        summary.missing_shards,
        summary.counts["error"],
        summary.counts["skip"],
    )
    texts = []
    if len(shards) == 1:
        texts.append(f"shard {shards[0]} is missing; merge again with it")
    elif shards:
        texts.append(f"shards {', '.join(shards)} are missing; merge again with them")
    if broken:
        texts.append(f"{counted(broken, 'item')} broke")
    if summary.control_broke:
        name = f"the control {summary.control}".strip()
        texts.append(f"{name} could not be run in {counted(summary.control_broke, 'item')}")
    if not measured and not broken:
        texts.append(_skipped_text(summary) if skipped else "nothing was judged")
    return texts


def _skipped_text(summary: Summary) -> str:
    """Say that every item was skipped, and what to type next."""
    command = f"sd1-conformance doctor {shlex.quote(summary.port_spec)}"
    return f"every item was skipped; `{command}` says what can be judged of it here"


def _what_is_wrong(summary: Summary, port: str, cases: str) -> str:
    counts = summary.counts
    if summary.environment_at_fault:
        return (
            f"The reference itself is wrong here, so nothing is known of {port} ({cases}): "
            "mend the environment first."
        )
    held = summary.memory
    unkept = f"does not keep {held.failed} of {counted(held.judged, 'memory budget')}"
    if counts["fail"] and counts["fail"] == held.failed:
        return f"{port} {unkept}."
    if counts["fail"]:
        wrong = counts["fail"] - held.failed
        return (
            f"{port} does not compute what Stable Diffusion v1 computes: "
            f"{wrong} of {cases} differ{'s' if wrong == 1 else ''} by more than "
            f"rounding explains{f', and it {unkept}' if held.failed else ''}."
        )
    if counts["xpass"]:
        return f"{port}: {counts['xpass']} of {cases} passed though listed as expected to fail."
    return f"{port}: its list of expected failures does not match the run ({cases})."


def level_text(summary: Summary) -> str:
    """Name the level reached, what of it the port offers, and what keeps it from the next."""
    if summary.environment_at_fault:
        return "not known: the environment is at fault"
    if summary.level is None:
        broken = summary.counts["fail"] > summary.memory.failed or summary.counts["xfail"]
        text = "below 0 (contract)" if broken else MISSING
    else:
        so_far = "" if summary.finished and not summary.missing_shards else " so far"
        text = level_name(summary.level) + so_far + _selected(summary) + _offered(summary)
    beyond = summary.next_level
    if beyond is None:
        return text
    named = "".join(f" ({name})" for name in NAMES[beyond.level : beyond.level + 1])
    return f"{text}; what keeps it from level {beyond.level}{named}: {beyond.because}"


def level_name(level: int) -> str:
    """Return a level's number and its name, if this suite knows one."""
    return " ".join([str(level), *NAMES[level : level + 1]])


def selection_text(share: Share) -> str:
    """Say how much of what could be run was run: `4 of 96 cases`."""
    return f"{share.cases} of {counted(share.of, 'case')}"


def _selected(summary: Summary) -> str:
    share = summary.selection
    return f", of {selection_text(share)}" if share and share.partial else ""


def _offered(summary: Summary) -> str:
    """Say how much of the levels up to the one reached a port offers, where it is not all."""
    reached = LADDER[: summary.level or 0]
    whole = [component for rung in reached for component in rung.whole]
    missing = [component for component in whole if component not in summary.offers]
    if not missing or not summary.offers:
        return ""
    if len(missing) == len(whole):
        return f" (offers none of {len(whole)} whole, only parts)"
    more = [f"{len(missing) - _NAMED} more"] if len(missing) > _NAMED else []
    names = ", ".join([*missing[:_NAMED], *more])
    return f" (offers {len(whole) - len(missing)} of {len(whole)}; not offered: {names})"


def depth_text(summary: Summary) -> str:
    """Say how deep the port could be looked into, and what it did not show."""
    missing = []
    for component, names in summary.missing_probes.items():
        more = ", ..." if len(names) > _NAMED else ""
        missing.append(f"{len(names)} of {component} ({', '.join(names[:_NAMED])}{more})")
    text = DEPTHS.get(summary.depth, summary.depth)
    return f"{text}; probes not handed out: {', '.join(missing)}" if missing else text


def expected_text(expected: Expected) -> str:
    """Say how well a list of expected failures fits."""
    entries = f"{expected.entries} entr{'y' if expected.entries == 1 else 'ies'}"
    text = f"{expected.used} of {entries} used"
    if not expected.problems:
        return text
    more = len(expected.problems) - 1
    rest = f"; and {counted(more, 'problem')} more in summary.json" if more else ""
    return f"{text}; problem: {expected.problems[0]}{rest}"


def kind_text(kind: str) -> str:
    """Say what a kind of divergence means; one that this suite does not know is unexplained."""
    return KINDS.get(kind, KINDS["unexplained"])


def measured(first: Divergence) -> str:
    """Say how far off a divergence is: ratio and limit, or the shapes where one is wrong."""
    shapes = _SHAPES.search(first.hint)
    if shapes and (first.ratio is None or math.isnan(first.ratio)):
        return shapes.group()
    if first.kind == MEMORY:
        return f"ratio {number_text(first.ratio)} of its budget"
    return f"ratio {number_text(first.ratio)}, limit {number_text(first.limit)}"


def counts_text(summary: Summary) -> str:
    """List the counts that are not zero, passes first."""
    order = ("pass", "warn", "fail", "error", "xfail", "xpass", "skip")
    found = [f"{summary.counts[v]} {v}" for v in order if summary.counts[v]]
    return ", ".join(found) or "none"


def rerun_command(port: str, case_id: str, options: Iterable[str] = ()) -> str:
    """Build the command that runs one case again.

    Args:
        port: The port as `run` takes it.
        case_id: The case, with or without its execution; what differs in it from the defaults of
            `run` becomes an option, and its mode always does.
        options: Options of the run that no id says, such as `--traces DIR`.

    Returns:
        A shell command of one line.
    """
    name = case_name(case_id)
    selection = f'"{name}"' if _PLAIN_ID.fullmatch(name) else shlex.quote(name)
    words = ["sd1-conformance", "run", shlex.quote(port), "-k", selection]
    segments = name.split("/")
    variant = segments[-2] if len(segments) > 2 else "-"  # noqa: PLR2004 - component/variant/scenario
    if variant not in ("", "-") and not any(
        fnmatchcase(variant, glob) for glob in DEFAULT_VARIANTS
    ):
        words += ["--variant", shlex.quote(variant)]
    execution = _execution(case_id)
    named = execution[-1] == MEMORY  # there nothing said means all
    for option, value, default in zip(_OPTIONS, execution, _DEFAULTS, strict=True):
        if value not in ("", "int64", "cpu" if named else default):  # a tokenizer has no arithmetic
            words += [option, shlex.quote(value)]
    return " ".join([*words, *(shlex.quote(word) for word in options)])


def rerun_of(summary: Summary, first: Divergence) -> str:
    """Build the command that runs the case of the first divergence again.

    An environment at fault shows again only with the control beside the port, which is said where
    `run` would choose another, and against the baseline where there was one.
    """
    options = [*summary.options]
    if summary.environment_at_fault:
        on_cpu = _execution(first.case)[1] in ("", "cpu")
        if summary.control and (on_cpu or summary.control != CONTROL):
            options += ["--control", summary.control]
        if summary.baseline:
            options += ["--baseline", summary.baseline]
    return rerun_command(summary.port_spec, first.case, options)


def _execution(case_id: str) -> tuple[str, str, str, str]:
    """Read arithmetic, device, backend and mode off an item's id; empty where it does not say."""
    run = Execution.of_item(case_id)
    return run.dtype, run.device, run.backend, run.mode
