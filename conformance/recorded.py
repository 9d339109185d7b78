"""What is recorded of a case: in which arithmetics and modes its noise, and at which probes."""

from __future__ import annotations

from conformance import spec
from conformance.case import NETWORKS, Case
from conformance.golden import SPLICE, TRACE
from conformance.sampling import TEXT_TO_IMAGE
from conformance.scenarios import BASE
from conformance.tolerance import ARITHMETICS, FLOATS, OTHER_ARITHMETICS, POLICIES

_AUTOCAST, _FP16_NORM32, _VAE_UPCAST = POLICIES
_OF_NETWORKS = (*OTHER_ARITHMETICS, _AUTOCAST, _FP16_NORM32)
_OF_PIPELINES = (_AUTOCAST, _VAE_UPCAST)

_ONE_STEP = "ddim1"
_MIXED_CASES = {
    "tiny": (BASE, "loud", "brink"),
    "tiny-sharp": (BASE,),
    "tiny-outlier": (BASE,),
    "odd": (BASE,),
}
"""Scenarios, by variant, in which networks are judged in mixed arithmetics too."""


def arithmetics(case: Case) -> tuple[str, ...]:
    """Return the arithmetics of a case.

    Half types would round dense or raised values. And they round a sample at every step: what that
    adds up to over a thousand steps has no typical size.
    """
    raised = any(recipe.mean for recipe in case.scenario.recipes(case.variant).values())
    if case.variant.regime == "dense" or raised or not case.scenario.in_halves:
        return FLOATS
    return ARITHMETICS + mixed_arithmetics(case)


def mixed_arithmetics(case: Case) -> tuple[str, ...]:
    """Return those of more than one dtype: they differ in the rounding, which few cases show."""
    variant, scenario = case.variant.name, case.scenario.name
    if case.component == TEXT_TO_IMAGE and variant == "tiny" and scenario in (BASE, _ONE_STEP):
        return _OF_PIPELINES
    if case.component in NETWORKS and scenario in _MIXED_CASES.get(variant, ()):
        return _OF_NETWORKS
    return ()


def spliced_arithmetics(case: Case) -> tuple[str, ...]:
    """Return the arithmetics of splice mode: a pipeline's networks have halves on their own."""
    large = case.full_size and case.component == "unet"
    return FLOATS if case.is_pipeline or large else arithmetics(case)


def modes(case: Case) -> tuple[str, ...]:
    """Return the modes of a case: what is open loop, or exact, has no splice mode.

    The 860M model takes minutes for each evaluation: it is spliced where every probe is recorded.
    """
    spliced = case.has_splice_mode
    if case.full_size and (case.is_pipeline or case.component == "unet"):
        spliced = case.every_probe
    return (TRACE, SPLICE) if spliced else (TRACE,)


def modes_in(case: Case, arithmetic: str) -> tuple[str, ...]:
    """Return the modes of a case in which the noise of an arithmetic is recorded."""
    spliced = arithmetic in spliced_arithmetics(case)
    return tuple(mode for mode in modes(case) if spliced or mode != SPLICE)


def case_probes(case: Case) -> list[str]:
    """Return what the oracle is watched at: probes, tables, and steps of sketched outputs."""
    if not case.is_network:
        return case.terms
    names = spec.probe_names(case.component, case.variant.size)
    if case.every_probe:
        return list(names)
    blocks = spec.block_names(case.component)
    return [n for n in names if n in blocks or n.startswith("time_")]
