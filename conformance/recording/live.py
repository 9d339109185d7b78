"""Whole values from the oracle that is installed, cached on disk."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from conformance import oracle
from conformance.cache import CACHE_BYTES, cache_folder, shrink
from conformance.case import Case
from conformance.errors import SuiteError
from conformance.golden import Golden
from conformance.golden_files import golden_digest
from conformance.recording.record import Reference, values_of
from conformance.traces import PACK_FORMAT, Values, pack_path, read_pack, write_pack


class LiveTraces:
    """Evaluates the oracle once a case; keeps the network of the last variant."""

    def __init__(self) -> None:
        self._reference: Reference | None = None

    def __call__(self, case: Case, golden: Golden) -> Values:
        """Return what the oracle computes."""
        folder = cache_folder()
        path = pack_path(folder / self._digest(case), case) if folder else None
        values = _cached(path, case, golden)
        if values is not None:
            return values
        values = values_of(self.reference(case).truth(case))
        if path is not None and folder is not None:
            with suppress(OSError, SuiteError):  # what cannot be kept costs time, not a verdict
                write_pack(path, case, values)
                shrink(folder, CACHE_BYTES)
        return values

    def reference(self, case: Case) -> Reference:
        """Return the oracle of a case's component and variant."""
        key = (case.component, case.variant, case.seed)
        kept = self._reference
        if kept is None or key != (kept.component, kept.variant, kept.seed):
            self._reference = None  # the old network goes before the new one comes
            kept = self._reference = Reference(*key)
        return kept

    @staticmethod
    def _digest(case: Case) -> str:
        """Name a folder after all that the values depend on."""
        facts = json.dumps(
            [PACK_FORMAT, golden_digest(case), oracle.versions(), case.seed], sort_keys=True
        )
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _cached(path: Path | None, case: Case, golden: Golden) -> Values | None:
    """Read a pack of the cache; a damaged one is deleted, to be made anew."""
    if path is None or not path.exists():
        return None
    try:
        values = read_pack(path, case, golden)
    except SuiteError:
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        path.touch()
    return values
