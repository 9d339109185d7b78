"""What came of one case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conformance import tolerance
from conformance.case import Case
from conformance.compare import Record
from conformance.execution import Execution
from conformance.precision import Finding
from conformance.trajectory import trajectory


@dataclass
class Result:
    """What came of one case.

    Attributes:
        case: The case.
        execution: How it was run.
        verdict: `pass`, `warn`, `fail`, `error` or `skip`.
        records: Judged probes in execution order, then outputs.
        message: Why, in one line.
        first_divergence: The first failing record, as in summary.json.
        seconds: Wall time.
        detail: What a reader wants to see below the message, in several lines.
        traceback: Where a port raised, its own frames; of a port in a process of its own, what it
            wrote last to its standard error.
        block: The named block that this is about; empty for the whole case.
        missing: Probes that a port that has some was asked for and did not hand out.
        rounding: What was found behind a failure that a lower precision explains.
        headroom: How near its values came to the end of a half type, from `headroom.facts`.
        memory: What it holds, in mode `memory`: `peak`, `weights` and `ceiling` in bytes, `at` (the
            operation), `where` (the module) and `blocks` (bytes by name).
        evidence: Makes what a report shows beside the numbers; None where there is nothing.
    """

    case: Case
    execution: Execution
    verdict: str
    records: list[Record] = field(default_factory=list)
    message: str = ""
    first_divergence: dict[str, Any] | None = None
    seconds: float = 0.0
    detail: str = ""
    traceback: str = ""
    block: str = ""
    missing: list[str] = field(default_factory=list)
    evidence: Callable[[Result], dict[str, Any]] | None = None
    rounding: Finding | None = None
    headroom: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def item_id(self) -> str:
        """Return the id of the item of the matrix."""
        own = self.execution.item_id(self.case)
        return f"{own}::{self.block}" if self.block else own

    @property
    def worst(self) -> Record | None:
        """Return the record with the worst ratio."""
        return max(self.records, key=lambda r: tolerance.badness(r.ratio), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the case line of results.jsonl, its evidence not yet in files."""
        worst = self.worst
        evidence = self.evidence(self) if self.evidence is not None else {}
        return {
            "type": "case",
            "case": self.item_id,
            "component": self.case.component,
            "variant": self.case.variant.name,
            "scenario": self.case.scenario.name,
            "dtype": self.execution.dtype,
            "device": self.execution.device,
            "backend": self.execution.backend,
            "mode": self.execution.mode,
            "verdict": self.verdict,
            "ratio": worst.ratio if worst else None,
            "worst_probe": worst.name if worst else None,
            "first_divergence": self.first_divergence,
            "seconds": round(self.seconds, 3),
            "message": self.message,
            "detail": self.detail,
            **({"traceback": self.traceback} if self.traceback else {}),
            "hunts": self.case.scenario.hunts,
            "missing": self.missing,
            **({"trajectory": trajectory(self.records)} if self.case.is_pipeline else {}),
            **({"evidence": evidence} if evidence else {}),
            **({"headroom": self.headroom} if self.headroom else {}),
            **({"memory": self.memory} if self.memory else {}),
            "probes": [record.as_json() for record in self.records],
        }
