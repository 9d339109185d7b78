"""Which memory configurations a run judges: the options that choose cases choose them too."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from conformance.case import Case, select_cases
from conformance.checkpoints import FileVariant
from conformance.choice import asks_memory, chosen_names, is_memory_alone
from conformance.cli_common import split
from conformance.cli_weights import cases_of
from conformance.errors import UsageError
from conformance.execution import BACKENDS, MEMORY, SAVINGS, Execution
from conformance.memory.cases import configurations, memory_cases
from conformance.port import Hello
from conformance.tolerance import EVERY_ARITHMETIC


@dataclass(frozen=True)
class Wanted:
    """What the options say: globs; None where they say nothing, and all is meant.

    Attributes:
        components: Of component names.
        variants: Of variant names, `sd1` among them: nothing is computed or allocated.
        scenarios: Of scenario names.
        expression: As `-k` takes it.
        dtype: Comma-separated arithmetics.
        device: Comma-separated devices.
        backend: Comma-separated backends, those of `SAVINGS` among them.
        alone: Whether nothing else is asked for, so that there must be some.
    """

    components: list[str] | None = None
    variants: list[str] | None = None
    scenarios: list[str] | None = None
    expression: str | None = None
    dtype: str | None = None
    device: str = "cpu"
    backend: str | None = None
    alone: bool = True

    def cases(self) -> list[Case]:
        """Return the memory cases that the options select.

        Raises:
            UsageError: A glob names nothing that exists, or no case is left.
        """
        return select_cases(
            self.components,
            self.variants or ["*"],
            self.scenarios,
            self.expression,
            among=memory_cases(),
        )

    def items(self, hello: Hello) -> list[tuple[Case, Execution]]:
        """Return the configurations that the options select, less what the port does not offer.

        Args:
            hello: What the port offers. What it does not and is named plainly is kept: it becomes
                a skip that says so.

        Raises:
            UsageError: No case is selected, or nothing is left alone; an unknown name.
        """
        cases = {
            case.id
            for case in self.cases()
            if hello.offers(case.component, case.variant.name)
            or case.component in (self.components or [])
        }
        dtypes = chosen_names("dtype", self.dtype or "*", hello.arithmetics, EVERY_ARITHMETIC)
        own = (*hello.backends, *SAVINGS)
        backends = chosen_names("backend", self.backend or "*", own, (*BACKENDS, *SAVINGS))
        devices = chosen_names("device", self.device, hello.devices, hello.devices)
        found = [
            (case, replace(run, device=device))
            for device in devices
            for case, run in configurations()
            if case.id in cases and run.dtype in dtypes and run.backend in backends
        ]
        if self.alone and not found:
            message = (
                f"mode {MEMORY} has no configuration of what is selected that {hello.name} offers: "
                "`sd1-conformance show CASE` prints those of a case"
            )
            raise UsageError(message)
        return found


def cases_and_budgets(
    arguments: argparse.Namespace,
) -> tuple[list[Case], FileVariant | None, Wanted | None]:
    """Return what `run` is to judge: by computing it, and by what it holds.

    Args:
        arguments: Of `run`.

    Returns:
        Cases; the variant of the user's own weights, or None; the memory configurations that are
        wanted, or None. Where both kinds are asked for, the selection may leave one empty.

    Raises:
        UsageError: Nothing is selected; or mode `memory` alone, with what does not concern it.
    """
    if not asks_memory(arguments.mode):
        return *cases_of(arguments), None
    foreign = [f"--{name}" for name in ("weights", "level") if getattr(arguments, name) is not None]
    alone = all(map(is_memory_alone, split(arguments.mode) or []))
    if alone and foreign:
        message = f"mode {MEMORY} reads no weights and is of no level: leave {foreign[0]} out"
        raise UsageError(message)
    if foreign:
        return *cases_of(arguments), None
    wanted = Wanted(
        split(arguments.component),
        split(arguments.variant),
        split(arguments.scenario),
        arguments.k,
        arguments.dtype,
        arguments.device,
        arguments.backend,
        alone,
    )
    if alone:
        wanted.cases()
        return [], None, wanted
    try:
        cases, variant = cases_of(arguments)
    except UsageError:
        wanted.cases()
        return [], None, replace(wanted, alone=True)
    try:
        wanted.cases()
    except UsageError:
        return cases, variant, None
    return cases, variant, wanted
