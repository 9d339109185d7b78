"""`run --control PORT`: the reference in the same job, arithmetic and device as the port.

If the reference itself is over the limit here, or fell behind what it was in the baseline, the
environment has changed: a driver, a library, a flag. Nothing of that is the port's fault.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conformance.case import Case
from conformance.environment import Changes, changes_text, since_recorded
from conformance.errors import SuiteError, UsageError
from conformance.execution import Execution
from conformance.golden import SPLICE
from conformance.manifest import manifest
from conformance.parallel import Job, Report
from conformance.port import close
from conformance.regression.diff import Diff
from conformance.regression.findings import is_worse, moved_text, severity
from conformance.report.text import case_name, one_line, patterns_of
from conformance.result import Result
from conformance.summary import earliest
from conformance.tolerance import LIMIT
from conformance.traces import have_oracle

ENVIRONMENT = "environment"
"""The kind of a first divergence that is not the port's."""

DEFAULT, NONE = "diffusers", "none"

Item = tuple[Case, Execution]
Line = Mapping[str, Any]

_CPU = "cpu"
_CHANGED, _PATTERNS = 8, 3


@dataclass(frozen=True)
class Control:
    """The reference that is run beside a port.

    Attributes:
        spec: The PORT argument that names it.
        job: Makes it.
        items: What it is run on.
    """

    spec: str
    job: Job
    items: list[Item]

    def run(
        self, done: Iterable[str], run: Callable[[Job, list[Item], Report], None], report: Report
    ) -> None:
        """Run what is left, in processes of their own.

        What a port has set in this process (TF32, threads) would follow the control into it, and
        the port's fault would look like the environment's.

        Args:
            done: Ids of the items of which there are lines already.
            run: Runs items of a job, such as `conformance.parallel.run_parallel`.
            report: Told each control line. A control that cannot be run leaves an `error` for each
                item: nothing passes unseen.
        """
        seen = set(done)

        def told(line: dict[str, Any]) -> None:
            seen.add(line["case"])
            own = {key: value for key, value in line.items() if key != "evidence"}
            report({**own, "type": "control"})

        left = [(case, how) for case, how in self.items if how.item_id(case) not in seen]
        if not left:
            return
        _free_device()
        try:
            run(self.job, left, told)
        except SuiteError as error:
            message = f"the control could not be run: {one_line(error)}"
            for case, how in left:
                if how.item_id(case) not in seen:
                    told(Result(case, how, "error", message=message).as_json())


def _free_device() -> None:
    """Give back the memory of a device that the port's networks had, for the control's."""
    torch = sys.modules.get("torch")
    gc.collect()
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def control_of(asked: str | None, port: str, items: Sequence[Item], job: Job) -> Control | None:
    """Choose the control of a run, and check before it that it can be made.

    Args:
        asked: What the user said; None where nothing.
        port: The PORT argument of the port.
        items: Items of the run.
        job: That of the port: the control has the same limits and trace packs.

    Returns:
        The control; None where there is none. Where nothing is said that is diffusers, if it is
        installed and offers the device, on what does not run on the CPU.

    Raises:
        UsageError: There is no such port, or it does not offer a device of the run.
        PortError: It broke.
    """
    if asked == NONE:
        return None
    chosen = list(items)
    if asked is None:
        chosen = [(case, how) for case, how in items if how.device != _CPU]
        if not chosen or port == DEFAULT or not have_oracle():
            return None
    own = Job(asked or DEFAULT, job.limits, job.packs)
    try:
        runner = own.runner()
    except SuiteError as error:
        message = f"--control {own.port}: {one_line(error)}; --control none runs without one"
        raise type(error)(message) from error
    close(runner.port)
    devices = {how.device for case, how in chosen if not case.exact}
    if missing := sorted(devices - set(runner.hello.devices)):
        if asked is None:
            return None
        message = (
            f"--control {asked} offers {', '.join(runner.hello.devices)}, not "
            f"{', '.join(missing)}: name another control, or --control none"
        )
        raise UsageError(message)
    return Control(own.port, own, chosen)


@dataclass(frozen=True)
class Watch:
    """What the control says of a run.

    Attributes:
        facts: `control` of summary.json; None for a run without control.
        divergence: The first divergence if the environment is at fault, else None.
        faults: Causes: the port's failures in items in which the control fails as badly.
        excused: Ids of those items: what they show is no fault of the port's.
    """

    facts: dict[str, Any] | None = None
    divergence: dict[str, Any] | None = None
    faults: list[dict[str, Any]] = field(default_factory=list)
    excused: frozenset[str] = frozenset()


def watch(
    header: Line,
    controls: Sequence[dict[str, Any]],
    cases: Iterable[Line],
    diff: Diff | None = None,
) -> Watch:
    """Judge the environment by its control lines.

    Args:
        header: The header of the run's results.
        controls: Control lines.
        cases: The port's case lines.
        diff: The comparison with the baseline, if there is one.

    Returns:
        What it says; nothing for a run without control.
    """
    spec = header.get("control")
    if spec is None:
        return Watch()
    failing = [line for line in controls if line["verdict"] == "fail"]
    moved = [change.worst for change in diff.moved] if diff else []
    changed, since = (diff.environment if diff else {}), "the baseline"
    if not changed and failing:
        changed, since = _since_recorded(failing, header), "the goldens were recorded"
    facts = {
        "port": spec,
        "cases": sum(line["verdict"] != "skip" for line in controls),
        "failing": [_told(line) for line in failing],
        "moved": moved,
        "broke": _broke(controls),
        "changed": changed if failing or moved else {},
        "since": since if failing or moved else "",
    }
    worst = {line["case"]: float(line["ratio"]) for line in failing}
    own = [
        line
        for line in cases
        if line["verdict"] == "fail"
        and line["case"] in worst
        and not is_worse(worst[line["case"]], float(line["ratio"]))
    ]
    excused = frozenset(line["case"] for line in own)
    return Watch(facts, _divergence(facts, failing, moved), _faults(own), excused)


def _broke(controls: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the items in which the control gave no answer; a control of skips gave none at all."""
    broke = [line for line in controls if line["verdict"] == "error"]
    if all(line["verdict"] == "skip" for line in controls):
        broke = list(controls[:1])
    return [{"case": line["case"], "message": line["message"]} for line in broke]


def _told(line: Line) -> dict[str, Any]:
    first = line["first_divergence"] or {}
    return {"case": line["case"], "probe": first.get("probe", ""), "ratio": line["ratio"]}


def _since_recorded(failing: Sequence[Line], header: Line) -> Changes:
    """Compare with the machine that recorded the golden of the first item that fails."""
    names = [case_name(line["case"]) for line in failing]
    entries = (manifest()["goldens"].get(name) for name in names)
    provenance: dict[str, str] = next((e["provenance"] for e in entries if e), {})
    return since_recorded(provenance, header["environment"])


def _divergence(
    facts: Line, failing: Sequence[dict[str, Any]], moved: Sequence[Line]
) -> dict[str, Any] | None:
    """Return the first divergence of a run whose environment is at fault."""
    first = earliest(list(failing))
    if first is not None:
        what = "is over the limit here"
    elif moved:
        worst = max(moved, key=lambda item: severity(item["before"], item["after"]))
        first = {
            "case": worst["case"], "probe": worst["probe"], "after": None,
            "ratio": worst["after"], "limit": LIMIT,
        }  # fmt: skip
        ratios = moved_text(worst["before"], worst["after"], worst["verdicts"])
        what = f"fell behind the baseline: ratio {ratios}"
    else:
        return None
    hint = f"the reference itself (control {facts['port']}) {what}; {_changed_text(facts)}"
    return {**first, "kind": ENVIRONMENT, "hint": hint}


def _changed_text(facts: Line) -> str:
    """Say what changed in the environment, from `control` of summary.json."""
    if not facts["changed"]:
        return f"nothing that the report knows of has changed since {facts['since']}"
    return f"changed since {facts['since']}: {changes_text(facts['changed'], _CHANGED)}"


def _faults(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Return a cause for each component: what fails where the control does says nothing."""
    names: dict[str, set[str]] = {}
    for line in lines:
        wrong = [probe["name"] for probe in line["probes"] if probe["verdict"] == "fail"]
        own = names.setdefault(line["component"], set())
        own.update(wrong if line["mode"] == SPLICE else wrong[:1])
    return [
        {
            "probes": patterns_of(found, _PATTERNS),
            "count": len(found),
            "mutant": None,
            "confirmed": False,
            "ratio_if_so": None,
            "cause": ENVIRONMENT,
            "component": component,
            "names": sorted(found),
        }
        for component, found in names.items()
    ]
