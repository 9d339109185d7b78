"""What is told of a name that does not exist."""

from __future__ import annotations

import pytest

from conformance.case import find_case
from conformance.errors import FEW, UsageError, nearest, unknown_name

MANY = [f"steps{n}" for n in range(FEW)] + ["base"]

UNKNOWN = {
    "few": ("tinny", ["odd", "tiny"], "'tinny': the nearest is tiny; choose from odd, tiny"),
    "glob": ("tinny*", ["odd", "tiny"], "'tinny*': the nearest is tiny; choose from odd, tiny"),
    "case": ("UNET", ["unet"], "'UNET': the nearest is unet; choose from unet"),
    "family": ("blok", ["unet", "block/time_embedding"], "'blok': the nearest is block/*; choose"),
    "own-family": (
        "unet",
        ["unet/a", "block/unet"],
        "'unet': the nearest is unet/*; choose from unet/a",
    ),
    "fp16": ("fp16", ["bfloat16", "float16"], "'fp16': the nearest is float16; choose from bf"),
    "bf16": ("bf16", ["float16", "bfloat16"], "'bf16': the nearest is bfloat16; choose from fl"),
    "half": ("half", ["bfloat16", "float16"], "'half': the nearest is float16; choose from bf"),
    "half-elsewhere": ("half", ["halve", "odd"], "'half': the nearest is halve; choose from"),
    "unlike": ("xl", ["odd", "tiny"], "'xl': choose from odd, tiny"),
    "none": ("tinny", ["-", "tiny"], "'tinny': the nearest is tiny; choose from tiny"),
    "many": ("baze", MANY, f"'baze': one of {len(MANY)}; the nearest is base"),
    "many-unlike": ("", MANY, f"'': one of {len(MANY)}, such as steps0, steps1, steps2, steps3, "),
}


@pytest.mark.parametrize(("name", "known", "told"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_name(name: str, known: list[str], told: str) -> None:
    """The nearest comes first, then all of a few names; what stands for no variant is not one."""
    assert str(unknown_name("thing", name, known)).startswith(f"unknown thing {told}")


def test_an_item_is_near_its_case() -> None:
    """What is in brackets does not count."""
    assert nearest("unet/tiny/bse[float32-cpu-sdpa-trace]", ["unet/tiny/base", "unet/odd/t0"]) == [
        "unet/tiny/base"
    ]


@pytest.mark.parametrize(
    ("word", "first"),
    {
        "unet": "unet/tiny/base",
        "vae_decoder/odd/": "vae_decoder/odd/base",
        "scheduler": "scheduler/",
        "tokenizer": "tokenizer/-/",
    }.items(),
)
def test_a_part_of_a_case_id_is_gone_on_with(word: str, first: str) -> None:
    """What begins ids leads to one of them, which is `tiny/base` where there is one."""
    with pytest.raises(
        UsageError, match=f"unknown case '{word}': one of .*; the nearest are {first}"
    ):
        find_case(word)
