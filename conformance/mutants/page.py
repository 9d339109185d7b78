"""The catalogue as a page: docs/mutants.md, written from the results of the gate."""

from __future__ import annotations

import math
from typing import Any

from conformance.mutants.catalogue import CATALOGUE, NOT_RUN
from conformance.mutants.mutant import EVIDENCE, Mutant
from conformance.tolerance import LIMIT

_HEAD = """\
# Mutants: proof that the suite sees bugs

A mutant is `sd1_impl` with one wrong choice, made from outside. Most are real bugs of published
ports; the rest are quiet ones of this project, and corrections that would themselves be wrong.
`sd1-conformance mutants` runs each against the ordinary cases, with the ordinary limit
({limit:g} times the reference's own rounding noise): every one has to be killed, and named at the
probe where it really begins. That probe is computed, not written: it is the first at which mutant
and clean model differ when every layer is given the oracle's values in float64.

This page is written by `sd1-conformance mutants --update`.

| | |
|---|---|
| killed | {killed} of {total} |
| localised at the expected probe | {localised} |
| true cause among the first three hints | {hint_top3} |
| confirmed: the port agrees with the mutant, evaluated in float64 | {confirmed} |
| null mutants that survive | {survive} of {nulls} |
| smallest ratio of a mutant | {smallest} |
| largest ratio of a null mutant | {largest} |

A mutant that computes what is right and holds too much dies in mode `memory` alone
([memory](memory.md)): its ratio is what it holds over the budget, in the first block that is over
it, and it is confirmed where a prediction of it equals what was held, to the byte.

Hints are learnt on `tiny` and scored on `odd`, with other weights and inputs; a mutant that is
right in one run needs none: the stability mode that kills it says what was changed
([determinism](determinism.md)). A ratio says how
sure the difference is, not how much it harms a picture; `inf` stands for a wrong integer, a wrong
shape or a value that is not finite, `raises` for a port that ends in an exception, as the row says.

Evidence: {evidence}.
"""


def page(summary: dict[str, Any]) -> str:
    """Write the page.

    Args:
        summary: The contents of mutants.json, of all mutants.

    Returns:
        Markdown.
    """
    rows = {row["id"]: row for row in summary["mutants"]}
    wrong = [m for m in CATALOGUE if not m.null and m.id in rows]
    nulls = [m for m in CATALOGUE if m.null and m.id in rows]
    killed = [m for m in wrong if not (m.refuses or m.heavy)]
    smallest = min(killed, key=lambda m: rows[m.id]["ratio"])
    largest = max((m for m in nulls if not m.heavy), key=lambda m: rows[m.id]["ratio"])
    used = {m.evidence for m in CATALOGUE}
    text = _HEAD.format(
        **{k: summary[k] for k in ("killed", "total", "localised", "hint_top3", "confirmed")},
        limit=LIMIT,
        nulls=len(nulls),
        survive=len(nulls) - len(summary["nulls"]["killed"]),
        smallest=f"{_ratio(rows[smallest.id]['ratio'])} (`{smallest.id}`)",
        largest=f"{_ratio(rows[largest.id]['ratio'])} (`{largest.id}`)",
        evidence="; ".join(f"{k}: {v}" for k, v in EVIDENCE.items() if k in used),
    )
    parts = [text]
    for component in dict.fromkeys(m.component for m in wrong):
        own = [m for m in wrong if m.component == component]
        parts.append(f"## `{component}`\n\n" + _table(own, rows))
    parts.append("## Null mutants: right, computed in another way\n\n" + _null_table(nulls, rows))
    parts.append("## Not run\n\n" + _left_out([*NOT_RUN], summary))
    return "\n".join(parts)


def _table(mutants: list[Mutant], rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| id | what went wrong | seen | evidence, size | caught at | by | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for mutant in mutants:
        row = rows[mutant.id]
        first = row["first_divergence"]
        by = first["case"] if first else row["killed_by"][0] if row["killed_by"] else "nothing"
        ratio = "raises" if mutant.refuses else _measured(mutant, row["ratio"])
        where = f"`{first['probe']}`" if first else "-"
        seen = _cell(mutant.seen) or "-"
        facts = f"{mutant.evidence}, {mutant.size}"
        wrong = _cell(mutant.wrong[:1].upper() + mutant.wrong[1:])
        lines.append(f"| `{mutant.id}` | {wrong} | {seen} | {facts} | {where} | `{by}` | {ratio} |")
    return "\n".join(lines) + "\n"


def _null_table(mutants: list[Mutant], rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| id | component | how it is computed | worst ratio |", "|---|---|---|---|"]
    lines += [
        f"| `{m.id}` | `{m.component}` | {_cell(m.wrong)} | {_measured(m, rows[m.id]['ratio'])} |"
        for m in mutants
    ]
    return "\n".join(lines) + "\n"


def _left_out(rows: list[Any], summary: dict[str, Any]) -> str:
    reasons = {row["id"]: row["reason"] for row in summary["not_run"]}
    reasons |= {row.id: row.reason for row in rows}
    lines = ["| id | why |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(reason)} |" for name, reason in reasons.items()]
    return "\n".join(lines) + "\n"


def _measured(mutant: Mutant, ratio: float) -> str:
    """Write a ratio: of an error to noise, or of what is held to its budget."""
    return f"{ratio:.4g} of the budget" if mutant.heavy else _ratio(ratio)


def _ratio(value: float) -> str:
    if not math.isfinite(value):
        return "inf"
    return f"{value:.2f}" if value < 10 else f"{value:.2g}" if value >= 1000 else f"{value:.0f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
