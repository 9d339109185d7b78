"""Goldens of the user's own weights, recorded by the oracle that is installed, and kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from conformance import oracle
from conformance.case import Case
from conformance.checkpoints import FileVariant
from conformance.errors import GoldenError, UsageError
from conformance.golden import Golden
from conformance.golden_files import check_inputs, golden_of_weights
from conformance.recipe import digest
from conformance.recorded import arithmetics
from conformance.recording.record import record_case
from conformance.recording.writer import replace_file
from conformance.report.text import counted

Say = Callable[[str], None]


def record_missing(cases: list[Case], wanted: Collection[str], say: Say) -> None:
    """Record what is not in the cache yet.

    Args:
        cases: Those on files' weights are looked at; others have goldens.
        wanted: The arithmetics that they are to be judged in.
        say: Told how many there are, in one line.

    Raises:
        GoldenError: The oracle cannot judge these weights.
        UsageError: The cache cannot be written.
    """
    own = [(c, c.variant) for c in cases if isinstance(c.variant, FileVariant) and not c.refused]
    kept = {case: _arithmetics_kept(case, variant) for case, variant in own}
    missing = [c for c, _ in own if not set(wanted) & set(arithmetics(c)) <= kept[c]]
    if missing:
        say(f"recorded from the oracle: {counted(len(missing), 'golden')} of these weights")
    for case, variant in own:
        if case in missing:
            golden = record_case(case, {"float64", *wanted, *kept[case]})
            _write(variant.goldens / f"{case.id}.safetensors", golden)


def _arithmetics_kept(case: Case, variant: FileVariant) -> set[str]:
    """Return the arithmetics of the golden that is kept: of today's inputs and oracle."""
    try:
        golden = golden_of_weights(case, variant)
        check_inputs(golden, {name: digest(array) for name, array in case.inputs().items()})
    except GoldenError:
        return set()
    same = all(golden.provenance.get(name) == own for name, own in oracle.versions().items())
    return set(golden.noise) if same else set()


def _write(path: Path, golden: Golden) -> None:
    """Keep a golden; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, golden.to_bytes())
    except OSError as error:
        message = f"cannot keep {path}: {error.strerror or error}; SD1_CACHE names another folder"
        raise UsageError(message) from error
