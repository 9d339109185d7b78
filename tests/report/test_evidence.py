"""What the faulty run's page shows of its first wrong tensor, its pictures and the right lines."""

from __future__ import annotations

import pytest


@pytest.fixture
def page(faulty, visit):
    """The page of the faulty run."""
    return visit(faulty / "index.html").page


def test_pictures_are_drawn(page) -> None:
    """Every picture is in the page and could be decoded; each is told what it is."""
    images = page.locator("#pictures img")
    assert images.count() >= 6
    for image in images.all():
        image.evaluate("e => e.closest('details').open = true")
        image.evaluate("e => e.decode()")
        assert image.evaluate("e => e.naturalWidth") > 0
        assert image.get_attribute("alt")
    text = page.locator("#pictures").inner_text()
    assert "PSNR" in text
    assert "amplified" in text


def test_wrong_tensor(page) -> None:
    """The first wrong tensor is shown with its worst element and correlation, and is drawn."""
    section = page.locator("#tensor")
    text = section.inner_text()
    for part in ("ff.net.0", "Worst element", "Correlation (PCC)", "limit 4"):
        assert part in text
    assert section.locator("svg:visible, canvas:visible").count() > 0


def test_other_wrong_tensors(page) -> None:
    """Another failing case is chosen by its name."""
    choice = page.locator("#tensor-controls select")
    choice.select_option(index=1)
    shown = page.locator(".wrong-tensor:visible")
    assert shown.count() == 1
    assert "ff.net.0" not in shown.locator("dl").inner_text()


def test_right_lines(page) -> None:
    """Beside the first divergence stand the lines of sd1_impl that do it right, one marked."""
    source = page.locator("#divergence .source")
    assert "sd1_impl/" in source.locator("figcaption").inner_text()
    assert "gelu" in source.locator(".marked").first.inner_text().lower()
