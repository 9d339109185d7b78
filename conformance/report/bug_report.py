"""A bug report for the port's own tracker: Markdown without HTML, ready to paste."""

from __future__ import annotations

import re

from conformance.report.records import Case, Divergence, Probe
from conformance.report.run import Run
from conformance.report.text import number_text, one_line, printable
from conformance.report.words import kind_text, measured, rerun_command

_LONGEST = 1000


def bug_report(run: Run, first: Divergence, probe: Probe | None, case: Case | None) -> str:
    """Write the report of a run's first divergence.

    Args:
        run: The run.
        first: Its first divergence.
        probe: The wrong probe's record, if it is known.
        case: Its case, if it is known.

    Returns:
        Markdown. All that a port or a file says stands in code, where no character does anything.
    """
    summary = run.summary
    port = f"{summary.port} {summary.port_version}".strip()
    facts = {
        "Case": code(first.case),
        "First wrong tensor": code(first.probe),
        "Last right tensor": code(first.after) if first.after else "none, it is the first one",
        "Measured": code(measured(first)),
        "Kind": f"{code(first.kind or 'unexplained')}, {kind_text(first.kind)}",
    }
    if probe and probe.err is not None and probe.noise is not None:
        facts["Relative error"] = (
            f"{code(number_text(probe.err))} (L2); honest evaluations of the reference reach "
            f"{code(number_text(probe.noise))}"
        )
    if first.hint and first.hint != measured(first):
        facts["Hint"] = code(first.hint)
    if case and case.hunts:
        facts["What the case hunts"] = code(case.hunts)
    lead = (
        f"{code(port)} does not compute here what Stable Diffusion v1 computes. Found with "
        f"sd1-conformance {code(summary.suite or 'of unknown version')}, which compares every "
        "layer with diffusers and transformers evaluated in float64 from the same weights and "
        "inputs. A ratio is the error in units of the reference's own rounding noise; 1 is as "
        "far from the truth as the worst honest evaluation of the reference."
    )
    return "\n".join(
        [
            f"### Wrong result at {code(first.probe)}",
            "",
            lead,
            "",
            *(f"- {name}: {text}" for name, text in facts.items()),
            "",
            "To see it again:",
            "",
            *fenced(rerun_command(summary.port_spec, first.case, summary.options)),
            "",
            "Environment:",
            "",
            *fenced("\n".join(f"{name}: {text}" for name, text in summary.environment.items())),
            "",
        ]
    )


def code(text: str, most: int = _LONGEST) -> str:
    """Write a text as inline code, in more backticks than it holds itself."""
    shown = one_line(text, most)
    fence = "`" * (_longest_run(shown) + 1)
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def fenced(text: str) -> list[str]:
    """Write a text as a block of code, as lines."""
    shown = printable(text, 4 * _LONGEST)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return [f"{fence}text", shown, fence]


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
