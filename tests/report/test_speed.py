"""How fast a failing run of 10,000 cases opens, and how smoothly its heat map scrolls."""

from __future__ import annotations

import statistics
from functools import partial

OPENED = """() => new Promise(done => {
  const drawn = () => requestAnimationFrame(() => done(performance.now()));
  const next = () => requestAnimationFrame(drawn);
  if (document.readyState === "complete") next(); else addEventListener("load", next);
})"""
SCROLLED = """() => new Promise(done => {
  const frame = document.getElementById("heat-frame");
  const times = [];
  let last = performance.now();
  const step = () => {
    const now = performance.now();
    times.push(now - last);
    last = now;
    frame.scrollLeft += 40;
    frame.scrollTop += 20;
    if (times.length < 40) requestAnimationFrame(step); else done(times.slice(5));
  };
  requestAnimationFrame(step);
})"""
LIMIT = 2.0
say = partial(print, flush=True)  # `pytest -rP` shows it


def test_opening_time(large, visit) -> None:
    """The page is there, its first frame drawn, in under 2 seconds."""
    times = []
    for _ in range(3):
        found = visit(large / "index.html")
        times.append(found.page.evaluate(OPENED) / 1000)
        assert found.page.locator("h1").is_visible()
    size = (large / "index.html").stat().st_size / 1e6
    say(f"10,000 cases, 2,500 failing: {size:.1f} MB, opens in", *(f"{t:.2f}" for t in times), "s")
    assert statistics.median(times) < LIMIT


def test_heat_map_is_smooth(large, visit) -> None:
    """Scrolling the heat map takes less than a twentieth of a second a frame."""
    page = visit(large / "index.html").page
    page.locator("#heat-frame").scroll_into_view_if_needed()
    frames = page.evaluate(SCROLLED)
    say(f"heat map: {statistics.median(frames):.0f} ms a frame, at most {max(frames):.0f}")
    assert statistics.median(frames) < 50


def test_filtering_is_quick(large, visit) -> None:
    """A word typed into the filter is answered in under half a second."""
    page = visit(large / "index.html").page
    page.evaluate(OPENED)
    took = page.evaluate("""() => {
      const field = document.querySelector("#cases-form [name=q]");
      const start = performance.now();
      field.value = "vae_decoder odd";
      field.dispatchEvent(new Event("input", { bubbles: true }));
      return performance.now() - start;
    }""")
    say(f"filter over 10,000 cases: {took:.0f} ms")
    assert " of 10000 cases" in page.locator("#cases-count").inner_text()
    assert took < 500
