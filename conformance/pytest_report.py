"""The report of a pytest session, the same as that of `sd1-conformance run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance.errors import ExitCode, SuiteError
from conformance.port import Hello
from conformance.report.terminal import verdict_lines
from conformance.results import Results
from conformance.shards import Shard
from conformance.xfails import Xfails


def rerun_options(option: Callable[[str], Any]) -> tuple[str, ...]:
    """Return what a command that runs an item again has to repeat."""
    packs = option("--sd1-traces")
    return ("--traces", packs) if packs else ()


class Reporter:
    """Gathers the items' lines from all workers and writes the report of a run."""

    def __init__(self, config: pytest.Config, xfails: Xfails | None, shard: Shard | None) -> None:
        self.config = config
        self.xfails = xfails
        self.shard = shard
        self.results: Results | None = None
        self.summary: dict[str, Any] | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the line of an item that was judged."""
        payload = dict(report.user_properties).get("sd1")
        if report.when != "call" or not isinstance(payload, str):
            return
        facts = json.loads(payload)
        try:
            self.results = self.results or self._begun(facts)
            self.results.add(facts["line"])
        except SuiteError as error:
            code = pytest.ExitCode.INTERNAL_ERROR
            if error.exit_code is ExitCode.USAGE:
                code = pytest.ExitCode.USAGE_ERROR
            pytest.exit(f"sd1-conformance: {error}", code)

    def _begun(self, facts: dict[str, Any]) -> Results:
        """Begin the report with what the first item says of the port."""
        hello: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["hello"].items()}
        return Results(
            Path(self.config.getoption("--sd1-out")),
            Hello(**hello),
            self.config.getoption("--sd1-port"),
            facts["scope"],
            machine=facts["environment"],
            xfails=self.xfails,
            options=rerun_options(self.config.getoption),
            shard=self.shard,
            items=facts["items"],
        )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Close the report; a list of expected failures that does not fit fails the session."""
        if self.results is not None:
            try:
                self.summary = self.results.close()
            except SuiteError as error:
                pytest.exit(f"sd1-conformance: {error}", pytest.ExitCode.INTERNAL_ERROR)
            misfits = self.summary["xfails"] and self.summary["xfails"]["problems"]
            if misfits and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the verdict."""
        if self.results is not None and self.summary is not None:
            terminalreporter.section("sd1-conformance")
            for line in verdict_lines(self.summary, self.results.lines):
                terminalreporter.line(line)
            terminalreporter.line(f"  report {self.results.out / 'index.html'}")
