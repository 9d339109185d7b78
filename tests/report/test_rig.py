"""The rig itself: a page that does everything wrong is caught at each of it."""

from __future__ import annotations

import pytest

BAD = """<!DOCTYPE html><html><head><meta charset="utf-8"><title></title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'">
</head><body>
<h1>One</h1><h3>Three</h3><p style="color: red">styled against the policy</p>
<p id="a">pale</p><p id="a">twice</p><input><img src="other.png"><canvas></canvas>
<a href="#nowhere">dead</a><div id="wide">w</div>
<script>
  document.querySelectorAll("p")[1].style.color = "#999";
  document.getElementById("wide").style.width = "900px";
  console.warn("a warning");
  setTimeout(() => { alert(1); undefined.x; });
</script></body></html>"""


@pytest.fixture
def found(tmp_path, visit):
    """A visit to a page that does everything wrong, on a narrow screen."""
    path = tmp_path / "bad.html"
    path.write_text(BAD, "utf-8")
    seen = visit(path, width=360)
    seen.page.wait_for_timeout(300)
    return seen


@pytest.mark.parametrize(
    "part",
    ["a warning", "dialog", "error: ", "style-src", "img-src"],
)
def test_objections(found, part) -> None:
    """Messages, dialogs, errors and breaches of the policy are all objected to."""
    assert any(part in objection for objection in found.objections())


def test_a_second_request(tmp_path, visit) -> None:
    """A page that asks for a file beside itself is caught, allowed or not."""
    path = tmp_path / "asks.html"
    path.write_text("<!DOCTYPE html><title>t</title><img src='other.png'>", "utf-8")
    seen = visit(path)
    seen.page.wait_for_timeout(300)
    assert any(objection.endswith("other.png") for objection in seen.objections())


@pytest.mark.parametrize(
    ("audit", "parts"),
    [
        ("contrast(100)", ["p#a"]),
        ("wide()", ["scrolls by", "div#wide"]),
        (
            "structure()",
            [
                "unnamed: input",
                "unnamed canvas",
                "no alt",
                "dead link",
                "id twice: a",
                "heading skips a level: h3",
                "0 main",
                "no title",
                "no language",
            ],
        ),
    ],
    ids=["contrast", "width", "structure"],
)
def test_audits(found, visit, audit, parts) -> None:
    """Each audit names what is wrong with the page."""
    offences = found.page.evaluate(f"{visit.audit}.{audit}")
    assert [p for p in parts if not any(o.startswith(p) for o in offences)] == []
