"""What is here, what can be judged with it, and what adds the rest.

Nothing that may be missing is imported to find out. Torch is, but only to ask for CUDA devices, and
only where a driver lists some.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conformance import cache, shadowing
from conformance.cache import GOLDENS, TRACES, WEIGHTS, cache_folder
from conformance.child import machine_memory
from conformance.determinism import has_cuda
from conformance.devices import visible_devices
from conformance.environment import SETTINGS, environment
from conformance.errors import GoldenError, UsageError
from conformance.execution import MEMORY, STABILITY
from conformance.golden import SPLICE, TRACE
from conformance.levels import CONTRACT, LADDER, Rung
from conformance.manifest import read_manifest
from conformance.mapped import MOST as WEIGHTS_MOST
from conformance.memory.budgets import RECORD, budgets, torch_version
from conformance.recording.lint import file_problems, lock_problems
from conformance.report.text import counted, size_text
from conformance.requirements import (
    CORE,
    MISSING,
    ORACLE,
    OUTSIDE,
    THERE,
    Installed,
    added_together,
    adding,
    installed,
    is_checkout,
    python_range,
    state_of,
    version_of,
)
from conformance.run_folder import require_creatable
from conformance.stamps import PRECISION, REAL_WEIGHTS, TRAINING
from sd1_weights.names import golden_root

VARIABLES = (
    "PYTHONPATH",
    "SD1_GOLDEN",
    cache.VARIABLE,
    "HF_HUB_OFFLINE",
    "RAY_ADDRESS",
    *SETTINGS,
)
"""What in a process's environment changes what is found, or how it is computed."""

_MEMORY = Path("/proc/meminfo")
_MODEL = ("torch", "regex")


@dataclass(frozen=True)
class Ability:
    """Something that the suite can do.

    Attributes:
        kind: `level`, `port`, `mode`, `stamp`, `command`, `report` or `way`.
        name: What it is.
        needs: Distributions beside the core.
        note: What else is to be known of it.
    """

    kind: str
    name: str
    needs: tuple[str, ...] = ()
    note: str = ""


def _whole(rung: Rung) -> str:
    """Write what a level is judged by, what all names of a family begin with once."""
    family = [name for name in rung.whole if name.startswith(rung.prefix)]
    others = [name for name in rung.whole if name not in family]
    names = [name.removeprefix(rung.prefix) for name in family]
    return ", ".join([*others, *([rung.prefix + names[0], *names[1:]] if names else [])])


ABILITIES = (
    Ability("level", f"0 {CONTRACT}", note="names, shapes, token ids, timesteps"),
    *(Ability("level", f"{rung.level} {rung.name}", note=_whole(rung)) for rung in LADDER),
    Ability("port", "exec:COMMAND, file.py:factory", note="any language and environment"),
    Ability("port", "sd1_impl", _MODEL),
    Ability("port", "diffusers", ORACLE),
    Ability("mode", TRACE, note="errors add up, as in use"),
    Ability("mode", SPLICE, ORACLE, "each layer alone; without: trace packs, --traces DIR"),
    Ability("mode", ", ".join(STABILITY), note="a port beside another run of itself"),
    Ability("mode", MEMORY, ("torch",), "ports written with torch"),
    Ability("stamp", f"{PRECISION}:*, {TRAINING}"),
    Ability("stamp", MEMORY, ("torch",)),
    Ability("stamp", REAL_WEIGHTS, ORACLE, "run --weights PATH --witness v1-5"),
    Ability("report", "pages, JUnit, pictures"),
    Ability("report", "known bugs, by likeness", note="like the mutant X, not tested"),
    Ability("report", "known bugs, confirmed", _MODEL, "the mutant computes what the port does"),
    Ability("report", "PSNR and SSIM", ("scikit-image",), "of pictures; shown, never judged"),
    Ability("command", "budget", ("torch",), "what a port holds, what fits a card"),
    Ability("command", "audit", ORACLE, "without: trace packs, --traces DIR"),
    Ability("command", "golden verify, mutants, bench, repro", ORACLE, "the live oracle"),
    Ability("way", "pytest items", ("pytest", "pytest-xdist")),
    Ability("way", "--executor ray", ("ray",)),
)


@dataclass(frozen=True)
class Judgement:
    """Whether an ability is there.

    Attributes:
        kind: As the ability's.
        name: As the ability's.
        possible: Whether it is there.
        note: What else is to be known of it.
        lacks: What is wrong with the distributions that it needs, in words.
        command: What mends that; empty where nothing is lacking.
        needs: Distributions beside the core.
    """

    kind: str
    name: str
    possible: bool
    note: str
    lacks: tuple[str, ...]
    command: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A folder of the cache: bytes in it, and how many it may hold; None for no limit."""

    name: str
    size: int
    most: int | None


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        home: Where the code lies that runs.
        checkout: Whether that is a checkout.
        python: Version, and the supported ones.
        packages: What is asked for, and what of it is installed.
        devices: By kind, in words.
        goldens: What they are, in words.
        cache: Where it is and whether it can be written, in words.
        kept: What is in it.
        variables: Of the process's environment.
        abilities: What can be judged, and what would add the rest.
        notes: What is to be known, and harms nothing yet.
        broken: Why the suite itself cannot be trusted; empty where it can.
    """

    home: str
    checkout: bool
    python: Installed
    packages: list[Installed]
    devices: dict[str, str]
    goldens: str
    cache: str
    kept: list[Kept]
    variables: dict[str, str]
    abilities: list[Judgement]
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def diagnose() -> Diagnosis:
    """Look at everything that a verdict depends on before a port does."""
    python = importlib.import_module("platform").python_version()
    own = Installed("Python", python, python_range(), CORE, state_of(python, python_range()))
    packages = installed()
    gpus = visible_devices()
    told, wrong = _goldens()
    place, kept = _cache()
    return Diagnosis(
        home=str(shadowing.HOME),
        checkout=is_checkout(),
        python=own,
        packages=packages,
        devices={"cpu": _cpu(), "cuda": _cuda(gpus)},
        goldens=told,
        cache=place,
        kept=kept,
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        abilities=[_judged(ability, packages, gpu=bool(gpus)) for ability in ABILITIES],
        notes=[*_notes(packages)],
        broken=[*_unsupported([own, *packages]), *wrong, *_altered()],
    )


def _judged(ability: Ability, packages: list[Installed], *, gpu: bool) -> Judgement:
    states = {p.name: p for p in packages}
    needed = [states[name] for name in ability.needs]
    missing = [p.name for p in needed if p.state == MISSING]
    lacks = [f"{', '.join(missing)} missing"] if missing else []
    lacks += [_lack(p) for p in needed if p.state == OUTSIDE]
    command = adding(ability.needs, gpu=gpu) if lacks else ""
    return Judgement(
        ability.kind, ability.name, not missing, ability.note, tuple(lacks), command, ability.needs
    )


def what_adds(abilities: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """Return the commands that add what is lacking, as few as can be, with what each adds."""
    lacking = [ability for ability in abilities if ability.command]
    found: dict[str, list[Judgement]] = {}
    for group in added_together(ability.needs for ability in lacking):
        own = [ability for ability in lacking if group.issuperset(ability.needs)]
        found.setdefault(adding(sorted(group)), []).extend(own)
    return found


def _lack(package: Installed) -> str:
    """Say what is wrong with a distribution."""
    if package.state == MISSING:
        return f"{package.name} is missing"
    return f"{package.name} {package.version} is not {package.range}"


def _unsupported(packages: list[Installed]) -> Iterator[str]:
    """Say which parts of the core are missing or of another version."""
    for package in packages:
        if package.extra == CORE and package.state != THERE:
            mending = "install another" if package.name == "Python" else adding([package.name])
            yield f"{_lack(package)}: {mending}"


def _cpu() -> str:
    """Say how many cores this process may use, and how much memory is free."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    free = _free_memory()
    memory = f"{size_text(machine_memory())} of memory"
    if free is not None:
        memory = f"{size_text(free)} of {memory} free"
    return f"{cores} core{'' if cores == 1 else 's'}, {memory}"


def _free_memory() -> int | None:
    """Return the bytes that a process could still take; None where nobody says."""
    try:
        rows = dict(row.split(":", 1) for row in _MEMORY.read_text("utf-8").splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return None


def _cuda(listed: list[str]) -> str:
    """Say which CUDA devices there are, and whether torch sees them."""
    if not listed:
        return "none: no NVIDIA driver lists a device"
    told = f"the driver lists {len(listed)}"
    if not version_of("torch"):
        return f"{told}; torch is missing"
    torch = importlib.import_module("torch")
    if not has_cuda(torch):
        return f"{told}, torch {torch.__version__} sees none: docs/gpu.md"
    facts = environment()
    return f"{facts.get('cuda devices', told)}, CUDA {facts.get('cuda', '?')}"


def _goldens() -> tuple[str, list[str]]:
    """Say what goldens there are, and what is wrong with them."""
    root = golden_root()
    override = " (SD1_GOLDEN)" if os.environ.get("SD1_GOLDEN") else ""
    try:
        goldens = read_manifest()["goldens"]
    except GoldenError as error:
        return f"{root}{override}: no manifest", [str(error)]
    wrong = [*lock_problems(goldens), *file_problems(goldens)]
    size = size_text(sum(entry["bytes"] for entry in goldens.values()))
    state = counted(len(wrong), "problem") if wrong else "every file is the one that was recorded"
    return f"{len(goldens)} in {root}{override}, {size}: {state}", wrong


def _cache() -> tuple[str, list[Kept]]:
    """Say where values are kept, and how much there is."""
    folder = cache_folder(TRACES)
    if folder is None:
        return f"none: {cache.VARIABLE} is empty, so everything is computed anew", []
    parent = folder.parent
    try:
        require_creatable(parent, "the cache")
        writable = ""
    except UsageError:
        writable = "not "
    most = {TRACES: cache.CACHE_BYTES, GOLDENS: None, WEIGHTS: WEIGHTS_MOST}
    kept = [Kept(kind, _size(parent / kind), limit) for kind, limit in most.items()]
    return f"{parent}, {writable}writable", kept


def _size(folder: Path) -> int:
    """Return the bytes of the files in a folder; other processes may delete some meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - many files
            except OSError:
                continue
    return total


def _altered() -> Iterator[str]:
    """Say which files of the program are not those that were installed, and whose they may be."""
    names = shadowing.altered()
    if names:
        others = [name for name, _ in shadowing.mixed()]
        whose = f"; {', '.join(others)} installed into the same folders" if others else ""
        verb = "is not as it was" if len(names) == 1 else "are not as they were"
        yield (
            f"{counted(len(names), 'file')} {verb} installed, first {names[0]}{whose}: "
            "install sd1-conformance anew, in an environment of its own"
        )


def _notes(packages: list[Installed]) -> Iterator[str]:
    """Say what harms nothing yet."""
    if paths := shadowing.in_the_way(Path.cwd()):
        names = ", ".join(path.name for path in paths)
        yield (
            f"`python -m conformance` started here takes {names} from {Path.cwd()}: "
            "use `sd1-conformance`"
        )
    data = shadowing.find(shadowing.DATA)
    if data.path is not None and not data.own:
        yield f"{data.path} is another package `golden`; goldens are read from {golden_root()}"
    for name, folders in shadowing.mixed():
        yield f"{name} installed into our folders too: {', '.join(folders)}"
    versions = {p.name: p for p in packages}
    if versions["torch"].state == MISSING and sys.platform == "linux" and not visible_devices():
        yield (
            "here is no GPU, and pip may take torch's CUDA build, several GB: name an index with "
            "CPU builds first, in PIP_EXTRA_INDEX_URL"
        )
    if versions["torch"].state != MISSING and not budgets().knows():
        yield (
            f"what ports hold is not recorded for torch {torch_version()}: mode {MEMORY} compares "
            f"with the oracle as it is here; `{RECORD}` records it"
        )
    for package in packages:
        if package.state == OUTSIDE and package.extra != CORE:
            yield f"{_lack(package)}: {adding([package.name])}"
