"""Pictures: which are embedded, in which order, and what stands below them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from conformance.report import pictures
from conformance.report.html import Page, write_html
from conformance.report.pictures import Pictures
from conformance.report.run import read_run

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes([0, 0, 0, 6, 0, 0, 0, 4])
TXT2IMG = {"component": "pipeline/txt2img"}


def view(out: Path) -> Any:
    """Show a run to the section and return what its template gets."""
    section = Pictures()
    return section.view(read_run(out, [section]))


def picture(name: str, **changes: object) -> dict[str, Any]:
    """Describe one triptych whose files begin with a name."""
    files = {part: f"{name}-{part}.png" for part in ("oracle", "port", "difference")}
    facts = {"index": 0, "factor": 40.0, "psnr": 31.25, "ssim": 0.98765}
    return {**files, **facts, **changes}


def save(out: Path, name: str, size: int = 20) -> None:
    """Write the files of a triptych: what begins like a PNG will do."""
    (out / "data").mkdir(exist_ok=True)
    for part in ("oracle", "port", "difference"):
        (out / "data" / f"{name}-{part}.png").write_bytes(PNG + part.encode() + bytes(size))


def test_triptych(made_up) -> None:
    """Three pictures stand in the page, with how alike they are."""
    line = made_up.line("fail", **TXT2IMG, data={"pictures": [picture("a")]})
    out = made_up.write([line])
    save(out, "a")
    page = write_html(Page(out)).read_text("utf-8")
    for part in ("oracle", "port", "difference"):
        content = base64.b64encode((out / "data" / f"a-{part}.png").read_bytes()).decode()
        assert f'src="data:image/png;base64,{content}" width="6" height="4"' in page
    assert "port, PSNR 31.2 dB, SSIM 0.9877" in page
    assert "difference, amplified 40 times" in page
    assert "scikit-image was not installed" not in page
    assert page.count('alt="') == 3


def test_without_measures(made_up) -> None:
    """Without scikit-image the page says that PSNR and SSIM are missing."""
    shown = picture("a", psnr=None, ssim=None)
    out = made_up.write([made_up.line(**TXT2IMG, data={"pictures": [shown]})])
    save(out, "a")
    page = write_html(Page(out)).read_text("utf-8")
    assert "scikit-image was not installed" in page
    assert "<figcaption>port</figcaption>" in page


def test_failing_cases_first(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst failing case comes first; what does not fit is counted."""
    monkeypatch.setattr(pictures, "_EMBEDDED", 500)
    rows = [("pass", 1.0, "a"), ("fail", 5.0, "b"), ("fail", 50.0, "c")]
    lines = [
        made_up.line(v, **TXT2IMG, scenario=n, ratio=r, data={"pictures": [picture(n)]})
        for v, r, n in rows
    ]
    out = made_up.write(lines)
    for name in "abc":
        save(out, name)
    found = view(out)
    assert [one.files[0] for one, _ in found["shown"]] == ["c-oracle.png", "b-oracle.png"]
    assert found["left_out"] == 1


@pytest.mark.parametrize("name", ["../secret", "/etc/x", ".hidden", "a/b", "<b>", ""])
def test_only_plain_names_are_read(made_up, name: str) -> None:
    """A name that leads out of the folder, or to no PNG, shows nothing."""
    shown = picture("a", port=f"{name}.png")
    out = made_up.write([made_up.line(**TXT2IMG, data={"pictures": [shown]})])
    save(out, "a")
    (out / "secret.png").write_bytes(PNG)
    assert view(out) is None


def test_what_is_no_picture(made_up) -> None:
    """A missing file, another format or a garbled record shows nothing and breaks nothing."""
    shown = [picture("a"), picture("b"), None, 7, {"oracle": 3}]
    out = made_up.write([made_up.line(**TXT2IMG, data={"pictures": shown})])
    save(out, "a")
    for content in (b"GIF89a", PNG[:20]):
        (out / "data" / "a-port.png").write_bytes(content)
        assert view(out) is None
    assert view(made_up.write([made_up.line(**TXT2IMG, data={"pictures": "x"})])) is None
