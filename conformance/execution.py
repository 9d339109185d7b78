"""How cases are run: the bracketed part of an item's id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from conformance.case import Case
from conformance.golden import SPLICE, TRACE

SDPA, PACKED, COMPILE = "sdpa", "packed", "compile"
BACKENDS = (SDPA, "flash", "efficient", "math", "plain", "sliced", "channels_last", PACKED, COMPILE)
"""Ways to evaluate a network. `sdpa` is the port's own; of `compile` only outputs are seen."""

LIMITED = (PACKED, COMPILE)
"""Backends that do not have every arithmetic or every probe: no stamp asks for them."""

FRESH = "fresh"
STABILITY = ("repeat", FRESH, "state", "threads", "batch")
"""Modes that compare a port with another run of itself: `conformance.stability`."""

MEMORY = "memory"
"""The mode that judges how much a port holds instead of what it computes: `conformance.memory`."""

SAVINGS = ("by_sample", "tiled", "recompute")
"""Backends of mode `memory` alone: the VAE sample by sample or tile by tile, checkpointing."""

MODES = (SPLICE, TRACE, *STABILITY, MEMORY)
"""In the order in which they are run: a trace is explained by what splicing found."""

_TRAINING = "training"


@dataclass(frozen=True)
class Execution:
    """How a case is run: the bracketed part of an item's id.

    Attributes:
        dtype: Arithmetic asked of the port.
        device: Device asked of the port.
        backend: One of `BACKENDS`, in mode `memory` one of `SAVINGS` too; empty for what is no
            network.
        mode: One of `MODES`. A scheduler is neither traced nor spliced: then it is empty.
    """

    dtype: str = "float32"
    device: str = "cpu"
    backend: str = SDPA
    mode: str = TRACE

    def item_id(self, case: Case) -> str:
        """Return the id of a case run this way, `unet/tiny/base[float32-cpu-sdpa-trace]`."""
        parts = (self.dtype, self.device, self.backend, self.mode)
        return f"{case.id}[{'-'.join(part for part in parts if part)}]"

    def for_case(self, case: Case) -> Execution:
        """Return how a case is run when this is asked for: what is exact knows one way only."""
        if self.mode == MEMORY:
            return self
        own = self.mode if self.mode in STABILITY else ""
        if case.is_scheduler:
            return replace(self, backend="", mode=own)
        if case.exact:
            return replace(EXACT, mode=own)
        if case.component.partition("/")[0] == _TRAINING:
            return replace(self, backend=SDPA, mode=own or TRACE)
        return self

    @classmethod
    def of_item(cls, item_id: str) -> Execution:
        """Read how a case is run off the id of an item.

        Args:
            item_id: `unet/tiny/base[float32-cpu-sdpa-trace]`; what it does not say is empty.
        """
        parts = item_id.partition("[")[2].partition("]")[0].split("-")
        mode = parts.pop() if parts[-1] in MODES else ""
        backend = parts.pop() if parts and parts[-1] in (*BACKENDS, *SAVINGS) else ""
        *arithmetic, device = parts or [""]  # the name of an arithmetic may have a hyphen
        return cls("-".join(arithmetic), device if arithmetic else "", backend, mode)

    @property
    def shows_probes(self) -> bool:
        """Whether hooks can look into the network: a compiled one is a single piece."""
        return self.backend != COMPILE


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
