"""The pytest plugin: the matrix as items, the report as for `sd1-conformance run`.

A test that asks for `sd1_item` is parametrised over the selected cases and executions; calling
`sd1_judge(sd1_item)` runs one and passes, fails or skips as the verdict says. `sd1_block` is the
same for splice mode, one item per named block: one run of the case serves them all. `sd1_axis` is
the same for the other arithmetics, backends and modes (`conformance.matrix`), `sd1_memory` for the
budgets of memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from conformance.blocks import of_block
from conformance.case import Case
from conformance.choice import scope_of
from conformance.devices import device_of, visible_devices
from conformance.environment import environment
from conformance.errors import SuiteError
from conformance.execution import Execution
from conformance.pytest_items import (
    DEFAULT_DTYPES,
    JUDGED,
    PARAMETERS,
    close_port,
    packs_of,
    parameters,
    port_of,
)
from conformance.pytest_report import Reporter, rerun_options
from conformance.report.words import rerun_command
from conformance.result import Result
from conformance.results import DEFAULT_OUT
from conformance.runner import Runner
from conformance.shards import Item, Selection, Shard
from conformance.traces import find_traces
from conformance.xfails import Xfails

_SCOPE = pytest.StashKey[str]()
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
    group.addoption("--sd1-dtype", default=None, help=f"globs; default {DEFAULT_DTYPES}")
    group.addoption("--sd1-device", default=None, help="devices of the port; default cpu")
    group.addoption("--sd1-backend", default=None, help="globs; default sdpa")
    group.addoption("--sd1-variant", default=None, help="globs; default tiny*,odd*,toy")
    group.addoption("--sd1-mode", default=None, help="globs; default trace,splice, if possible")
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
    if ":" not in (early_config.known_args_namespace.sd1_device or ""):  # cuda:1 names one of all
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
        reporter = Reporter(config, config.stash[_XFAILS], config.stash[_SHARD])
        config.pluginmanager.register(reporter, _REPORTER)


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
    chosen = (_parameter(item, name) for item in items for name in JUDGED)
    return [item for item in chosen if item is not None]


def _scope(items: Iterable[pytest.Item]) -> str:
    return scope_of([(item[0], item[1]) for item in _judged(items)])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `sd1_item` and its like."""
    for fixture, make in PARAMETERS.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, parameters(metafunc.config, make))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the port has started."""
    close_port(config)


@pytest.fixture(scope="session")
def sd1_runner(pytestconfig: pytest.Config) -> Runner:
    """Run cases on the port under test."""
    folder = packs_of(pytestconfig)
    traces = find_traces(folder) if folder else None
    return Runner(port_of(pytestconfig), traces, pytestconfig.getoption("--sd1-port"))


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
        _conclude(line, option("--sd1-port"), rerun_options(option))

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
        told = [f"{verdict}: {message}", line["detail"], line.get("traceback")]
        text = [*told, f"run it alone: {again}"]
        pytest.fail("\n".join(filter(None, text)), pytrace=False)
