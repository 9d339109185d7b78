"""The notebooks as files; the tox environment `notebooks` runs them.

The rule for code cells: each has an assertion, and each but the first, which loads the weights,
compares something with diffusers.
"""

import ast
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("01_vae_encoding", "02_unet_forward_pass", "03_scheduler_sampling")
ORACLE = {"oracle", "told", "told_early", "told_moved", "painted", "exact"}
"""What notebooks call the oracle, what it told them, and what diffusers computed in float64."""
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "rand_like", "randn_like", "uniform_"}
MACHINE = re.compile(r"(?<![\w./])/(home|root|tmp|work|usr|opt|mnt|Users)/|\b[A-Z]:\\\\")

each = pytest.mark.parametrize("name", NAMES)


def notebook(name):
    """Return a notebook, valid by its schema."""
    read = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(read)
    return read


def code(name):
    """Return the syntax trees of a notebook's code cells."""
    return [ast.parse(cell.source) for cell in notebook(name).cells if cell.cell_type == "code"]


def names_in(tree):
    """Return all names that a piece of code reads or writes."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_all_are_known():
    """A notebook that is added is added to this list, and has its pair."""
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    assert {path.stem for path in FOLDER.glob("[0-9]*.py")} == set(NAMES)


@each
def test_pair_agrees(name):
    """Cells of the file that is run are those of the file that is reviewed."""
    text = jupytext.read(FOLDER / f"{name}.py")
    pairs = [[(c.cell_type, c.source) for c in n.cells] for n in (notebook(name), text)]
    assert pairs[0] == pairs[1], f"run `jupytext --sync notebooks/{name}.py`"
    assert text.metadata["jupytext"]["formats"] == "ipynb,py:percent"


@each
def test_outputs_are_stripped(name):
    """What a run leaves behind is not in the repository."""
    for cell in notebook(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert not cell.metadata


@each
def test_text_comes_first(name):
    """Every code cell follows the text that says what it does."""
    kinds = [cell.cell_type for cell in notebook(name).cells]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2)


@each
def test_sections_are_numbered(name):
    """Sections count from 1, so that text can refer to them."""
    number = int(name[:2])
    texts = [cell.source for cell in notebook(name).cells if cell.cell_type == "markdown"]
    titles = [text.splitlines()[0] for text in texts]
    assert titles[0].startswith(f"# {number}. ")
    for section, title in enumerate(titles[1:], 1):
        assert title.startswith(f"## {number}.{section} ")


@each
def test_every_cell_asserts(name):
    """A cell that computes and claims nothing would be believed."""
    for tree in code(name):
        assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), ast.unparse(tree)


@each
def test_every_cell_asks_the_oracle(name):
    """Each cell but the first holds its result against diffusers."""
    for tree in code(name)[1:]:
        known = names_in(tree) & ORACLE or {"token_ids", "VaeImageProcessor"} & names_in(tree)
        assert known, ast.unparse(tree)


@each
def test_draws_are_seeded(name):
    """Nothing is drawn but from a generator, which is seeded by the notebook's SEED."""
    drawn = [
        node
        for tree in code(name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in DRAWS
    ]
    assert drawn
    for call in drawn:
        assert "generator" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
    assert "manual_seed(SEED)" in "".join(map(ast.unparse, code(name)))


@each
def test_weights_are_chosen_by_one_variable(name):
    """One environment variable chooses the weights, and `toy` is the default."""
    source = "\n".join(map(ast.unparse, code(name)))
    assert source.count("environ") == 1
    assert "WEIGHTS = os.environ.get('SD1_NOTEBOOK_WEIGHTS', 'toy')" in source


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_paths_of_a_machine(path):
    """Nothing in the folder names a place on somebody's disk, or wants the network."""
    if path.is_file():
        text = path.read_text("utf-8")
        assert not MACHINE.search(text)
        assert "from_pretrained" not in text


def test_helpers_are_small():
    """What the notebooks share is read in a minute, or it belongs elsewhere."""
    for name in ("tracing.py", "truth.py"):
        assert len((FOLDER / name).read_text("utf-8").splitlines()) < 150
