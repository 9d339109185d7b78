"""The causes of a run in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from conformance.report.causes import causes_text
from conformance.report.records import Fault


def text_of(*faults: Fault) -> str:
    """Return the line for a summary with these causes."""
    summary: Any = SimpleNamespace(faults=faults, counts={"fail": 15})
    return causes_text(summary)


def suspect(mutant: str, probes: str) -> Fault:
    """Build a cause that looks like a mutant."""
    return Fault(probes, 1, mutant, confirmed=False, ratio_if_so=None)


def confirmed(mutant: str, probes: str = "x") -> Fault:
    """Build a cause that was confirmed."""
    return Fault(probes, 1, mutant, confirmed=True, ratio_if_so=1.0)


def unknown(probes: str) -> Fault:
    """Build a group of failures that nothing explains."""
    return Fault(probes, 1, "", confirmed=False, ratio_if_so=None)


def test_causes_are_counted_and_named() -> None:
    """Those that were confirmed; of more than a few, how many."""
    assert text_of(confirmed("a")) == "1 cause explains 15 failures: a (confirmed)"
    text = text_of(*map(confirmed, "abcd"))
    assert text.startswith("4 causes explain 15 failures: a (confirmed), ")
    assert text.endswith(" and 1 more")


def test_two_of_one_name_are_told_apart() -> None:
    """Two causes that look like the same mutant say where each is, others have a name alone."""
    twice = [suspect("vae-gn-eps", probes) for probes in ("conv_in", "norm_out")]
    text = text_of(*twice, suspect("vae-scale", "image"))
    names = "perhaps vae-gn-eps, at conv_in, perhaps vae-gn-eps, at norm_out, perhaps vae-scale"
    assert text == f"15 failures of unknown cause: {names}"


def test_a_guess_explains_nothing() -> None:
    """A mutant that was not tested is named, and not counted as a cause."""
    assert text_of(suspect("vae-gn-eps", "x")) == "15 failures of unknown cause: perhaps vae-gn-eps"
    text = text_of(confirmed("a"), suspect("b", "x"), unknown("conv_in"))
    told = "a (confirmed); perhaps b; unknown at conv_in"
    assert text == f"1 cause explains part of 15 failures: {told}"


def test_what_nothing_explains_is_no_cause() -> None:
    """Places of an unknown cause are not counted as causes: nobody knows how many those are."""
    places = [unknown(name) for name in ("conv_in", "norm_out", "image", "mid_block")]
    assert text_of(*places[:2]) == "15 failures of unknown cause, at conv_in, norm_out"
    assert text_of(*places).endswith("at conv_in, norm_out, image and 1 more")
