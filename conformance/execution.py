"""How cases are run: the bracketed part of an item's id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from conformance.case import Case
from conformance.golden import TRACE


@dataclass(frozen=True)
class Execution:
    """How a case is run: the bracketed part of an item's id.

    Attributes:
        dtype: Arithmetic asked of the port.
        device: Device asked of the port.
        backend: Attention backend.
        mode: `trace` or `splice`. A scheduler has no attention and one mode: both are empty.
    """

    dtype: str = "float32"
    device: str = "cpu"
    backend: str = "sdpa"
    mode: str = TRACE

    def item_id(self, case: Case) -> str:
        """Return the id of a case run this way, `unet/tiny/base[float32-cpu-sdpa-trace]`."""
        parts = (self.dtype, self.device, self.backend, self.mode)
        return f"{case.id}[{'-'.join(part for part in parts if part)}]"

    def for_case(self, case: Case) -> Execution:
        """Return how a case is run when this is asked for: what is exact knows one way only."""
        if case.is_scheduler:
            return replace(self, backend="", mode="")
        return EXACT if case.exact else self


EXACT = Execution("int64", "cpu", "", "")
"""How the tokenizer is run: no arithmetic, no device, no attention."""


def items(
    cases: Iterable[Case], executions: Iterable[Execution]
) -> Iterator[tuple[Case, Execution]]:
    """Yield every case with every execution, each item once.

    Cases of one component and variant come together, and among them one execution after the other,
    so that each network is built once.
    """
    executions = list(executions)
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.component, case.variant.name), []).append(case)
    for group in groups.values():
        for execution in dict.fromkeys(execution.for_case(group[0]) for execution in executions):
            yield from ((case, execution) for case in group)
