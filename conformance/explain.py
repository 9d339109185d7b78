"""From failures to causes: which catalogued mutant a wrong port computes."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from conformance.at_work import at_work
from conformance.case import COMPONENTS, Case, find_case
from conformance.execution import MEMORY, STABILITY, Execution
from conformance.fingerprint import Known, kind_of_probe, known_of, marks_of, rank
from conformance.golden import SPLICE
from conformance.precision import products
from conformance.report.text import one_line, patterns_of
from conformance.runner import Runner
from conformance.spec import TOKENIZER
from conformance.told_causes import (
    Told,
    earliest_hint,
    is_excused,
    spliced_well,
    told_causes,
    unstable,
)
from conformance.told_memory import memory_faults
from conformance.tolerance import LIMIT

TESTED = 5
"""So many hints are tested: the mutant becomes the reference."""

_MOST_NAMES = 2000
_SHOWN = 3
_TEXTS = 24
_WORDS = 160


@dataclass
class Explanation:
    """What the failures of a run come from.

    Attributes:
        faults: The entries of `faults` in summary.json, each with its component and `names`, those
            of its probes: what `merge` needs to count them anew.
        hints: By component, the sentence for the hint of its first divergence.
    """

    faults: list[dict[str, Any]] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """A failing item.

    Attributes:
        case: The case.
        execution: How it was run.
        wrong: Names of the probes and outputs that fail, the first alone of a trace.
    """

    case: Case
    execution: Execution
    wrong: tuple[str, ...]


def explain(
    lines: list[dict[str, Any]], runner: Runner, cases: Mapping[str, Case] | None = None
) -> Explanation:
    """Group the failures of a run by cause.

    Args:
        lines: All case lines.
        runner: Holds the port, which is asked again in a few failing cases.
        cases: By id, those with other weights than the recipe's.

    Returns:
        Causes in the order of components. What the catalogue does not explain is grouped by kind
        of probe. Nothing raised by the port or a mutant gets out: it only leaves hints untested.
    """
    found = Explanation()
    for component in COMPONENTS:
        items, told = failing_items(lines, component, cases), told_causes(lines, component)
        held = memory_faults(lines, component)
        if not items:
            _conclude(found, lines, component, [*map(told_fault, told), *held])
            continue
        ranked = rank(marks_of(lines, component), component)[:TESTED]
        candidates = ranked
        blind = not (runner.hello.probes and runner.hello.replace)
        if blind or _guessed(told, items[0]):
            # A trace, or a block, says too little of where it begins: all are tested.
            candidates = [*ranked, *(k for k in known_of(component) if k not in ranked)]
            ranked = candidates if not runner.hello.probes else ranked
        tools = _tools() if _testable(items) else None
        faults = list(_tested(items, candidates, runner, *tools)) if tools else []
        faults += _told(told, faults)
        explained = {name for fault in faults for name in fault["names"]}
        likely = [] if tools else ranked  # a mutant that was tested in vain is not likely
        wrong = [item.wrong for item in items]
        faults += _unexplained(wrong, explained, likely, _seen_inside(lines, component))
        sentence = _sentence(faults, ranked, candidates, tested=tools is not None)
        _conclude(found, lines, component, [*faults, *held], sentence)
    return found


def _guessed(told: list[Told], item: Item) -> bool:
    """Say whether a precision was read from whole blocks, where a formula may look like it."""
    rounded = [cause for cause in told if not cause.mode]
    return any(
        not cause.names & products(item.case.component, item.case.variant.size).keys()
        for cause in rounded
    )


def _conclude(
    found: Explanation,
    lines: list[dict[str, Any]],
    component: str,
    faults: list[dict[str, Any]],
    sentence: str = "",
) -> None:
    """Add the causes of a component, and its hint: what its first divergence does not say yet."""
    if not faults:
        return
    said = earliest_hint(lines, component)
    computes = all(fault.get("held") for fault in faults)  # else there is a worse thing to say
    texts = [
        fault["found_by"]
        for fault in faults
        if fault.get("found_by")
        and fault.get("text", fault["found_by"]) not in said
        and (computes or not fault.get("held"))
    ]
    found.hints[component] = "; ".join(text for text in (sentence, *texts) if text)
    found.faults += [_for_footer(component, fault) for fault in faults]


def _told(told: list[Told], faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the causes that the failures tell, less what confirmed mutants explain."""
    more: list[dict[str, Any]] = []
    for cause in told:
        explained = {name for fault in (*faults, *more) for name in fault["names"]}
        left = {n for n in cause.names - explained if not _surrounds(n, explained)}
        if cause.sure or left:
            more.append(told_fault(cause, None if cause.sure else left))
    return more


def told_fault(cause: Told, names: set[str] | None = None) -> dict[str, Any]:
    """Return a cause that the failures tell as a fault: it has a text, and no mutant."""
    fault = _fault(cause.names if names is None else names, None) | {"text": cause.text}
    return fault | ({"found_by": f"{cause.text} (`--mode {cause.mode}`)"} if cause.mode else {})


def _for_footer(component: str, fault: dict[str, Any]) -> dict[str, Any]:
    """Return a cause as the footer of results.jsonl tells it."""
    kept = {key: value for key, value in fault.items() if key != "found_by"}
    return {**kept, "component": component, "names": sorted(fault["names"])[:_MOST_NAMES]}


def in_short(fault: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cause as summary.json tells it: its probes are counted, not listed."""
    return {key: value for key, value in fault.items() if key not in {"component", "names"}}


def failing_items(
    lines: Iterable[Mapping[str, Any]],
    component: str,
    cases: Mapping[str, Case] | None = None,
) -> list[Item]:
    """Return the failing items of a component, those of splice mode alone if there are any."""
    wrong = _wrong([*lines], component)
    return [_item(name, own, cases or {}) for name, own in wrong.items()]


def _wrong(lines: list[Mapping[str, Any]], component: str) -> dict[str, list[str]]:
    """Return what is wrong by item, in splice mode alone if there is anything.

    A port that differs from itself is none that a mutant could explain, nor is its trace where
    every layer by itself is right.
    """
    found: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    where, passed = unstable(lines, component), spliced_well(lines, component)
    for line in lines:
        itself = line["mode"] in (*STABILITY, MEMORY) or is_excused(line, where, passed)
        if line["component"] == component and line["verdict"] == "fail" and not itself:
            spliced = line["mode"] == SPLICE
            names = [p["name"] for p in line["probes"] if p["verdict"] == "fail"]
            own = found[spliced].setdefault(line["case"].partition("::")[0], [])
            own += names if spliced else names[:1]
    return found[True] or found[False]


def explain_merged(lines: list[dict[str, Any]], told: Iterable[Mapping[str, Any]]) -> Explanation:
    """Group the failures of shards by cause, without the port: what one confirmed holds for all.

    Args:
        lines: Case lines of all shards.
        told: Causes from the shards' footers.

    Returns:
        The same as `explain`, of mutants that one of the shards has tested.
    """
    confirmed: dict[tuple[str, str], dict[str, Any]] = {}
    suspected = set()
    for fault in told:
        if fault["mutant"] and not fault["confirmed"]:
            suspected.add(fault["component"])
        if fault["confirmed"] and not fault.get("held"):
            key = (fault["component"], fault["mutant"])
            other = confirmed.setdefault(key, {"names": set(), "ratio": 0.0})
            other["names"].update(fault["names"])
            other["ratio"] = max(other["ratio"], float(fault["ratio_if_so"]))
    found = Explanation()
    for component in COMPONENTS:
        wrong, said = _wrong([*lines], component), told_causes(lines, component)
        held = memory_faults(lines, component)
        if not wrong:
            _conclude(found, lines, component, [*map(told_fault, said), *held])
            continue
        own = {mutant: facts for (of, mutant), facts in confirmed.items() if of == component}
        left = {name for names in wrong.values() for name in names}
        known = left & {name for facts in own.values() for name in facts["names"]}
        left = {name for name in left if not _surrounds(name, known)}
        faults = []
        for mutant in sorted(own, key=lambda m: -len(own[m]["names"] & left)):
            if explained := own[mutant]["names"] & left:
                faults.append(_fault(explained, mutant, own[mutant]["ratio"]))
                left -= explained
        faults += _told(said, faults)
        explained = {name for fault in faults for name in fault["names"]}
        ranked = rank(marks_of(lines, component), component)[:TESTED]
        likely = ranked if component in suspected else []
        inside = _seen_inside(lines, component)
        faults += _unexplained(wrong.values(), explained, likely, inside)
        sentence = _sentence(faults, ranked, known_of(component))
        _conclude(found, lines, component, [*faults, *held], sentence)
    return found


def _item(item_id: str, wrong: list[str], cases: Mapping[str, Case]) -> Item:
    case = cases.get(item_id.partition("[")[0]) or find_case(item_id)
    return Item(case, Execution.of_item(item_id), tuple(dict.fromkeys(wrong)))


def _testable(items: list[Item]) -> bool:
    """Say whether mutants can be evaluated here: with torch, and at a size that is affordable."""
    return importlib.util.find_spec("torch") is not None and any(
        not item.case.full_size for item in items
    )


def _tools() -> tuple[Any, Any] | None:
    """Return the modules that evaluate mutants; None where torch alone is installed."""
    names = "conformance.mutants.answer", "conformance.mutants.catalogue"
    try:
        answer, catalogue = map(importlib.import_module, names)
    except ImportError:
        return None
    return answer, catalogue


def witnesses(items: list[Item]) -> list[Item]:
    """Choose the items in which hints are tested: the most telling, or many of the tokenizer's."""
    if items[0].case.component == TOKENIZER:
        return items[:: max(1, len(items) // _TEXTS)]
    small = [item for item in items if not item.case.full_size]
    first = max(small, key=lambda i: (i.execution.mode == SPLICE, i.case.every_probe, len(i.wrong)))
    others = [i for i in small if i.case.every_probe and i.case.variant != first.case.variant]
    return [first, *others[:1]]


def _tested(
    items: list[Item], ranked: list[Known], runner: Runner, answer: Any, catalogue: Any
) -> Iterable[dict[str, Any]]:
    """Yield the causes that hold: the port agrees with a mutant where it disagrees with the truth.

    In splice mode each probe stands for itself, so that several mutants may explain one port. In
    trace mode a mutant has to explain everything.
    """
    mutants = {mutant.id: mutant for mutant in catalogue.CATALOGUE}
    chosen = witnesses(items) if runner.hello.probes else witnesses(items)[:1]
    tested = {name for item in chosen for name in item.wrong}
    left = set(tested)
    agreeing: dict[str, dict[str, float]] = {}
    answers: dict[str, Any] = {}
    what = f"{items[0].case.component}: known bugs"
    for known in tqdm(ranked, desc=what, leave=False, disable=None):
        if known.id in mutants:
            reference = answer.Reference(mutants[known.id], answers)
            agreeing[known.id] = _agreed(reference, runner, chosen)
    while left:
        held = {i: left & names.keys() for i, names in agreeing.items()}
        best = max(held, key=lambda i: len(held[i]), default=None)
        if best is None or not held[best]:
            return
        ratio = max(agreeing[best][name] for name in held[best])
        kinds = {kind_of_probe(name) for name in held[best]}
        alike = {n for i in items for n in i.wrong if kind_of_probe(n) in kinds} - tested
        yield _fault(held[best] | alike, best, ratio_if_so=ratio)
        left -= held[best]


def _agreed(reference: Any, runner: Runner, chosen: list[Item]) -> dict[str, float]:
    """Return the names at which a port agrees with a mutant wherever it is wrong, with ratios."""
    worst: dict[str, float] = {}
    for item in chosen:
        ratios = _confirmed(reference, runner, item)
        for name in item.wrong:
            worst[name] = max(worst.get(name, 0.0), ratios.get(name, math.inf))
    return {name: ratio for name, ratio in worst.items() if ratio <= LIMIT}


def _confirmed(reference: Any, runner: Runner, item: Item) -> dict[str, float]:
    try:
        with at_work():  # what a port prints is no part of the report
            ratios: dict[str, float] = reference.confirm(runner, item.case, item.execution)
    except (Exception, SystemExit):  # noqa: BLE001 - a port may raise anything: no hint holds
        return {}
    return ratios


def _seen_inside(lines: Iterable[Mapping[str, Any]], component: str) -> set[str]:
    """Return the blocks of a component that some case looks into."""
    names = {p["name"] for line in lines if line["component"] == component for p in line["probes"]}
    return {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)}


def _unexplained(
    wrong: Iterable[Iterable[str]], explained: set[str], ranked: list[Known], inside: set[str]
) -> Iterable[dict[str, Any]]:
    """Yield what is left, by kind of probe: a block around a wrong probe is wrong for it.

    So is a block that no case looks into, if others of its kind are.
    """
    names = dict.fromkeys(name for own in wrong for name in own)
    others = {*explained, *names}
    kinds_of_others = {kind_of_probe(name) for name in others}
    left: dict[str, set[str]] = {}
    for name in names:
        kind = kind_of_probe(name)
        alike = name not in inside and _surrounds(kind, kinds_of_others)
        if name not in explained and not alike and not _surrounds(name, others):
            left.setdefault(kind, set()).add(name)
    likely = ranked[0].id if ranked and len(ranked) <= TESTED and not explained else None
    for group in left.values():
        yield _fault(group, likely)


def _surrounds(name: str, others: Iterable[str]) -> bool:
    """Say whether a probe is that of a block around another."""
    return any(other.startswith(f"{name}.") for other in others)


def _fault(names: set[str], mutant: str | None, ratio_if_so: float | None = None) -> dict[str, Any]:
    return {
        "names": names,
        "probes": patterns_of(names, _SHOWN),
        "count": len(names),
        "mutant": mutant,
        "confirmed": ratio_if_so is not None,
        "ratio_if_so": ratio_if_so,
    }


def _sentence(
    faults: list[dict[str, Any]],
    ranked: list[Known],
    candidates: list[Known],
    *,
    tested: bool = True,
) -> str:
    """Say what the port computes, or what it looks like."""
    wrong = {known.id: known.wrong for known in candidates}
    for fault in faults:
        if fault["confirmed"]:
            return (
                f"confirmed: the port computes mutant {fault['mutant']} "
                f"({one_line(wrong[fault['mutant']], _WORDS)}), ratio {fault['ratio_if_so']:.2g}"
            )
    if not ranked or len(ranked) > TESTED or all(fault.get("text") for fault in faults):
        return ""
    alike = [known.id for known in ranked[:_SHOWN]]
    if len(alike) == 1:
        return f"like the mutant {alike[0]}, not {'confirmed' if tested else 'tested'}"
    return f"like the mutants {', '.join(alike)}, none {'confirmed' if tested else 'tested'}"
