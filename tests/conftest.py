"""Fixtures shared by the matrix and the unit tests."""

import importlib

import pytest


class LiveOracle:
    """Asks the installed oracle; what splice mode has evaluated is not evaluated again."""

    def __init__(self):
        self.oracle = importlib.import_module("conformance.oracle")
        self.verify = importlib.import_module("conformance.recording.verify")
        self.values = importlib.import_module("conformance.recording.live").LiveTraces()

    def token_ids(self, case):
        """Return the ids that the installed tokenizer makes of a case's texts."""
        return self.oracle.token_ids(case.inputs()["text"].tolist())


@pytest.fixture(scope="session")
def live_oracle():
    """The installed oracle."""
    pytest.importorskip("diffusers")
    return LiveOracle()
