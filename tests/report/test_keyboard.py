"""The page without a mouse: every control is reached, seen and does what it says."""

from __future__ import annotations

import pytest

FOCUSED = """() => {
  const e = document.activeElement;
  const style = getComputedStyle(e);
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
  const box = e.getBoundingClientRect();
  const shown = ring || style.boxShadow !== "none";
  return [e.dataset.audit || null, shown, box.width > 0, e.outerHTML.slice(0, 120)];
}"""


@pytest.fixture
def page(faulty, visit):
    """The page of the faulty run."""
    return visit(faulty / "index.html").page


@pytest.mark.parametrize("width", [1280, 360])
def test_tab_reaches_everything(faulty, ports, visit, width) -> None:
    """Tab goes through all controls, each shows that it has the focus, and none holds it."""
    for path in (faulty / "index.html", ports / "index.html"):
        page = visit(path, width=width).page
        controls = page.evaluate(f"{visit.audit}.controls()")
        assert len(controls) > 5
        seen = []
        for _ in range(len(controls) + 5):
            page.keyboard.press("Tab")
            mark, ring, size, text = page.evaluate(FOCUSED)
            if mark is None:
                break
            seen.append(mark)
            assert ring, f"no visible focus: {text}"
            assert size, f"an invisible control takes the focus: {text}"
        assert [c for c in controls if c not in seen] == []
        assert len(seen) == len(set(seen))


def test_skip_link(page) -> None:
    """The first tab offers to skip to the contents."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the contents"
    assert page.locator(".skip").bounding_box()["x"] >= 0


def test_heat_map(page) -> None:
    """Arrow keys walk over the heat map, which says where it is; Enter opens the case there."""
    frame = page.locator("#heat-frame")
    frame.focus()
    now = page.locator("#heat-now")
    assert now.get_attribute("aria-live") == "polite"
    said = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End", "PageDown"):
        page.keyboard.press(key)
        said.append(now.inner_text())
    assert len(set(said)) >= 3
    assert "ratio" in said[-1] or "not measured" in said[-1]
    page.keyboard.press("Enter")
    assert "case=" in page.url
    assert page.locator(".opened-case").is_visible()


def test_depth(page) -> None:
    """Arrow keys walk along the layers of the picture of ratio over depth."""
    page.locator("#depth-plot").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#depth-readout").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#depth-readout").inner_text()
    assert first.split(".")[0].isdigit()
    assert int(second.split(".")[0]) == int(first.split(".")[0]) + 1


def test_architecture(page) -> None:
    """Enter on a block opens its layers and takes the focus there; Escape closes them."""
    block = page.locator("a.block[data-component=unet]").first
    block.focus()
    page.keyboard.press("Enter")
    panel = page.locator("#architecture-panel")
    assert panel.is_visible()
    assert panel.locator("h3").inner_text().startswith("unet")
    assert panel.locator("tbody tr").count() > 0
    panel.focus()
    page.keyboard.press("Escape")
    assert not panel.is_visible()


def test_sort(page) -> None:
    """The table is sorted by its heads with Enter, and says how."""
    head = page.locator("#cases-table th", has_text="Worst ratio")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.evaluate("document.activeElement.dataset.sort") == "ratio"


def test_open_a_case(page) -> None:
    """Enter on a case's name opens it below, and again closes it; the focus stays."""
    opener = page.locator("#cases-table .opener").first
    opener.focus()
    page.keyboard.press("Enter")
    assert page.locator("#cases-table .opener").first.get_attribute("aria-expanded") == "true"
    assert page.evaluate("document.activeElement.classList.contains('opener')")
    page.keyboard.press("Enter")
    assert page.locator(".opened-case").count() == 0


def test_bug_report(faulty, visit) -> None:
    """The button puts a bug report on the clipboard, ready for the port's tracker."""
    permissions = ["clipboard-read", "clipboard-write"]
    found = visit(faulty / "index.html", permissions=permissions)
    button = found.page.get_by_role("button", name="Copy a bug report")
    button.click()
    found.page.get_by_role("button", name="Copied").wait_for()
    text = found.page.evaluate("navigator.clipboard.readText()")
    for part in ("unet", "GEGLU", "sd1-conformance run", "faulty_port", "ratio"):
        assert part in text
    assert found.objections() == []


def test_clipboard_refused(faulty, visit) -> None:
    """Where the clipboard is refused, the text is shown selected."""
    found = visit(faulty / "index.html")
    page = found.page
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()); }")
    page.get_by_role("button", name="Copy a bug report").click()
    area = page.locator("textarea.copied")
    area.wait_for()
    assert "sd1-conformance run" in area.input_value()
    assert page.evaluate("document.activeElement.selectionEnd") == len(area.input_value())
