"""Fixtures shared by the matrix and the unit tests."""

import importlib

import pytest


class LiveOracle:
    """Evaluates the installed oracle; keeps the networks of the last variant."""

    def __init__(self):
        self.record = importlib.import_module("conformance.record")
        self.verify = importlib.import_module("conformance.verify")
        self.reference = None

    def __call__(self, case):
        """Return the oracle's float64 outputs and probes of a case."""
        if self.reference is None or self.reference.variant != case.variant:
            self.reference = self.record.Reference(case.component, case.variant)
        return self.reference.truth(case)


@pytest.fixture(scope="session")
def live_oracle():
    """The oracle, evaluated now."""
    pytest.importorskip("diffusers")
    return LiveOracle()
