"""What is judged beside the port: the reference in the same job, and an earlier run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from conformance.report.text import count, counted, mapping, number_text, one_line
from conformance.report.text import number as read_number

_SHOWN = 5
_LONGEST = 300
_RATIOS = ("ratio", "before", "after")


@dataclass(frozen=True)
class Gate:
    """What one of them says.

    Attributes:
        name: `control` or `baseline`.
        bad: Whether it speaks against the run.
        text: One sentence.
        lines: The particulars, one a line: cases, and what changed in the environment.
        unknown: Whether it is bad because nothing was compared.
    """

    name: str
    bad: bool
    text: str
    lines: tuple[str, ...]
    unknown: bool = False


def gates(record: dict[str, Any]) -> list[Gate]:
    """Read what summary.json says of control and baseline.

    Args:
        record: The contents of summary.json, whatever is missing or malformed in it.

    Returns:
        Those of the two that the run had.
    """
    found = []
    if control := mapping(record.get("control")):
        found.append(_control(control))
    if baseline := mapping(record.get("baseline")):
        found.append(_baseline(baseline))
    return found


def regression(told: Iterable[Gate]) -> str:
    """Say how a run is worse than its baseline; empty where it is not."""
    texts = (gate.text for gate in told if gate.bad and gate.name == "baseline")
    return next((f"Worse than the baseline {text.removeprefix('against ')}" for text in texts), "")


def _control(record: dict[str, Any]) -> Gate:
    failing, moved, broke = (_items(record.get(key)) for key in ("failing", "moved", "broke"))
    name = one_line(record.get("port"), 60) or "the reference"
    changed = _changes(record.get("changed"))
    what = [f"exceeds the limit in {counted(len(failing), 'case')}"] if failing else []
    what += [f"fell behind the baseline in {counted(len(moved), 'place')}"] if moved else []
    blame = ": the environment is at fault" if what else ""
    what += [f"could not be run in {counted(len(broke), 'case')}"] if broke else []
    if not what:
        text = f"{name} agrees with the truth in {counted(count(record.get('cases')), 'case')} here"
        return Gate("control", bad=False, text=text, lines=())
    blame += f"; changed: {_few(changed)}" if changed else ""
    text = f"{name} itself {' and '.join(what)}{blame}"
    return Gate("control", bad=True, text=text, lines=(*failing, *moved, *broke, *changed))


def _baseline(record: dict[str, Any]) -> Gate:
    regressions, ratchet = _items(record.get("regressions")), _items(record.get("ratchet"))
    changed = _changes(record.get("environment"))
    counts = [
        f"{number} {name}"
        for name in ("worse", "better", "new", "vanished", "skipped", "lost")
        if (number := _size(record.get(name)))
    ]
    unknown = record.get("cases") == 0 and not regressions
    text = f"against {one_line(record.get('dir'), 80) or 'an earlier run'}: "
    if unknown:
        counts.insert(0, "NOTHING COMPARED: no case in common that both judged")
    text += ", ".join(counts) or "nothing moved beyond noise"
    if ratchet:
        text += f"; {counted(len(ratchet), 'case')} over twice the best ratio reached"
    if changed:
        text += f"; changed: {_few(changed)}"
    lines = (*regressions, *ratchet, *changed)
    return Gate("baseline", bool(regressions) or unknown, text, lines, unknown)


def _changes(value: object) -> list[str]:
    """Write what changed between two environments: name, before, after."""
    texts = []
    for name, pair in mapping(value).items():
        before, after = (*pair, None, None)[:2] if isinstance(pair, list) else (None, pair)
        told = f"{one_line(before, 60) or 'nothing'} to {one_line(after, 60) or 'nothing'}"
        texts.append(f"{one_line(name, 60)} {told}")
    return texts


def _items(value: object) -> list[str]:
    """Read a list of cases, each a name or an object that says where, before and after."""
    return [_item(item) for item in value] if isinstance(value, list) else []


def _item(item: object) -> str:
    """Write one: its own text where it has one, else where it is and how it moved, or why."""
    if not isinstance(item, dict):
        return one_line(item, _LONGEST)
    if item.get("text"):
        return one_line(item["text"], _LONGEST)
    where = " ".join(one_line(item[key]) for key in ("case", "probe") if item.get(key))
    ratios = [number_text(read_number(item[key])) for key in _RATIOS if item.get(key) is not None]
    told = " to ".join(ratios) or one_line(item.get("message"))
    return one_line(f"{where}: {told}" if told else where, _LONGEST)


def _size(value: object) -> int:
    return len(value) if isinstance(value, list) else count(value)


def _few(texts: Iterable[str]) -> str:
    shown = list(texts)
    more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join([*shown[:_SHOWN], *more])
