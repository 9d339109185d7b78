"""Filters live in the address: set by a control, kept by a reload, undone by going back."""

from __future__ import annotations

import re

import pytest

from conformance.report.html import Page, write_html

COUNT = "#cases-count"


@pytest.fixture
def table(faulty, visit):
    """Open the faulty run's page at an address, and return the visit."""
    return lambda fragment="", **options: visit(faulty / "index.html", fragment, **options)


def verdicts(page) -> set[str]:
    """Return the verdicts of the rows that are shown."""
    return set(page.locator("#cases-table tbody tr td:first-child").all_inner_texts())


def test_set_reload_back(table) -> None:
    """A filter narrows the table and stands in the address; a reload keeps it, back undoes it."""
    found = table()
    page = found.page
    every = page.locator(COUNT).inner_text()
    page.locator("#cases-form [name=verdict]").select_option("fail")
    assert "verdict=fail" in page.url
    assert verdicts(page) == {"fail"}
    failing = page.locator(COUNT).inner_text()
    assert failing == "6 of 22 cases"
    page.locator("#cases-form [name=component]").select_option("unet")
    assert page.locator(COUNT).inner_text() == "2 of 22 cases"
    page.reload()
    assert page.locator(COUNT).inner_text() == "2 of 22 cases"
    assert page.locator("#cases-form [name=component]").input_value() == "unet"
    page.go_back()
    assert page.locator(COUNT).inner_text() == failing
    assert page.locator("#cases-form [name=component]").input_value() == ""
    page.go_back()
    assert page.locator(COUNT).inner_text() == every
    page.go_forward()
    assert page.locator(COUNT).inner_text() == failing
    assert found.complaints == []


def test_backends(faulty, visit, tmp_path) -> None:
    """Where there are several backends, one can be chosen, and stands in the address."""
    lines = (faulty / "results.jsonl").read_text("utf-8").splitlines(keepends=True)
    own, other = '"backend":"sdpa"', '"backend":"plain"'
    for i in [i for i, text in enumerate(lines) if own in text][:2]:
        lines[i] = lines[i].replace(own, other).replace("-cpu-sdpa-", "-cpu-plain-")
    for name in ("summary.json", "results.jsonl"):
        text = "".join(lines) if name == "results.jsonl" else (faulty / name).read_text("utf-8")
        (tmp_path / name).write_text(text, "utf-8")
    seen = visit(write_html(Page(tmp_path)))
    page = seen.page
    page.locator("#cases-form [name=backend]").select_option("plain")
    assert page.locator(COUNT).inner_text() == "2 of 22 cases"
    assert "backend=plain" in page.url
    page.reload()
    assert page.locator(COUNT).inner_text() == "2 of 22 cases"
    assert seen.complaints == []
    alone = visit(faulty / "index.html").page
    assert not alone.locator("#cases-form [name=backend]").is_visible()


def test_words(table) -> None:
    """Words are looked for in ids, probes and messages, all of them; Clear takes all away."""
    page = table().page
    page.locator("#cases-form [name=q]").fill("vae_decoder NORM2")
    assert page.locator(COUNT).inner_text() == "2 of 22 cases"
    assert "q=vae_decoder" in page.url
    page.locator("#cases-clear").click()
    assert page.locator(COUNT).inner_text() == "22 cases"
    assert page.locator("#cases-form [name=q]").input_value() == ""
    assert "q=" not in page.url


def test_shared_address(table) -> None:
    """An address that somebody was sent shows what the sender saw."""
    page = table("#verdict=fail&component=vae_decoder&sort=ratio").page
    assert page.locator(COUNT).inner_text() == "2 of 22 cases"
    ratios = page.locator("#cases-table tbody td:nth-child(3)").all_inner_texts()
    numbers = [float(text.split()[-1]) for text in ratios]
    assert numbers == sorted(numbers)


def test_link_to_a_case(table) -> None:
    """A link to a case opens it, whatever else is chosen, and closing it lets go of it."""
    case = "unet/tiny/base[float32-cpu-sdpa-splice]"
    page = table(f"#case={case}&verdict=pass").page
    opened = page.locator(".opened-case")
    assert case in opened.locator("h3").inner_text()
    assert "GEGLU" in opened.inner_text()
    opened.get_by_role("button", name="Close").click()
    assert page.locator(".opened-case").count() == 0
    assert "case=" not in page.url


@pytest.mark.parametrize(
    "fragment",
    [
        "#case=nowhere/tiny/base",
        "#verdict=<script>alert(1)</script>&component=__proto__&dtype=constructor",
        "#page=-3&sort=toString&q=%00%ff",
        "#=&=&probe=[&mode=,,,",
        "#%E0%A4%A",
        "#verdict=fail&verdict=pass&page=1e99&__proto__=x",
    ],
    ids=["case", "hostile", "numbers", "empty", "garbled", "twice"],
)
def test_foreign_addresses(table, fragment) -> None:
    """Whatever stands in an address, the page stays whole and a way back is offered."""
    found = table(fragment)
    page = found.page
    assert page.locator(COUNT).is_visible()
    page.locator("#cases-clear").click()
    assert page.locator(COUNT).inner_text() == "22 cases"
    assert found.objections() == []


def test_every_part_follows(table) -> None:
    """What is chosen in the drawing of the model narrows the heat map and the table too."""
    found = table()
    page = found.page
    page.locator("a.block[data-component=vae_decoder]").first.click()
    assert "component=vae_decoder" in page.url
    assert page.locator("#architecture-panel").is_visible()
    assert re.match(r"\d+ of 22 cases", page.locator(COUNT).inner_text())
    assert page.locator("#heat-component").input_value() == "vae_decoder"
    assert found.complaints == []


def test_table_of_ports(ports, visit) -> None:
    """The table of ports is sorted by its heads; the order stands in the address."""
    found = visit(ports / "index.html")
    page = found.page
    names = page.locator(".ports tbody th a")
    by_merit = names.all_inner_texts()
    assert by_merit[0] == "sd1_impl"
    page.get_by_role("button", name="Worst ratio").click()
    assert "sort=ratio" in page.url
    page.get_by_role("button", name="Worst ratio").click()
    assert "sort=-ratio" in page.url
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Worst ratio")
    descending = names.all_inner_texts()
    page.reload()
    assert names.all_inner_texts() == descending
    assert sorted(descending) == sorted(by_merit)
    names.filter(has_text="faulty_port").click()
    assert "faulty_port" in page.locator("h1").inner_text()
    page.get_by_role("link", name="All ports").click()
    assert page.locator(".ports").is_visible()
    assert found.complaints == []
