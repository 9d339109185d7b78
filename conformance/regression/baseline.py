"""`run --baseline DIR`: an earlier run that this one must not fall behind.

The verdict says whether a port computes what SD v1 computes; an earlier run has no part in that. A
port that got worse within the limit stays conformant, and the command exits with 1 all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.regression.diff import Diff
from conformance.regression.finished import CASE, CONTROL, EarlierRun
from conformance.regression.ratchet import Ratchet, measured
from conformance.report.text import mapping, one_line

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Baseline:
    """An earlier run, and the best ratios reached up to it.

    Attributes:
        run: The run.
        ratchet: What it left, or else its own ratios.
    """

    run: EarlierRun
    ratchet: Ratchet

    @classmethod
    def read(cls, folder: Path, out: Path, port: str) -> Baseline:
        """Read and check it, before the long run.

        Args:
            folder: Folder of the earlier run.
            out: Folder of this run.
            port: Name of this run's port; another version of it is fine.

        Raises:
            UsageError: It is no finished run, the same folder as `out`, or of another port.
        """
        if folder.resolve() == out.resolve():
            message = (
                f"--baseline {folder} is the folder of this run, which would overwrite it: "
                "give another --out"
            )
            raise UsageError(message)
        run = EarlierRun.read(folder)
        name = mapping(run.header.get("port")).get("name")
        if name != port:
            message = (
                f"--baseline {folder} is a run of {one_line(name, 60) or 'another port'}, not of "
                f"{one_line(port, 60)}: `sd1-conformance diff` compares two ports"
            )
            raise UsageError(message)
        ratchet = Ratchet.read(folder) or Ratchet.empty(run.header)
        own = ((case, judged.ratio) for case, judged in run.cases.items())
        return cls(run, ratchet.lowered(own))

    def compared(self, header: Line, cases: Iterable[Line], controls: Iterable[Line]) -> Diff:
        """Compare this run with it.

        Args:
            header: The header of this run's results.
            cases: Its case lines.
            controls: Its control lines.
        """
        found = Diff(self.run, header)
        for kind, lines in ((CASE, cases), (CONTROL, controls)):
            for line in lines:
                found.add(kind, line["case"], self.run.interned.judged(line))
        found.conclude()
        return found

    def facts(self, found: Diff, cases: Iterable[Line]) -> dict[str, Any]:
        """Return `baseline` of summary.json.

        Args:
            found: What the comparison gave.
            cases: This run's case lines.
        """
        best = self.ratchet if self.ratchet.units == Ratchet.empty(found.header).units else None
        return {
            **found.facts(),
            "ratchet": best.slipped(measured(cases)) if best else [],
        }


def ratchet_of(baseline: Baseline | None, header: Line, cases: Iterable[Line]) -> Ratchet:
    """Return the ratchet that a run leaves.

    Args:
        baseline: Whose best is taken over, unless other goldens or weights give other units.
        header: The header of the run's results.
        cases: Its case lines.
    """
    own = Ratchet.empty(header)
    if baseline is not None and baseline.ratchet.units == own.units:
        own = baseline.ratchet
    return own.lowered(measured(cases))
