"""The summary for a CI job's page: the verdict in at most 60 lines of Markdown, without a link."""

from __future__ import annotations

import re
from collections.abc import Sequence

from conformance.report.bug_report import code
from conformance.report.causes import cause_name, causes_sentence
from conformance.report.gates import Gate, gates, regression
from conformance.report.records import Divergence, Summary
from conformance.report.run import Run
from conformance.report.tally import Row, columns, tally
from conformance.report.text import counted, number_text, one_line
from conformance.report.words import (
    counts_text,
    expected_text,
    headline,
    level_text,
    measured,
    rerun_of,
    sentence,
)

_ROWS, _CAUSES, _PARTICULARS = 16, 4, 3
_LONGEST, _NAME, _COMMAND = 400, 120, 1000
_SPECIAL = re.compile(
    r"[\\`*\[\]<>&|~$@]"
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # inside a word it is no emphasis
    r"|:(?=//)|(?<=www)\.",  # what GitHub makes a link of by itself
    re.IGNORECASE,
)
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "@<!-- -->"}
"""An `@` gets an empty comment: GitHub links addresses and names of users, escaped or not."""

_SIGNS = {"conformant": "✓", "nonconformant": "▲", "incomplete": "✕"}


def markdown(run: Run) -> str:
    """Write the summary of a run, to be appended to `$GITHUB_STEP_SUMMARY`."""
    summary = run.summary
    told = gates(run.record)
    lines = [
        f"## {_SIGNS[summary.verdict]} {_prose(headline(summary))}: {_prose(summary.port, _NAME)}",
        "",
        f"**{_prose(sentence(summary))}**",
        "",
        *([f"**▲ {_prose(worse)}**", ""] if (worse := regression(told)) else []),
        *_facts(summary, told),
        "",
        *_table(tally(run.cases, _ROWS)),
    ]
    if summary.divergence:
        lines += ["", *_divergence(summary, summary.divergence)]
    if summary.faults:
        lines += ["", *_causes(summary)]
    for gate in told:
        if gate.lines:
            lines += ["", f"### {gate.name.capitalize()}", *_particulars(gate)]
    return "\n".join(lines) + "\n"


def _facts(summary: Summary, told: Sequence[Gate]) -> list[str]:
    """List what there is to know of the run, control and baseline included."""
    worst = f"{number_text(summary.worst_ratio)}, limit {number_text(summary.limit)}"
    facts = {
        "Items": counts_text(summary),
        "Worst ratio": worst,
        "Scope": summary.scope or "not stated",
        "Level": level_text(summary),
    }
    if summary.expected:
        facts["Expected failures"] = expected_text(summary.expected)
    said = regression(told)  # at the top, with all that the baseline says
    gates_left = (gate for gate in told if not (said and gate.name == "baseline"))
    facts |= {gate.name.capitalize(): gate.text for gate in gates_left}
    return [f"- {name}: {_prose(text)}" for name, text in facts.items()]


def _table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["Nothing was run."]
    verdicts = columns(rows)
    head = ["component", "dtype", "items", *verdicts, "worst ratio", "where"]
    lines = [_row(head), _row(["---", "---", *["---:"] * (len(verdicts) + 2), "---"])]
    for row in rows:
        where = _code(row.worst.worst_probe) if row.worst and row.worst.worst_probe else ""
        counts = [str(row.counts[verdict] or "") for verdict in verdicts]
        ratio = number_text(row.worst_ratio)
        names = [_prose(name, _NAME) for name in (row.component, row.dtype)]
        lines.append(_row([*names, str(row.cases), *counts, ratio, where]))
    return lines


def _divergence(summary: Summary, first: Divergence) -> list[str]:
    facts = [
        f"- Probe: {_code(first.probe)}, "
        + (f"after {_code(first.after)}" if first.after else "the first one"),
        f"- How far off: {_prose(measured(first))}",
        f"- Kind: {_prose(first.kind or 'unexplained')}",
        f"- Case: {_code(first.case)}",
    ]
    if first.hint and first.hint != measured(first):
        facts.append(f"- Hint: {_prose(first.hint)}")
    command = rerun_of(summary, first)
    return ["### First divergence", *facts, f"- Again: {_code(command, _COMMAND)}"]


def _causes(summary: Summary) -> list[str]:
    lines = [f"### {causes_sentence(summary)}"]
    for fault in summary.faults[:_CAUSES]:
        seen = counted(fault.count, "probe")
        lines.append(f"- {_prose(cause_name(fault))}: {seen}, {_code(fault.probes)}")
    if len(summary.faults) > _CAUSES:
        lines.append(f"- and {len(summary.faults) - _CAUSES} more")
    return lines


def _particulars(gate: Gate) -> list[str]:
    lines = [f"- {_prose(line)}" for line in gate.lines[:_PARTICULARS]]
    more = len(gate.lines) - _PARTICULARS
    return [*lines, f"- and {more} more"] if more > 0 else lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _prose(text: str, most: int = _LONGEST) -> str:
    """Write a text so that neither Markdown nor HTML takes any of it for itself."""

    def escaped(found: re.Match[str]) -> str:
        return _ENTITIES.get(found[0], f"\\{found[0]}")

    return _SPECIAL.sub(escaped, one_line(text, most))


def _code(text: str, most: int = _LONGEST) -> str:
    """Write a name or command as code that is safe in a table."""
    return code(text, most).replace("|", "\\|")
