"""Cases: component/variant/scenario, the golden's path and the pytest id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from conformance.errors import UsageError, unknown_name
from conformance.scenarios import UNetScenario, scenarios
from conformance.variants import Variant, parse_variant, variant_names

COMPONENTS = ("unet",)
DEFAULT_VARIANTS = ("tiny*", "odd*")


@dataclass(frozen=True)
class Case:
    """One case of the matrix.

    Attributes:
        component: `unet`.
        variant: Size and regime.
        scenario: The input.
    """

    component: str
    variant: Variant
    scenario: UNetScenario

    @property
    def id(self) -> str:
        """Return `component/variant/scenario`."""
        return f"{self.component}/{self.variant.name}/{self.scenario.name}"

    def inputs(self) -> dict[str, np.ndarray]:
        """Draw the inputs of the case, by input name."""
        return self.scenario.inputs(self.variant)


def all_cases() -> list[Case]:
    """Return every case, grouped by component and variant."""
    cases = []
    for component in COMPONENTS:
        for name in variant_names(component):
            variant = parse_variant(name)
            cases += [Case(component, variant, s) for s in scenarios(component, variant)]
    return cases


def find_case(case_id: str) -> Case:
    """Return the case of that id.

    Raises:
        UsageError: No such case.
    """
    for case in all_cases():
        if case.id == case_id:
            return case
    message = f"unknown case {case_id!r}: `sd1-conformance list --all` prints them"
    raise UsageError(message)


def select_cases(
    components: list[str] | None = None,
    variants: list[str] | None = None,
    scenario_names: list[str] | None = None,
    expression: str | None = None,
) -> list[Case]:
    """Choose cases by globs.

    Args:
        components: Globs of component names; None for all.
        variants: Globs of variant names; None for `tiny*` and `odd*`.
        scenario_names: Globs of scenario names; None for all.
        expression: Words with `and`, `or`, `not` and parentheses; a word holds where it is part of
            the case id (or, with `*`, matches it as a glob).

    Returns:
        The cases, in the order of `all_cases`.

    Raises:
        UsageError: A glob names nothing that exists, the expression cannot be read, or no case
            is left.
    """
    cases = all_cases()
    variants = variants if variants is not None else list(DEFAULT_VARIANTS)
    for kind, globs, known in (
        ("component", components, list(COMPONENTS)),
        ("variant", variants, sorted({c.variant.name for c in cases})),
        ("scenario", scenario_names, list(dict.fromkeys(c.scenario.name for c in cases))),
    ):
        for glob in globs or []:
            if not any(fnmatchcase(name, glob) for name in known):
                raise unknown_name(kind, glob, known)
    chosen = [
        case
        for case in cases
        if _matches(case.component, components)
        and _matches(case.variant.name, variants)
        and _matches(case.scenario.name, scenario_names)
        and (expression is None or _holds(expression, case.id))
    ]
    if not chosen:
        message = "no case is selected: `sd1-conformance list --all` prints what there is"
        raise UsageError(message)
    return chosen


def _matches(name: str, globs: list[str] | None) -> bool:
    return globs is None or any(fnmatchcase(name, glob) for glob in globs)


_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")


def _holds(expression: str, case_id: str) -> bool:
    """Evaluate `-k`: recursive descent over `or`, `and`, `not`, parentheses and words."""
    tokens = _TOKEN.findall(expression)
    bad = UsageError(f"cannot read -k {expression!r}: use words, and, or, not and parentheses")

    def take() -> str:
        if not tokens:
            raise bad
        return tokens.pop(0)

    def any_of() -> bool:
        value = all_of()
        while tokens and tokens[0] == "or":
            tokens.pop(0)
            value = all_of() or value
        return value

    def all_of() -> bool:
        value = one()
        while tokens and tokens[0] == "and":
            tokens.pop(0)
            value = one() and value
        return value

    def one() -> bool:
        token = take()
        if token == "not":
            return not one()
        if token == "(":
            value = any_of()
            if take() != ")":
                raise bad
            return value
        if token in {")", "and", "or"}:
            raise bad
        return fnmatchcase(case_id, token) if "*" in token else token in case_id

    value = any_of()
    if tokens:
        raise bad
    return value
