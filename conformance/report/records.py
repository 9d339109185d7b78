"""The records of a run as typed values, read from JSON objects that may lack or garble anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conformance.report.text import count, mapping, number, printable, severity

VERDICTS = ("fail", "error", "xpass", "warn", "xfail", "skip", "pass")
"""All verdicts, the most urgent first."""

FAILING = ("fail", "error")
EXCERPT = 10
_MESSAGE = 4000


@dataclass(frozen=True)
class Probe:
    """One probe of one case: where it is, how far off, and what was allowed."""

    order: int
    name: str
    kind: str
    shape: str
    err: float | None
    noise: float | None
    ratio: float | None
    verdict: str
    approximate: bool
    rms: float | None
    max_abs: float | None
    note: str = ""

    @property
    def wrong_shape(self) -> str:
        """Return the shapes found and expected, where there is nothing else to measure."""
        return self.note.removeprefix("shape ") if self.note.startswith("shape ") else ""


@dataclass(frozen=True)
class Divergence:
    """The earliest wrong probe, and what is known about it."""

    case: str
    probe: str
    after: str
    ratio: float | None
    limit: float | None
    kind: str
    hint: str


@dataclass(frozen=True)
class Excerpt:
    """The few probes of a failing case that a report shows, of `total`."""

    worst: list[Probe]
    around: list[Probe]
    total: int


@dataclass(frozen=True)
class Case:
    """One line of results.jsonl, less its probes.

    `detail` is kept of failing cases alone; `tensor` is the file in `data/` of the first wrong
    tensor, empty where there is none; `place` is where the line begins in the file, in bytes.
    """

    case: str
    component: str
    variant: str
    scenario: str
    dtype: str
    device: str
    backend: str
    mode: str
    verdict: str
    ratio: float | None
    worst_probe: str
    divergence: Divergence | None
    seconds: float | None
    message: str
    hunts: str
    detail: str = ""
    tensor: str = ""
    place: int = 0


@dataclass(frozen=True)
class Fault:
    """One cause of failures: the probes it explains, and the mutant that it is or looks like.

    `environment`: the reference fails there too, so that nothing is known of the port. `text`: the
    cause in words, where the failures themselves tell it. `held`: it is of memory, not of values.
    """

    probes: str
    count: int
    mutant: str
    confirmed: bool
    ratio_if_so: float | None
    environment: bool = False
    text: str = ""
    held: bool = False


@dataclass(frozen=True)
class Next:
    """The next level, and what keeps a port from it."""

    level: int
    because: str


@dataclass(frozen=True)
class Expected:
    """A list of expected failures: how many of its entries were used, what is wrong with it."""

    file: str
    entries: int
    used: int
    problems: list[str]


@dataclass(frozen=True)
class Share:
    """How many of the cases of the components and variants that were run were run: `cases`."""

    cases: int
    of: int

    @property
    def partial(self) -> bool:
        """Say whether some were left out."""
        return self.cases < self.of


@dataclass(frozen=True)
class Held:
    """How many memory budgets were judged, and how many of them were not kept."""

    judged: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Summary:
    """What summary.json says, or what the cases say where it is missing.

    `port_spec` is the port as `run` takes it (`file.py:factory`), where the run recorded it as
    `port.spec`; otherwise the port's name, which is right for installed ports. `options` are what
    a command that runs a case again has to repeat. `control` is the reference in the same job, and
    `control_broke` in how many items it gave no answer; `baseline` is the earlier run's folder, and
    `regressed` whether this one is worse.
    """

    port: str
    port_version: str
    port_spec: str
    verdict: str
    scope: str
    level: int | None
    stamps: list[str]
    counts: dict[str, int]
    limit: float | None
    worst_ratio: float | None
    divergence: Divergence | None
    environment: dict[str, str]
    seconds: float | None
    suite: str
    depth: str = ""
    faults: tuple[Fault, ...] = ()
    missing_probes: dict[str, list[str]] = field(default_factory=dict)
    stamps_missing: dict[str, str] = field(default_factory=dict)
    next_level: Next | None = None
    offers: tuple[str, ...] = ()
    expected: Expected | None = None
    options: tuple[str, ...] = ()
    selection: Share | None = None
    memory: Held = Held()
    missing_shards: tuple[str, ...] = ()
    control: str = ""
    control_broke: int = 0
    baseline: str = ""
    regressed: bool = False
    finished: bool = True

    @property
    def environment_at_fault(self) -> bool:
        """Say whether the reference itself is wrong, so that nothing is known of the port."""
        return self.divergence is not None and self.divergence.kind == "environment"

    @property
    def partial(self) -> bool:
        """Say whether some cases of what was run were left out."""
        return self.selection is not None and self.selection.partial


def parse_summary(record: dict[str, Any]) -> Summary:
    """Read the fields of summary.json, whatever is missing or malformed in it."""
    port = mapping(record.get("port"))
    counts = mapping(record.get("counts"))
    control, baseline, memory = (
        mapping(record.get(key)) for key in ("control", "baseline", "memory")
    )
    verdict = record.get("verdict")
    name = printable(port.get("name")) or "unnamed port"
    return Summary(
        port=name,
        port_version=printable(port.get("version")),
        port_spec=printable(port.get("spec"), _MESSAGE) or name,
        verdict=verdict if verdict in ("conformant", "nonconformant") else "incomplete",
        scope=printable(record.get("scope"), _MESSAGE),
        level=_level(record.get("level")),
        stamps=_texts(record.get("stamps")),
        counts={verdict: count(counts.get(verdict)) for verdict in VERDICTS},
        limit=number(record.get("limit")),
        worst_ratio=number(record.get("worst_ratio")),
        divergence=_divergence(record.get("first_divergence")),
        environment={
            printable(key): printable(value)
            for key, value in mapping(record.get("environment")).items()
        },
        seconds=number(record.get("seconds")),
        suite=printable(record.get("suite")),
        depth=printable(record.get("depth")),
        faults=_faults(record.get("faults")),
        missing_probes={
            printable(component): _texts(names)
            for component, names in mapping(record.get("missing_probes")).items()
        },
        stamps_missing={
            printable(stamp): printable(gaps, _MESSAGE)
            for stamp, gaps in mapping(record.get("stamps_missing")).items()
        },
        next_level=_next(record.get("next_level")),
        offers=tuple(_texts(record.get("offers"))),
        expected=_expected(record.get("xfails")),
        options=tuple(_texts(record.get("options"))),
        selection=_share(record.get("selection")),
        memory=Held(count(memory.get("judged")), count(memory.get("failed"))),
        missing_shards=tuple(_texts(record.get("missing_shards"))),
        control=printable(control.get("port")),
        control_broke=len(_texts(control.get("broke"))),
        baseline=printable(baseline.get("dir"), _MESSAGE),
        regressed=bool(_texts(baseline.get("regressions"))),
    )


def _share(value: object) -> Share | None:
    record = mapping(value)
    return Share(count(record.get("cases")), count(record.get("of"))) if record else None


def _faults(value: object) -> tuple[Fault, ...]:
    """Read the causes, those that explain most first."""
    records = [mapping(item) for item in value] if isinstance(value, list) else []
    faults = (
        Fault(
            probes=printable(record.get("probes")),
            count=count(record.get("count")),
            mutant=printable(record.get("mutant")),
            confirmed=record.get("confirmed") is True,
            ratio_if_so=number(record.get("ratio_if_so")),
            environment=record.get("cause") == "environment",
            text=printable(record.get("text")),
            held=record.get("held") is True,
        )
        for record in records
    )
    return tuple(sorted(faults, key=lambda fault: -fault.count))


def _texts(value: object) -> list[str]:
    return [printable(item) for item in value] if isinstance(value, list) else []


def _level(value: object) -> int | None:
    level = number(value)
    return int(level) if level is not None and level in range(10) else None


def _next(value: object) -> Next | None:
    record = mapping(value)
    level = _level(record.get("level"))
    return None if level is None else Next(level, printable(record.get("because"), _MESSAGE))


def _expected(value: object) -> Expected | None:
    record = mapping(value)
    if not record:
        return None
    return Expected(
        printable(record.get("file"), _MESSAGE),
        count(record.get("entries")),
        count(record.get("used")),
        _texts(record.get("problems")),
    )


def parse_case(record: dict[str, Any], place: int = 0) -> Case:
    """Read one case line; a verdict that this suite does not know reads as `error`."""
    found = record.get("verdict")
    verdict = found if found in VERDICTS else "error"
    return Case(
        case=printable(record.get("case")),
        component=printable(record.get("component")),
        variant=printable(record.get("variant")),
        scenario=printable(record.get("scenario")),
        dtype=printable(record.get("dtype")),
        device=printable(record.get("device")),
        backend=printable(record.get("backend")),
        mode=printable(record.get("mode")),
        verdict=verdict,
        ratio=number(record.get("ratio")),
        worst_probe=printable(record.get("worst_probe")),
        divergence=_divergence(record.get("first_divergence")),
        seconds=number(record.get("seconds")),
        message=printable(record.get("message"), _MESSAGE),
        hunts=printable(record.get("hunts"), _MESSAGE),
        detail=printable(record.get("traceback") or record.get("detail"), _MESSAGE)
        if verdict in FAILING
        else "",
        tensor=printable(mapping(record.get("data")).get("tensor")),
        place=place,
    )


def _divergence(value: object) -> Divergence | None:
    record = mapping(value)
    if not record:
        return None
    return Divergence(
        case=printable(record.get("case")),
        probe=printable(record.get("probe")),
        after=printable(record.get("after")),
        ratio=number(record.get("ratio")),
        limit=number(record.get("limit")),
        kind=printable(record.get("kind")),
        hint=printable(record.get("hint"), _MESSAGE),
    )


def parse_probes(record: dict[str, Any]) -> list[Probe]:
    """Read the probes of a case line, numbered from 1 in execution order."""
    probes = record.get("probes")
    found = probes if isinstance(probes, list) else []
    return [_probe(order, mapping(probe)) for order, probe in enumerate(found, start=1)]


def _probe(order: int, record: dict[str, Any]) -> Probe:
    shape = record.get("shape")
    return Probe(
        order=order,
        name=printable(record.get("name")),
        kind=printable(record.get("kind")),
        shape=printable(
            "\N{MULTIPLICATION SIGN}".join(map(str, shape)) if isinstance(shape, list) else None
        ),
        err=number(record.get("err")),
        noise=number(record.get("noise")),
        ratio=number(record.get("ratio")),
        verdict=printable(record.get("verdict")),
        approximate=record.get("approximate") is True,
        rms=number(record.get("rms")),
        max_abs=number(record.get("max_abs")),
        note=printable(record.get("note")),
    )


def excerpt_of(probes: list[Probe], divergence: Divergence | None) -> Excerpt:
    """Pick the worst probes, and those around the first one that is wrong."""
    worst = sorted(probes, key=lambda probe: severity(probe.ratio), reverse=True)[:EXCERPT]
    named = divergence.probe if divergence else None
    wrong = (i for i, p in enumerate(probes) if p.name == named or (not named and is_wrong(p)))
    start = max(0, min(next(wrong, 0) - EXCERPT // 2, len(probes) - EXCERPT))
    return Excerpt(worst, probes[start : start + EXCERPT], len(probes))


def is_wrong(probe: Probe) -> bool:
    """Say whether a probe is beyond what is allowed."""
    return probe.verdict in FAILING
