"""The pytest plugin: the matrix as items, the report as for `sd1-conformance run`.

A test that asks for `sd1_item` is parametrised over the selected cases and executions; calling
`sd1_judge(sd1_item)` runs one and passes, fails or skips as the verdict says. `sd1_block` is the
same for splice mode, one item per named block: one run of the case serves them all.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from conformance.blocks import block_names, of_block
from conformance.case import Case, select_cases
from conformance.cli_common import split
from conformance.cli_run import default_modes, executions, scope_of
from conformance.devices import device_of, visible_devices
from conformance.environment import environment
from conformance.errors import ExitCode, SuiteError
from conformance.execution import Execution, items
from conformance.golden import SPLICE
from conformance.port import BUILTIN, Hello, Port, close, greet, resolve
from conformance.report.terminal import verdict_lines
from conformance.report.words import rerun_command
from conformance.results import DEFAULT_OUT, Results
from conformance.runner import Result, Runner
from conformance.shards import Item, Selection, Shard
from conformance.traces import NO_SPLICE, find_traces
from conformance.xfails import Xfails

DEFAULT_DTYPES = "float32,float64"
CUDA_DTYPES = ("float32", "bfloat16", "float16")

_SCOPE = pytest.StashKey[str]()
_PORT = pytest.StashKey[Port]()
_XFAILS = pytest.StashKey[Xfails | None]()
_SHARD = pytest.StashKey[Shard | None]()
_SELECTION = pytest.StashKey[Selection]()
_MISUSE = pytest.StashKey[str]()
_OWN = pytest.StashKey[dict[str, str]]()
"""Variables of this worker's own: its GPU."""

_LIVE = Execution("live", "", "", "")
"""How a case is run that is compared with the oracle that is installed."""

_REPORTER = "sd1-conformance-reporter"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the choices of `sd1-conformance run`."""
    group = parser.getgroup("sd1-conformance")
    group.addoption("--sd1-port", default="sd1_impl", help="PORT of sd1-conformance run")
    group.addoption("--sd1-dtype", default=DEFAULT_DTYPES, help="arithmetics, comma-separated")
    group.addoption("--sd1-device", default="cpu", help="device of the port")
    group.addoption("--sd1-variant", default=None, help="globs; default tiny*,odd*")
    group.addoption("--sd1-mode", default=None, help="trace, splice; default both, if possible")
    group.addoption("--sd1-traces", default=None, help="folder of trace packs for splice mode")
    group.addoption("--sd1-shard", default=None, help="I/N: one part of N of the matrix")
    group.addoption("--sd1-xfails", default=None, help="file of expected failures")
    group.addoption("--sd1-out", default=str(DEFAULT_OUT), help="folder of the report")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Share cores and GPUs among workers, before a conftest can import torch."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not worker.isdigit():
        return
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    if ":" not in early_config.known_args_namespace.sd1_device:  # cuda:1 names one of all
        own = device_of(int(worker), visible_devices())
        os.environ.update(own)
        early_config.stash[_OWN] = own


def pytest_configure(config: pytest.Config) -> None:
    """The process that sees every report writes the results."""
    path, shard = config.getoption("--sd1-xfails"), config.getoption("--sd1-shard")
    try:
        config.stash[_XFAILS] = Xfails.read(Path(path)) if path else None
        config.stash[_SHARD] = Shard.parse(shard) if shard else None
    except SuiteError as error:
        raise pytest.UsageError(str(error)) from error
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Reporter(config), _REPORTER)


def _port(config: pytest.Config) -> Port:
    if _PORT not in config.stash:
        config.stash[_PORT] = resolve(config.getoption("--sd1-port"))
    return config.stash[_PORT]


def selection(config: pytest.Config) -> tuple[list[Case], list[Execution]]:
    """Return the cases and executions that the options choose."""
    option = config.getoption
    cases = select_cases(variants=split(option("--sd1-variant")))
    hello = greet(_port(config))
    mode = option("--sd1-mode") or default_modes(hello, _packs(config))
    return cases, executions(option("--sd1-dtype"), option("--sd1-device"), "sdpa", mode, hello)


def _packs(config: pytest.Config) -> Path | None:
    folder = config.getoption("--sd1-traces")
    return Path(folder) if folder else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the items of other shards out, after `-k` and `-m`; what has no case stays."""
    shard = config.stash[_SHARD]
    if shard is None:
        return
    beside = [(case, _LIVE) for item in items if (case := _parameter(item, "sd1_case"))]
    try:
        selection = Selection(_judged(items), shard, beside)
    except SuiteError as error:
        if not hasattr(config, "workerinput"):
            raise pytest.UsageError(str(error)) from error
        config.stash[_MISUSE] = str(error)  # what a worker raises here nobody would see
        del items[1:]
        return
    config.stash[_SELECTION] = selection
    config.stash[_SCOPE] = _scope(items)
    mine: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        case = _parameter(item, "sd1_case")
        dealt = [(case, _LIVE)] if case else _judged([item])
        here = not dealt or selection.holds(*dealt[0][:2])
        (mine if here else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = mine


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say in a test what kept a worker from choosing tests."""
    if _MISUSE in item.config.stash:
        pytest.fail(item.config.stash[_MISUSE], pytrace=False)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take scope and selection from the items that are left after `-k` and `-m`."""
    stash = session.config.stash
    if stash[_SHARD] is None:
        stash[_SCOPE] = _scope(session.items)
        stash[_SELECTION] = Selection(_judged(session.items))


def _parameter(item: pytest.Item, name: str) -> Any:
    """Return a parameter of a test; None where it has none of that name."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec else None


def _judged(items: Iterable[pytest.Item]) -> list[Item]:
    """Return the items of the matrix among tests."""
    chosen = (_parameter(item, name) for item in items for name in _JUDGED)
    return [item for item in chosen if item is not None]


def _scope(items: Iterable[pytest.Item]) -> str:
    return scope_of([(item[0], item[1]) for item in _judged(items)])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `sd1_block`, `sd1_item`, `sd1_cuda_item` and `sd1_case`."""
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
    chosen = items(*selection(config))
    return [_item(case, run) for case, run in chosen if run.mode != SPLICE]


def _blocks(config: pytest.Config) -> list[Any]:
    chosen = [(case, run) for case, run in items(*selection(config)) if run.mode == SPLICE]
    if not chosen:
        return [_skipped(f"splice mode is not among the modes, or impossible: {NO_SPLICE}")]
    return [
        pytest.param((case, run, block), id=f"{run.item_id(case)}::{block}", marks=_group(case))
        for case, run in chosen
        for block in block_names(case)
    ]


def _cuda_items(config: pytest.Config) -> list[Any]:
    cases, _ = selection(config)
    if "cuda" not in greet(_port(config)).devices:
        return [_skipped("no CUDA device is visible to the port")]
    runs = [Execution(dtype=dtype, device="cuda") for dtype in CUDA_DTYPES]
    return [_item(case, run) for case, run in items(cases, runs) if not case.exact]


def _item(case: Case, run: Execution) -> Any:
    return pytest.param((case, run), id=run.item_id(case), marks=_group(case))


def _cases(config: pytest.Config) -> list[Any]:
    cases = [case for case in selection(config)[0] if not case.refused]
    return [pytest.param(c, id=c.id, marks=_group(c)) for c in cases]


_JUDGED = ("sd1_block", "sd1_item", "sd1_cuda_item")
_PARAMETERS = {
    "sd1_block": _blocks,
    "sd1_item": _items,
    "sd1_cuda_item": _cuda_items,
    "sd1_case": _cases,
}


def _group(case: Case) -> pytest.MarkDecorator:
    """Keep one component and variant on one worker, so that its networks are built once."""
    return pytest.mark.xdist_group(f"{case.component}/{case.variant.name}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the port has started."""
    if _PORT in config.stash:
        close(config.stash[_PORT])


@pytest.fixture(scope="session")
def sd1_runner(pytestconfig: pytest.Config) -> Runner:
    """Run cases on the port under test."""
    folder = _packs(pytestconfig)
    return Runner(_port(pytestconfig), find_traces(folder) if folder else None)


@pytest.fixture(scope="session")
def sd1_spliced(sd1_runner: Runner) -> Callable[[Case, Execution], Result]:
    """Run a case in splice mode once for all its blocks."""
    last: dict[str, Result] = {}

    def run(case: Case, execution: Execution) -> Result:
        key = execution.item_id(case)
        if key not in last:
            last.clear()
            last[key] = sd1_runner.run(case, execution)
            return last[key]
        return replace(last[key], seconds=0.0)

    return run


@pytest.fixture
def sd1_judge(
    sd1_runner: Runner,
    sd1_spliced: Callable[[Case, Execution], Result],
    request: pytest.FixtureRequest,
) -> Callable[[Item], None]:
    """Judge one item: pass, fail, skip or raise as its verdict says, and report it."""

    def judge(item: Item) -> None:
        case, execution, *block = item
        if block:
            result = of_block(sd1_spliced(case, execution), block[0])
        else:
            result = sd1_runner.run(case, execution)
        selection = request.config.stash[_SELECTION]
        line = selection.placed(result.as_json())
        if known := request.config.stash[_XFAILS]:
            line = known.excuse(line)
        payload = {
            "line": line,
            "hello": asdict(sd1_runner.hello),
            "environment": _environment(request.config),
            "scope": request.config.stash[_SCOPE],
            "items": selection.facts,
        }
        request.node.user_properties.append(("sd1", json.dumps(payload)))
        option = request.config.getoption
        _conclude(line, option("--sd1-port"), _rerun_options(option))

    return judge


def _environment(config: pytest.Config) -> dict[str, str]:
    """Describe the machine without what was given to this worker alone."""
    own = config.stash.get(_OWN, {})
    return {name: text for name, text in environment().items() if name not in own}


def _conclude(line: dict[str, Any], port: str, options: tuple[str, ...] = ()) -> None:
    verdict, message = line["verdict"], line["message"]
    if verdict == "skip":
        pytest.skip(message)
    if verdict == "xfail":
        pytest.xfail(message)
    if verdict in {"fail", "error"}:
        again = rerun_command(port, line["case"], options)
        text = [f"{verdict}: {message}", line["detail"], f"run it alone: {again}"]
        pytest.fail("\n".join(filter(None, text)), pytrace=False)


def _rerun_options(option: Callable[[str], Any]) -> tuple[str, ...]:
    """Return what a command that runs an item again has to repeat."""
    packs = option("--sd1-traces")
    return ("--traces", packs) if packs else ()


class _Reporter:
    """Gathers the items' lines from all workers and writes the report of a run."""

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
            xfails=self.config.stash[_XFAILS],
            options=_rerun_options(self.config.getoption),
            shard=self.config.stash[_SHARD],
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
