"""Fixtures shared by the matrix and the unit tests."""

import importlib

import pytest


class LiveOracle:
    """Evaluates the installed oracle; keeps the networks of the last component and variant."""

    def __init__(self):
        self.oracle = importlib.import_module("conformance.oracle")
        self.record = importlib.import_module("conformance.record")
        self.verify = importlib.import_module("conformance.verify")
        self.reference = None

    def __call__(self, case):
        """Return the oracle's float64 outputs and probes of a network's case."""
        key = (case.component, case.variant)
        if self.reference is None or key != (self.reference.component, self.reference.variant):
            self.reference = self.record.Reference(*key)
        return self.reference.truth(case)

    def token_ids(self, case):
        """Return the ids that the installed tokenizer makes of a case's texts."""
        return self.oracle.token_ids(case.inputs()["text"].tolist())


@pytest.fixture(scope="session")
def live_oracle():
    """The oracle, evaluated now."""
    pytest.importorskip("diffusers")
    return LiveOracle()
