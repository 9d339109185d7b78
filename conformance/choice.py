"""Which ways of running cases the options choose: arithmetics, devices, backends, modes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from conformance.case import Case
from conformance.cli_common import split
from conformance.errors import UsageError, nearest_text, unknown_name
from conformance.execution import BACKENDS, MEMORY, MODES, SAVINGS, SDPA, STABILITY, Execution
from conformance.golden import SPLICE, TRACE
from conformance.port import Hello
from conformance.report.text import counted
from conformance.tolerance import EVERY_ARITHMETIC
from conformance.traces import have_oracle

_GLOB = re.compile(r"[*?\[]")


def executions(
    dtype: str, device: str, backend: str, mode: str, hello: Hello, packs: Path | None = None
) -> list[Execution]:
    """Return every combination of the options, checked.

    Each is a list of names and of globs, which stand for what the port offers. What it does not
    offer and is named plainly is kept: its cases are skipped and say so.

    Args:
        dtype: Arithmetics.
        device: Devices.
        backend: Backends.
        mode: Modes.
        hello: What the port offers.
        packs: Folder of trace packs, or None.

    Returns:
        The executions: device by device and backend by backend, and there splice mode first. Mode
        `memory` has none: `conformance.memory_choice` knows its configurations.

    Raises:
        UsageError: An unknown name, a device that the port lacks, a glob that fits nothing, a
            saving without mode `memory`.
    """
    asked = split(mode) or [""]
    left = [name for name in asked if not is_memory_alone(name)]
    ways = _without_savings(split(backend) or [""], asked)
    if not (left and ways):
        return []
    modes = (*default_modes(hello, packs).split(","), *STABILITY)
    dtypes = chosen_names("dtype", dtype, hello.arithmetics, EVERY_ARITHMETIC)
    for name in split(device) or [""]:
        if not any(fnmatchcase(offered, name) for offered in hello.devices):
            raise no_device(name, hello)
    devices = chosen_names("device", device, hello.devices, hello.devices)
    backends = chosen_names("backend", ",".join(ways), hello.backends, BACKENDS)
    ordered = sorted(chosen_names("mode", ",".join(left), modes, MODES), key=MODES.index)
    return [
        Execution(d, where, b, m)
        for where in devices
        for b in backends
        for m in ordered
        for d in dtypes
    ]


def asks_memory(mode: str | None) -> bool:
    """Say whether mode `memory` is among those of an option."""
    return any(fnmatchcase(MEMORY, name) for name in split(mode) or [])


def is_memory_alone(mode: str) -> bool:
    """Say whether a name or glob means mode `memory` and no other."""
    return [own for own in MODES if fnmatchcase(own, mode)] == [MEMORY]


def _without_savings(backends: Sequence[str], modes: Sequence[str]) -> list[str]:
    """Leave out what is a backend in mode `memory` alone.

    Raises:
        UsageError: That mode is not asked for.
    """
    savings = [name for name in backends if name in SAVINGS]
    if savings and not asks_memory(",".join(modes)):
        message = f"backend {savings[0]} is one in mode {MEMORY} alone: --mode {MEMORY}"
        raise UsageError(message)
    return [name for name in backends if name not in savings]


def chosen_names(kind: str, text: str, offered: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the names that an option lists; a glob stands for what is offered."""
    names: list[str] = []
    for name in split(text) or [""]:
        fitting = [own for own in offered if fnmatchcase(own, name)]
        if _GLOB.search(name) and not fitting:
            message = f"{kind} {name!r} fits none that the port offers: {', '.join(offered)}"
            raise UsageError(message)
        if not fitting and name not in known:
            raise unknown_name(kind, name, list(known))
        names += fitting or [name]
    return list(dict.fromkeys(names))


def no_device(name: str, hello: Hello) -> UsageError:
    """Build the error for a device that the port does not offer, and say if no driver has it."""
    torch = sys.modules.get("torch")  # where neither suite nor port has it, it sees nothing
    blind = name.startswith("cuda") and torch is not None and not torch.cuda.is_available()
    told = [
        f"{hello.name} offers no device {name!r} here (it says: {', '.join(hello.devices)})",
        "torch sees no CUDA" if blind else "",
        nearest_text(name, hello.devices),
    ]
    return UsageError(f"{'; '.join(filter(None, told))}: choose another")


def default_modes(hello: Hello, packs: Path | None = None) -> str:
    """Return splice and trace, or trace alone where nothing could be spliced.

    Args:
        hello: What the port offers.
        packs: Folder of trace packs, or None.
    """
    possible = hello.probes and hello.replace and (packs is not None or have_oracle())
    return f"{SPLICE},{TRACE}" if possible else TRACE


def lacks_oracle(judged: Iterable[tuple[Case, Execution]], mode: str | None, hello: Hello) -> str:
    """Say that splice mode, which is run where nobody chose modes, was not: there is no oracle.

    Args:
        judged: Cases and how they are run.
        mode: Modes that were asked for; None for the default.
        hello: What the port offers.

    Returns:
        A few words; empty where that is not so.
    """
    traced = any(case.has_splice_mode and run.mode == TRACE for case, run in judged)
    could = hello.probes and hello.replace and traced
    spliced = any(run.mode == SPLICE for _, run in judged)
    return "" if mode or spliced or not could else "splice mode was not run: it needs the oracle"


def not_applying(cases: Iterable[Case], runs: Sequence[Execution]) -> str:
    """Say which components are not run by the backends and in the modes that were asked for.

    Args:
        cases: Those that are run.
        runs: How they were asked to be run.

    Returns:
        One sentence, components of a family under one glob; empty where there is nothing to say.
    """
    backends, modes = {run.backend for run in runs}, {run.mode for run in runs}
    found: dict[str, dict[str, set[str]]] = {}
    for case in {case.component: case for case in cases}.values():
        own = [run.for_case(case) for run in runs]
        axes = []
        if SDPA not in backends and not {run.backend for run in own} <= backends:
            axes.append("backend")
        if TRACE not in modes and not {run.mode for run in own} <= modes:
            axes.append("mode")
        if axes:
            family = case.component.partition("/")[0]
            found.setdefault(" and ".join(axes), {}).setdefault(family, set()).add(case.component)
    texts = []
    for axes_text, families in found.items():
        names = [f"{name}*" if len(all_) > 1 else min(all_) for name, all_ in families.items()]
        verb = "knows" if len(names) == 1 else "know"
        do = "do" if " " in axes_text else "does"
        texts.append(f"{', '.join(names)} {verb} one way to be run: {axes_text} {do} not apply")
    return "; ".join(texts)


def scope_of(judged: list[tuple[Case, Execution]]) -> str:
    """Describe in words what is run, and that the full size is not where it is not.

    Args:
        judged: Cases and how they are run.

    Returns:
        Components; variants; arithmetics; devices; backends, if there are others than the port's
        own; modes; how many memory configurations.
    """
    computed = [(case, run) for case, run in judged if run.mode != MEMORY]
    budgets = len(judged) - len(computed)
    told = f"memory of {counted(budgets, 'configuration')}" if budgets else ""
    return "; ".join(text for text in (_computed_text(computed), told) if text)


def _computed_text(judged: list[tuple[Case, Execution]]) -> str:
    """Describe what is computed; empty where nothing is."""
    if not judged:
        return ""
    others = any(run.backend not in {"", SDPA} for _, run in judged)
    facts = [
        (c.component, c.variant.name, r.dtype, r.device, r.backend if others else "", r.mode)
        for c, r in judged
    ]
    columns = [
        dict.fromkeys(x for x in column if x not in {"", "-"})
        for column in zip(*facts, strict=True)
    ]
    scope = "; ".join(", ".join(column) for column in columns if column)
    return scope if any(c.full_size for c, _ in judged) else f"{scope}; sd1 was not run"
