"""The ladder of levels: how far a port gets, what keeps it from going on, and how deep it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.case import NETWORKS
from conformance.execution import EXACT, LIMITED, SDPA
from conformance.golden import SPLICE, TRACE
from conformance.position import position
from conformance.report.text import case_name, counted, one_line
from conformance.sampling import PIPELINES, SCHEDULERS, TABLES
from conformance.spec import TOKENIZER
from conformance.tolerance import FLOATS
from conformance.training import TRAININGS

Line = Mapping[str, Any]
"""A case line of results.jsonl."""

FAILING = ("fail", "xfail")
"""A known failure is one all the same: a level says what a port computes."""

CONTRACT = "contract"

_DTYPES, _MODES = {*FLOATS, EXACT.dtype}, {SPLICE, TRACE, ""}
_EXACT = {*TABLES, "input_ids", "timesteps"}
_SHOWN = 3
_REASON = 160
_SKIPPED = 240
"""Longest reason of a skip in characters: it may hold a command."""


@dataclass(frozen=True)
class Rung:
    """What a level above the contract is judged by.

    Attributes:
        level: Its number.
        name: Its name.
        one: What a port must offer one of, in words.
        several: The same of several.
        whole: What a complete port offers.
        prefix: How the names of the other components of this level begin.
    """

    level: int
    name: str
    one: str
    several: str
    whole: tuple[str, ...]
    prefix: str

    def has(self, component: str) -> bool:
        """Say whether the level is judged by a component."""
        return component in self.whole or component.startswith(self.prefix)


LADDER = (
    Rung(
        1,
        "components",
        "tokenizer, network or block",
        "its components",
        (TOKENIZER, *NETWORKS),
        "block/",
    ),
    Rung(2, "samplers", "scheduler", "its schedulers", SCHEDULERS, "scheduler/"),
    Rung(3, "trajectories", "pipeline", "its pipelines", PIPELINES, "pipeline/"),
)
NAMES = (CONTRACT, *(rung.name for rung in LADDER))
"""Names of the levels from 0."""


def on_ladder(line: Line) -> bool:
    """Say whether a level is judged by a case line: the rest is for stamps.

    It is what a port computes by its own backend in float32 and float64, or in integers, traced or
    spliced; training is no level.
    """
    return (
        line["dtype"] in _DTYPES
        and line["backend"] in {"", SDPA}
        and line["mode"] in _MODES
        and line["component"] not in TRAININGS
    )


def level(lines: Iterable[Line]) -> int | None:
    """Return the level reached: the highest that was judged and, like all below it, has no failure.

    The contract, level 0, is broken by an `error`, by a tensor of the wrong shape, by a wrong
    token id or timestep, and by a wrong table.
    """
    judged = _judged(lines)
    if not judged or any(_broken(line) for line in judged):
        return None
    reached = 0
    for rung in LADDER:
        own = [line for line in judged if rung.has(line["component"])]
        if any(line["verdict"] in FAILING for line in own):
            break
        reached = rung.level if own else reached
    return reached


def next_level(lines: Sequence[Line], offered: Collection[str]) -> dict[str, Any] | None:
    """Say what keeps a port from the next level.

    Args:
        lines: Case lines.
        offered: Components that the port offers.

    Returns:
        `level`, that of the lowest failure, else the next one; `because`, the reason in words. None
        where the highest level is reached.
    """
    if lines and all(line["verdict"] == "skip" for line in lines):
        return {"level": 0, "because": _not_measured(lines)}
    kinds = {line["component"] in TRAININGS for line in lines if line["verdict"] != "skip"}
    lines = [line for line in lines if on_ladder(line)]
    judged = _judged(lines)
    broken = [line for line in judged if _broken(line)]
    if broken or not judged:
        reason = "nothing was traced in float32 or float64 by the port's own backend"
        if kinds == {True}:
            reason = "training counts for no level: its stamp says it"
        if broken:
            share, shown = _share(broken, judged), _earliest(broken)
            name = case_name(shown["case"])
            told = _broken(shown).removeprefix(f"{name}: ")
            reason = f"it is broken in {share}, such as {name}: {told}"
        return {"level": 0, "because": reason}
    above = LADDER[level(judged) or 0 :]
    for rung in above:
        if wrong := _wrong(rung, judged):
            return {"level": rung.level, "because": wrong}
    for rung in above:
        return {"level": rung.level, "because": _not_judged(rung, lines, offered)}
    return None


def depth(lines: Iterable[Line]) -> str | None:
    """Return how deep the port could be looked into: `outputs`, `trace`, `splice`, or None."""
    own = [line for line in lines if line["mode"] in _MODES]
    kinds = {(probe["kind"], line["mode"]) for line in own for probe in line["probes"]}
    if not kinds:
        return None
    if ("probe", SPLICE) in kinds:
        return SPLICE
    return TRACE if any(kind == "probe" for kind, _ in kinds) else "outputs"


def missing_probes(lines: Iterable[Line]) -> dict[str, list[str]]:
    """Return the probes that a port was asked for and did not hand out, by component.

    Of its own way to compute: another may be one piece where the port has several.
    """
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        if line.get("missing") and line.get("backend") not in LIMITED:
            found.setdefault(line["component"], {}).update(dict.fromkeys(line["missing"]))
    return {component: list(names) for component, names in found.items()}


def _judged(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line["verdict"] != "skip" and on_ladder(line)]


def _broken(line: Line) -> str:
    """Say how a case breaks the contract; empty where it does not."""
    if line["verdict"] == "error":
        return one_line(line["message"], _REASON) or "error"
    if line["verdict"] not in FAILING:
        return ""
    for probe in line["probes"]:
        if probe["note"].startswith("shape "):
            return f"{probe['name']} has {probe['note']}"
        if probe["name"] in _EXACT and probe["verdict"] == "fail":
            return f"{probe['name']} is wrong"
    return "the token ids are wrong" if line["component"] == TOKENIZER else ""


def _wrong(rung: Rung, judged: Sequence[Line]) -> str:
    """Say which components of a level fail, and in which case; empty where none does."""
    wrong = [line for line in judged if rung.has(line["component"]) and line["verdict"] in FAILING]
    components = list(dict.fromkeys(line["component"] for line in wrong))
    texts = [
        f"{name} fails in {_share(_of(name, wrong), _of(name, judged))}"
        for name in components[:_SHOWN]
    ]
    if len(components) > _SHOWN:
        texts.append("others too")
    if wrong and all(line["verdict"] == "xfail" for line in wrong):
        texts.append("as expected")
    return ", ".join([*texts, f"such as {case_name(_earliest(wrong)['case'])}"]) if wrong else ""


def _earliest(wrong: Sequence[Line]) -> Line:
    """Return the line to name: that of the first divergence, if it is among them."""
    own = [line for line in wrong if line.get("first_divergence")]
    unexpected = [line for line in own if line["verdict"] != "xfail"]
    return min(unexpected or own, key=position, default=wrong[0])


def _not_measured(skipped: Sequence[Line]) -> str:
    """Say why every item was skipped: the reasons that most of them have, and of how many each."""
    reasons = Counter(
        one_line(line["message"].replace(case_name(line["case"]), "CASE"), _SKIPPED)
        for line in skipped
    )
    texts = [f"{reason} ({counted(n, 'item')})" for reason, n in reasons.most_common(_SHOWN)]
    if len(reasons) > _SHOWN:
        texts.append(counted(len(reasons) - _SHOWN, "other reason"))
    return f"nothing was measured, every item was skipped: {'; '.join(texts)}"


def _not_judged(rung: Rung, lines: Sequence[Line], offered: Collection[str]) -> str:
    """Say why nothing of a level was judged."""
    if not any(rung.has(component) for component in offered):
        return f"it offers no {rung.one}"
    own = [line for line in lines if rung.has(line["component"])]
    if own:
        return f"{rung.several} were skipped: {one_line(own[0]['message'], _REASON)}"
    return f"{rung.several} were not run"


def _of(component: str, lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line["component"] == component]


def _share(some: Iterable[Line], lines: Iterable[Line]) -> str:
    """Count cases, whatever their executions and blocks."""
    own, total = (len({case_name(line["case"]) for line in group}) for group in (some, lines))
    return f"{own} of {counted(total, 'case')}"
