"""docs/recipe.md: its vectors are the suite's, and both of its programs print them."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.recipe import Kind, TensorRecipe

FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (FOLDER / "recipe.md").read_text("utf-8").partition("## 6.")[2]

SHAPES = {
    "unet/conv_in.weight": ((1, 4, 3, 3), Kind.WEIGHT),
    "unet/conv_norm_out.weight": ((8,), Kind.NORM),
    "unet/conv_in.bias": ((8,), Kind.BIAS),
    "inputs/unet/base/sample": ((8,), Kind.INPUT),
    "text_encoder/text_model.embeddings.token_embedding.weight": ((1, 8), Kind.EMBEDDING),
    "vae/encoder.conv_in.weight": ((1, 3, 3, 3), Kind.WEIGHT),
    "inputs/vae_encoder/base/image": ((8,), Kind.INPUT),
}
"""Shapes of the same fan-in that are just long enough: a longer tensor begins with these."""


def vectors() -> dict[tuple[str, bool], list[float]]:
    """Return the rows of values, by tensor and whether it is dense."""
    found: dict[tuple[str, bool], list[float]] = {}
    name = ""
    for what, values in re.findall(r"^\| (.*?) \| ([-\d., ]+) \|$", PAGE, re.MULTILINE):
        again = what == "the same, `dense`"
        if not again and not (own := re.match(r"`([\w./]+)`", what)):
            continue
        name = name if again else own[1]
        scale = 2.0 if "times 2^-1" in what else 1.0
        found[name, again] = [scale * float(value) for value in values.split(", ")]
    return found


VECTORS = vectors()


def fan_in(name: str) -> int:
    """Return the product of all axes but the first, 0 for what has one axis."""
    shape, kind = SHAPES[name]
    return math.prod(shape[1:]) if kind is Kind.WEIGHT else 0


@pytest.fixture(scope="module", params=["python", "c"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One of the two programs, as the page says to run it."""
    if request.param == "python":
        return [sys.executable, str(FOLDER / "recipe/recipe.py")]
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install one as cc")
    built = tmp_path_factory.mktemp("recipe") / "recipe"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command = [compiler, *flags, str(FOLDER / "recipe/recipe.c"), "-o", str(built), "-lm"]
    subprocess.run(command, check=True)
    return [str(built)]


def test_every_tensor_of_the_page_is_known() -> None:
    """The table was read."""
    assert {name for name, _ in VECTORS} == set(SHAPES)
    assert sum(dense for _, dense in VECTORS) == 4


@pytest.mark.parametrize(("name", "dense"), VECTORS, ids=str)
def test_vectors(name: str, *, dense: bool) -> None:
    """The suite draws what the page says."""
    shape, kind = SHAPES[name]
    drawn = TensorRecipe(name, shape, kind, dense=dense).draw(np.float64).reshape(-1)
    assert drawn[:4].tolist() == VECTORS[name, dense]


@pytest.mark.parametrize(("name", "dense"), VECTORS, ids=str)
def test_programs(program: list[str], name: str, *, dense: bool) -> None:
    """Forty values of it, over more than one block of the generator."""
    shape, kind = SHAPES[name]
    longer = (40, *shape[1:]) if len(shape) > 1 else (40,)
    drawn = TensorRecipe(name, longer, kind, dense=dense).draw(np.float64).reshape(-1)[:40]
    words = [name, str(fan_in(name)), "40", *(["dense"] if dense else [])]
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=True)
    assert [float(line) for line in done.stdout.splitlines()] == drawn.tolist()
