"""Every page of the five sites: quiet, self-contained, readable in any way it may be read."""

from __future__ import annotations

import pytest

from conformance.report.words import headline

MOST_TEXTS = 3000
"""So many pieces of text of a page have their contrast measured."""


def settle(page) -> None:
    """Let a page do all that it does by itself, down to its end."""
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))")
    page.evaluate("scrollTo(0, 0)")


def test_quiet_and_alone(site, pages, visit, shot) -> None:
    """No console message, error, dialog or breach of the policy; one request, the page's own."""
    name, _ = site
    for i, path in enumerate(pages):
        found = visit(path)
        settle(found.page)
        shot(found.page, f"{name}-{i}")
        assert found.objections() == []
        assert len(found.requests) - sum(url.startswith("data:") for url in found.requests) == 1


def test_narrow(site, pages, visit, shot) -> None:
    """At 360 px nothing has to be scrolled sideways, and nothing complains."""
    name, _ = site
    for i, path in enumerate(pages):
        found = visit(path, width=360)
        settle(found.page)
        shot(found.page, f"{name}-{i}-narrow")
        assert found.page.evaluate(f"{visit.audit}.wide()") == []
        assert found.objections() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(site, pages, visit, shot, scheme) -> None:
    """Text has a contrast of at least 4.5, by day and by night, and the page follows the choice."""
    name, _ = site
    for i, path in enumerate(pages):
        page = visit(path, color_scheme=scheme).page
        settle(page)
        if scheme == "dark":
            shot(page, f"{name}-{i}-dark")
        lit = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128"
        assert page.evaluate(lit) == (scheme == "light")
        assert page.evaluate(f"{visit.audit}.contrast({MOST_TEXTS})") == []


def test_structure(pages, visit) -> None:
    """Controls, pictures and table heads are named, headings in order, links alive, ids unique."""
    for path in pages:
        page = visit(path).page
        settle(page)
        assert page.evaluate(f"{visit.audit}.structure()") == []


def test_print(site, visit) -> None:
    """The first page of the site prints: its text is there, its buttons are not."""
    name, path = site
    page = visit(path).page
    settle(page)
    page.emulate_media(media="print")
    assert page.locator("h1").is_visible()
    assert not page.locator("button:visible").count()
    if name != "large":
        assert page.pdf()[:5] == b"%PDF-"


def test_forced_colours(site, visit, shot) -> None:
    """With the system's own colours (high contrast) the page still works and says the same."""
    name, path = site
    found = visit(path, forced_colors="active")
    settle(found.page)
    shot(found.page, f"{name}-0-forced")
    assert found.page.evaluate("matchMedia('(forced-colors: active)').matches")
    assert found.page.locator("h1").is_visible()
    ground = "e => getComputedStyle(e).backgroundColor"
    pressed, other = (
        {
            e.evaluate(ground)
            for e in found.page.locator(f"button[aria-pressed={state}]:visible").all()
        }
        for state in ("true", "false")
    )
    assert not pressed & other
    assert found.objections() == []


def test_without_script(site, visit, shot, summary_of) -> None:
    """Verdict, first divergence, causes and cases can be read where scripts do not run."""
    name, path = site
    page = visit(path, java_script_enabled=False).page
    shot(page, f"{name}-0-plain")
    text = page.locator("main").inner_text()
    if name == "ports":
        assert "faulty_port" in text
        assert page.locator("tbody tr").count() == 4
        return
    summary = summary_of(path.parent)
    assert headline(summary).lower() in text.lower()
    if summary.divergence and name != "hostile":
        assert summary.divergence.probe in text.replace("\u200b", "")
    if name != "hostile":
        assert all(fault.mutant in text for fault in summary.faults)
    assert page.locator("table").count() > 0
