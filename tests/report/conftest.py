"""The rig: Debian's Chromium, what a page asked for and complained of, and the five sites."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conformance.report import html
from conformance.report.files import write_reports
from conformance.report.records import Summary, parse_summary
from conformance.report.run import read_object
from conformance.report.site import write_site

HERE = Path(__file__).parent

if importlib.util.find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]  # only the tox environment `report` installs it
else:
    from playwright.sync_api import Browser, Page, sync_playwright

SITES = ("conformant", "faulty", "large", "ports", "hostile")
WATCH = "window.violations = []; addEventListener('securitypolicyviolation', \
e => violations.push(e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample));"


def _load(name: str) -> Any:
    """Import a file beside this one: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(f"sd1_report_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fabricated = _load("fabricated")


AUDIT = (HERE / "audit.js").read_text("utf-8").strip()


@dataclass
class Visit:
    """A page that is open, and all that it did which somebody could object to."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def objections(self) -> list[str]:
        """Return the complaints: console, errors, dialogs, what the policy forbade, requests."""
        forbidden = self.page.evaluate("window.violations")
        asked = [url for url in self.requests if not url.startswith("data:")]
        return [*self.complaints, *forbidden, *asked[1:]]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, as Debian packages it."""
    path = os.environ.get("SD1_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).is_file():
        message = f"no browser at {path}: apt-get install chromium, or name one in SD1_CHROMIUM"
        if os.environ.get("SD1_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Open a file in a window of its own; options are those of a browser context."""
    contexts = []

    def open_page(path: Path, fragment: str = "", width: int = 1280, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        found = Visit(page)
        page.add_init_script(WATCH)
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("console", lambda message: found.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: found.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (found.complaints.append("dialog"), dialog.dismiss()))
        page.goto(path.as_uri() + fragment)
        return found

    open_page.audit = AUDIT
    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Page, str], None]:
    """Keep a picture of a page; of one that is very long, of its beginning."""
    named = os.environ.get("SD1_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def keep(page: Page, name: str) -> None:
        size = page.locator("body").bounding_box()
        clip = {"x": 0, "y": 0, "width": page.viewport_size["width"]}
        clip["height"] = min(size["y"] + size["height"], 12_000)
        page.screenshot(path=folder / f"{name}.png", full_page=True, clip=clip)

    return keep


def _run(out: Path, port: str, *options: str) -> Path:
    """Judge a port by a few small cases of every kind."""
    command = [sys.executable, "-m", "conformance", "run", port, "--out", str(out)]
    selection = ["--variant", "tiny,-", "-k", fabricated.SELECTION]
    done = subprocess.run(
        [*command, *selection, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return out


@pytest.fixture(scope="session")
def conformant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of `sd1_impl`, pipeline included, which is conformant."""
    return _run(tmp_path_factory.mktemp("conformant"), "sd1_impl")


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of a port with three wrong choices."""
    port = f"{HERE / 'faulty_port.py'}:port"
    return _run(tmp_path_factory.mktemp("faulty"), port)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10,000 cases, 2,500 of which fail."""
    out = tmp_path_factory.mktemp("large")
    fabricated.write_large(out)
    html.write_html(html.Page(out))
    (out / "results.jsonl").unlink()  # 670 MB, of which pytest would keep three
    return out


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every text tries to be markup."""
    out = tmp_path_factory.mktemp("hostile")
    fabricated.write_hostile(out)
    write_reports(out)
    return out


@pytest.fixture(scope="session")
def ports(conformant: Path, faulty: Path, hostile: Path, tmp_path_factory: Any) -> Path:
    """One site of several ports, a hostile one and one judged by another suite among them."""
    other = tmp_path_factory.mktemp("other")
    fabricated.write_other(other)
    out = tmp_path_factory.mktemp("ports") / "site"
    write_site([faulty, conformant, hostile, other], out)
    return out


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Each of the five sites: its name and its first page."""
    return request.param, request.getfixturevalue(request.param) / "index.html"


@pytest.fixture
def pages(site: tuple[str, Path]) -> list[Path]:
    """All pages of a site: one, but for that of several ports."""
    _, first = site
    return [first, *sorted(first.parent.glob("*/index.html"))]


@pytest.fixture(scope="session")
def summary_of() -> Callable[[Path], Summary]:
    """Return a function that reads the summary of a run's folder."""
    return lambda folder: parse_summary(read_object(folder / "summary.json"))
