"""What is told where a port offers nothing of what is selected."""

from __future__ import annotations

import argparse

import pytest

from conformance.case import all_cases, find_case, select_cases
from conformance.errors import UsageError
from conformance.offered_cases import offered
from conformance.port import Hello
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.spec import BLOCKS

PLAIN = dict.fromkeys(("component", "variant", "scenario", "k", "level", "weights"))
UNET = ("unet",)
OWN = tuple(BLOCKS)


def chosen(components: tuple[str, ...], variants: tuple[str, ...] = ("*",), **given: str) -> list:
    """Return what a port offers of what the options select."""
    options = argparse.Namespace(**PLAIN | given)
    globs = {
        name: given[option].split(",")
        for name, option in (("components", "component"), ("variants", "variant"))
        if option in given
    }
    cases = select_cases(**globs, expression=given.get("k"))
    return offered(cases, Hello("p", "1", components, variants=variants), options)


NOTHING = {
    "blocks": (
        {"components": OWN, "variant": "sd1"},
        (
            "p offers block/*, variants *: nothing of that is selected; "
            "they have cases in variant tiny alone: write --variant tiny"
        ),
    ),
    "one-block": (
        {"components": OWN[:1], "variant": "odd*"},
        "; it has cases in variant tiny alone: write --variant tiny",
    ),
    "blocks-that-are-named": (
        {"components": (*UNET, *OWN), "component": "block/*,vae_decoder", "variant": "odd"},
        f"; {', '.join(OWN)} have cases in variant tiny alone: write --variant tiny",
    ),
    "own-variants": (
        {"components": UNET, "variants": ("sd1*",)},
        "; it has cases in variants sd1, sd1-lowvar, ",
    ),
    "no-such-variants": (
        {"components": UNET, "variants": ("xl",)},
        "; let its hello() name some of variants tiny, ",
    ),
    "component": (
        {"components": UNET, "component": "text_encoder"},
        (
            "p does not offer text_encoder: it offers unet; "
            "name some of that with --component, or leave that out"
        ),
    ),
    "training": (
        {"components": (*UNET, *SCHEDULERS, *PIPELINES[:1]), "component": "training,training/vae"},
        (
            "p does not offer training, training/vae: it offers unet, scheduler/*, "
            f"{PIPELINES[0]}; name some of that with --component, or leave that out"
        ),
    ),
    "expression": (
        {"components": UNET, "k": "vae_decoder"},
        "; leave -k out, or say something else there",
    ),
    "nothing-offered": (
        {"components": ()},
        "p offers no component, variants *: nothing of that is selected; let its hello() name ",
    ),
    "own-weights": (
        {"components": OWN, "variant": "sd1", "weights": "sd1.ckpt"},
        "; they have cases in variant tiny alone, and --weights is of another size",
    ),
}


@pytest.mark.parametrize(("given", "told"), NOTHING.values(), ids=NOTHING)
def test_nothing_is_offered(given: dict, told: str) -> None:
    """The variants that have cases are named, and what to write; or what else is in the way."""
    with pytest.raises(UsageError) as error:
        chosen(**given)
    assert told in str(error.value)


def test_what_is_told_to_write_selects_something() -> None:
    """It is read off the cases: blocks have some in `tiny`, and so has the port."""
    assert {case.component for case in chosen(OWN, variant="tiny")} == {*OWN}
    assert {c.variant.name for c in all_cases() if c.component in BLOCKS} == {"tiny"}


def test_a_component_that_is_named_becomes_a_skip() -> None:
    """Where something is offered, a component that is named plainly stays, one of a glob not."""
    kept = chosen(UNET, component="unet,vae_decoder,text_*", variant="tiny")
    assert {case.component for case in kept} == {"unet", "vae_decoder"}
    assert find_case("unet/tiny/base") in kept
