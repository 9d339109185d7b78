"""Recording many goldens: each is kept as soon as it is made, and what was broken off goes on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from conformance.case import Case
from conformance.errors import GoldenError, SuiteError
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.recorded import arithmetics, case_probes
from conformance.recording import writer
from conformance.recording.record import claimed, input_facts, provenance
from conformance.report.text import counted
from sd1_weights.names import golden_root

Say = Callable[[str], None]


def record_all(cases: Sequence[Case], make: Callable[[Case], Golden], say: Say) -> None:
    """Record goldens one after the other.

    Args:
        cases: What is to be recorded.
        make: Records one.
        say: Told what is to come, then each golden that is written, in one line.

    Raises:
        GoldenError: One is refused; those before it are kept.
        SuiteError: Ctrl-C; those before it are kept.
    """
    components = Counter(case.component for case in cases)
    told = ", ".join(f"{count} {component}" for component, count in components.items())
    say(f"{counted(len(cases), 'golden')} to record{f': {told}' if told else ''}")
    done = 0
    try:
        writer.write_lock()  # names those too that the reference refuses: they have no golden
        for case in cases:
            start = time.monotonic()
            size = writer.write(make(case))
            done += 1
            seconds = time.monotonic() - start
            say(f"[{done}/{len(cases)}] {case.id}: {size / 2**10:.0f} KiB in {seconds:.0f} s")
    except KeyboardInterrupt:
        kept = f"{done} of {counted(len(cases), 'golden')}"
        message = f"interrupted: {kept} written to {golden_root()}: go on with --resume"
        raise SuiteError(message) from None


def is_recorded(case: Case, added: Collection[str] = ()) -> bool:
    """Say whether the golden that is there is the one that would be recorded now.

    Args:
        case: The case.
        added: Arithmetics whose noise is to be entered: the golden has it. Without them the golden
            is of this commit, oracle and machine, and of today's inputs, probes, arithmetics and
            mutants. What was changed since the commit and shows in none of these is not seen.
    """
    try:
        golden = load_golden(case)
    except GoldenError:
        return False
    if added:
        return {a for a in arithmetics(case) if a in added} <= set(golden.noise)
    wanted = set() if case.exact else set(arithmetics(case))
    return (
        golden.provenance == provenance()
        and golden.hunts == case.scenario.hunts
        and golden.inputs == input_facts(case)
        and set(golden.noise) == wanted
        and (not case.is_network or golden.probes == case_probes(case))
        and golden.kills == [mutant.id for mutant in claimed(case)]
    )
