"""The pytest plugin: the matrix as items, the report as for `sd1-conformance run`.

A test that asks for `sd1_item` is parametrised over the selected cases and executions; calling
`sd1_judge(sd1_item)` runs one and passes, fails or skips as the verdict says.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from conformance.case import Case, select_cases
from conformance.cli import executions, scope_of, split
from conformance.errors import SuiteError
from conformance.execution import Execution, items
from conformance.port import BUILTIN, Hello, Port, resolve
from conformance.report.terminal import verdict_lines
from conformance.report.words import rerun_command
from conformance.results import DEFAULT_OUT, Results, environment
from conformance.runner import Result, Runner

Item = tuple[Case, Execution]

DEFAULT_DTYPES = "float32,float64"
CUDA_DTYPES = ("float32", "bfloat16", "float16")

_SCOPE = pytest.StashKey[str]()
_PORT = pytest.StashKey[Port]()
_REPORTER = "sd1-conformance-reporter"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the choices of `sd1-conformance run`."""
    group = parser.getgroup("sd1-conformance")
    group.addoption("--sd1-port", default="sd1_impl", help="PORT of sd1-conformance run")
    group.addoption("--sd1-dtype", default=DEFAULT_DTYPES, help="arithmetics, comma-separated")
    group.addoption("--sd1-device", default="cpu", help="device of the port")
    group.addoption("--sd1-variant", default=None, help="globs; default tiny*,odd*")
    group.addoption("--sd1-out", default=str(DEFAULT_OUT), help="folder of the report")


def pytest_configure(config: pytest.Config) -> None:
    """The process that sees every report writes the results; workers share the cores."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Reporter(config), _REPORTER)
        return
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))  # read when torch is imported


def _port(config: pytest.Config) -> Port:
    if _PORT not in config.stash:
        config.stash[_PORT] = resolve(config.getoption("--sd1-port"))
    return config.stash[_PORT]


def selection(config: pytest.Config) -> tuple[list[Case], list[Execution]]:
    """Return the cases and executions that the options choose."""
    option = config.getoption
    cases = select_cases(variants=split(option("--sd1-variant")))
    hello = _port(config).hello()
    return cases, executions(option("--sd1-dtype"), option("--sd1-device"), "sdpa", "trace", hello)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take the scope from the items that are left after `-k` and `-m`."""
    parameters = [getattr(item, "callspec", None) for item in session.items]
    chosen = [p.params.get("sd1_item") or p.params.get("sd1_cuda_item") for p in parameters if p]
    judged: list[Item] = [item for item in chosen if item is not None]
    session.config.stash[_SCOPE] = scope_of(judged)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `sd1_item`, `sd1_cuda_item` and `sd1_case`."""
    for fixture, make in _PARAMETERS.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, _parameters(metafunc.config, make))


def _parameters(config: pytest.Config, make: Callable[..., list[Any]]) -> list[Any]:
    """Make the parameters of a fixture; one skipped parameter where there cannot be any."""
    port = config.getoption("--sd1-port")
    if port in BUILTIN and importlib.util.find_spec("torch") is None:
        return [_skipped(f"port {port} needs torch: pip install 'sd1-conformance[torch]'")]
    try:
        return make(config)
    except SuiteError as error:
        raise pytest.UsageError(str(error)) from error


def _skipped(reason: str) -> Any:
    return pytest.param(None, id="not-here", marks=pytest.mark.skip(reason))


def _items(config: pytest.Config) -> list[Any]:
    return [_item(case, run) for case, run in items(*selection(config))]


def _cuda_items(config: pytest.Config) -> list[Any]:
    cases, _ = selection(config)
    if "cuda" not in _port(config).hello().devices:
        return [_skipped("no CUDA device is visible to the port")]
    runs = [Execution(dtype=dtype, device="cuda") for dtype in CUDA_DTYPES]
    return [_item(case, run) for case, run in items(cases, runs) if not case.exact]


def _item(case: Case, run: Execution) -> Any:
    return pytest.param((case, run), id=run.item_id(case), marks=_group(case))


def _cases(config: pytest.Config) -> list[Any]:
    cases = [case for case in selection(config)[0] if not case.refused]
    return [pytest.param(c, id=c.id, marks=_group(c)) for c in cases]


_PARAMETERS = {"sd1_item": _items, "sd1_cuda_item": _cuda_items, "sd1_case": _cases}


def _group(case: Case) -> pytest.MarkDecorator:
    """Keep one component and variant on one worker, so that its networks are built once."""
    return pytest.mark.xdist_group(f"{case.component}/{case.variant.name}")


@pytest.fixture(scope="session")
def sd1_runner(pytestconfig: pytest.Config) -> Runner:
    """Run cases on the port under test."""
    return Runner(_port(pytestconfig))


@pytest.fixture
def sd1_judge(sd1_runner: Runner, request: pytest.FixtureRequest) -> Callable[[Item], None]:
    """Judge one item: pass, fail, skip or raise as its verdict says, and report it."""

    def judge(item: Item) -> None:
        result = sd1_runner.run(*item)
        payload = {
            "line": result.as_json(),
            "hello": asdict(sd1_runner.hello),
            "environment": environment(),
            "scope": request.config.stash[_SCOPE],
        }
        request.node.user_properties.append(("sd1", json.dumps(payload)))
        _conclude(result, request.config.getoption("--sd1-port"))

    return judge


def _conclude(result: Result, port: str) -> None:
    if result.verdict == "skip":
        pytest.skip(result.message)
    if result.verdict in {"fail", "error"}:
        again = rerun_command(port, result.execution.item_id(result.case))
        text = [f"{result.verdict}: {result.message}", result.detail, f"run it alone: {again}"]
        pytest.fail("\n".join(filter(None, text)), pytrace=False)


class _Reporter:
    """Gathers the items' lines from all workers and writes the four files of a run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.results: Results | None = None
        self.summary: dict[str, Any] | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the line of an item that was judged."""
        payload = dict(report.user_properties).get("sd1")
        if report.when != "call" or not isinstance(payload, str):
            return
        facts = json.loads(payload)
        if self.results is None:
            facts["hello"] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in facts["hello"].items()
            }
            self.results = Results(
                Path(self.config.getoption("--sd1-out")),
                Hello(**facts["hello"]),
                self.config.getoption("--sd1-port"),
                facts["scope"],
                machine=facts["environment"],
            )
        self.results.add(facts["line"])

    def pytest_sessionfinish(self) -> None:
        """Close the report."""
        if self.results is not None:
            self.summary = self.results.close()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the verdict."""
        if self.results is not None and self.summary is not None:
            terminalreporter.section("sd1-conformance")
            for line in verdict_lines(self.summary):
                terminalreporter.line(line)
            terminalreporter.line(f"  report {self.results.out / 'index.html'}")
