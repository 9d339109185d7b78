"""Pages that list what there is: nothing is missing from them, and nothing is invented."""

from __future__ import annotations

import re
from pathlib import Path

from conformance.case import COMPONENTS
from conformance.execution import BACKENDS
from conformance.levels import NAMES
from conformance.regimes import REGIMES, UNIT
from conformance.spec import BLOCKS
from conformance.training import TRAININGS
from conformance.variants import sizes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROW = re.compile(r"^\| \[(.*?)\]\(\.\./(.*?)\) \|(.*?)\| (.*?) \| `(.*?)` \|$", re.MULTILINE)


def test_every_file_of_the_model_is_read() -> None:
    """docs/learn.md asks about each file, or says what it is there for."""
    page = (DOCS / "learn.md").read_text("utf-8")
    files = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "sd1_impl").rglob("*.py"))
        if not path.name.startswith("__") and "toy" not in path.parts
    ]
    assert [str(path) for path in files if f"(../{path})" not in page] == []


def test_questions_can_be_answered() -> None:
    """Each row has a question, and the place that it points to is in its file."""
    rows = ROW.findall((DOCS / "learn.md").read_text("utf-8"))
    assert len(rows) > 20
    for _, path, notebook, question, place in rows:
        assert notebook.strip() in {"", "1", "2", "3"}
        assert "?" in question, path
        assert place in (ROOT / path).read_text("utf-8"), (path, place)


def test_cases_page_has_every_name() -> None:
    """Components, sizes and regimes of docs/cases.md are those of the suite."""
    page = (DOCS / "cases.md").read_text("utf-8")
    names = {n if n in BLOCKS or n in TRAININGS else n.rpartition("/")[2] for n in COMPONENTS}
    names |= {*sizes(), *(r for r in REGIMES if r != UNIT)}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_contract_page_has_every_backend_and_level() -> None:
    """So are backends and levels of docs/contract.md."""
    page = (DOCS / "contract.md").read_text("utf-8")
    assert [name for name in BACKENDS if f"`{name}`" not in page] == []
    assert [f"{i} {name}" for i, name in enumerate(NAMES) if f"| {i} {name} |" not in page] == []


def test_skip_reasons_are_the_engines_own() -> None:
    """Each reason that docs/failures.md explains is written somewhere in the engine."""
    table = (DOCS / "failures.md").read_text("utf-8").partition("## Why is a case skipped?")[2]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    reasons = [text for cell in cells for text in re.findall(r"`(.*?)`", cell)]
    engine = "\n".join(
        re.sub(r'["`]\s*\n\s*f?["`]', "", path.read_text("utf-8")).replace("`", "")
        for path in (ROOT / "conformance").rglob("*.py")
    )
    pieces = [piece for reason in reasons for piece in re.split(r" ?\.\.\. ?|float16", reason)]
    assert len(pieces) > 15
    assert [piece for piece in pieces if piece.strip(" ,") not in engine] == []


def test_architecture_page_names_what_is_there() -> None:
    """Names in code that its recipes tell to change exist where they say."""
    page = (DOCS / "architecture.md").read_text("utf-8")
    for name, path in {
        "UNET_SCENARIOS": "conformance/scenarios/unet.py",
        "PROMPT_SCENARIOS": "conformance/scenarios/text.py",
        "TINY": "tests/conformance/test_scenarios.py",
        "captions": "golden/spec/prompts.json",
        "ALGORITHMS": "conformance/sampling.py",
        "SIGMA_FAMILY": "conformance/sampling.py",
        "OWN": "conformance/sampling.py",
        "_CLASSES": "conformance/adapters/diffusers_schedulers.py",
        "SCHEDULERS": "sd1_impl/schedulers/__init__.py",
        "RULES": "conformance/recording/discover.py",
        "MUTANTS": "conformance/mutants/unet_body.py",
        "each(ResnetBlock, resnet_eps)": "conformance/mutants/unet_body.py",
        "sd1_conformance.ports": "conformance/port.py",
    }.items():
        assert name in page
        assert name in (ROOT / path).read_text("utf-8"), (name, path)
    table = page.partition("## Where things live")[2].partition("\nFlow of")[0]
    here = [DOCS.parent, ROOT / "conformance"]
    names = re.findall(r"`([\w/*]+\.(?:py|toml|json)|[\w/]+/)`", table)
    missing = [n for n in names if not any(any(folder.glob(n.rstrip("/"))) for folder in here)]
    assert missing == []


def test_recipes_are_short() -> None:
    """How to add something takes at most ten lines of steps."""
    page = (DOCS / "architecture.md").read_text("utf-8")
    recipes = re.split(r"^## ", page, flags=re.MULTILINE)[3:]
    assert [text.partition("\n")[0] for text in recipes] == [
        "A scenario", "A scheduler", "A probe", "A mutant", "A port",
    ]  # fmt: skip
    for text in recipes:
        steps = [line for line in text.splitlines() if re.match(r"\d\. |   \S", line)]
        assert len(steps) <= 10, text.partition("\n")[0]
