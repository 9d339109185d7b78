"""Cases: component/variant/scenario, the golden's path and the pytest id."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from conformance.errors import UsageError, unknown_name
from conformance.recipe import SEED
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.scenarios import BASE, Scenario, scenarios
from conformance.spec import BLOCKS, TOKENIZER
from conformance.training import TRAININGS
from conformance.variants import (
    NO_VARIANT,
    TOY,
    Variant,
    Weights,
    parse_variant,
    variant_names,
)

NETWORKS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
COMPONENTS = (TOKENIZER, *BLOCKS, *NETWORKS, *SCHEDULERS, *PIPELINES, *TRAININGS)
"""Parts before what is made of them."""

FULLY_PROBED = {
    "tiny": ("unit", "lowvar", "dense", "sharp"),
    "odd": ("unit", "lowvar"),
    "sd1": ("unit", "lowvar", "dense"),
}
"""Regimes, by size, whose `base` holds every probe: the others share the room for named blocks."""
DEFAULT_VARIANTS = ("tiny*", "odd*", TOY)

_SHOWN = 6
"""So many variants are named."""


@dataclass(frozen=True)
class Case:
    """One case of the matrix.

    Attributes:
        component: One of `COMPONENTS`.
        variant: Size and regime.
        scenario: The input.
        seed: Of the recipe that draws weights and inputs; goldens are recorded for the default.
    """

    component: str
    variant: Variant
    scenario: Scenario
    seed: int = SEED

    @property
    def id(self) -> str:
        """Return `component/variant/scenario`."""
        return f"{self.component}/{self.variant.name}/{self.scenario.name}"

    @property
    def exact(self) -> bool:
        """Whether the outputs are integers, right or wrong: no arithmetic, noise or probe."""
        return self.component == TOKENIZER

    @property
    def is_scheduler(self) -> bool:
        """Whether the component is a scheduler: tables and steps, but no weights."""
        return self.component in SCHEDULERS

    @property
    def is_pipeline(self) -> bool:
        """Whether the component is a pipeline: terms of steps instead of modules' outputs."""
        return self.component in PIPELINES

    @property
    def is_training(self) -> bool:
        """Whether the component is a loss and its gradients."""
        return self.component in TRAININGS

    @property
    def is_network(self) -> bool:
        """Whether the component is one network, or one block of the UNet."""
        return self.component in NETWORKS or self.component in BLOCKS

    @property
    def has_splice_mode(self) -> bool:
        """Whether probes can be overwritten: what is open loop, or exact, has no such mode."""
        return self.is_network or self.is_pipeline

    @property
    def refused(self) -> str:
        """Say why the reference computes nothing here; empty where it does."""
        return self.scenario.refused

    @property
    def full_size(self) -> bool:
        """Whether the case runs a network of the published size."""
        return self.variant.size.startswith("sd1")

    @property
    def every_probe(self) -> bool:
        """Whether the golden holds every probe rather than the named blocks."""
        regimes = FULLY_PROBED.get(self.variant.size, ())
        return self.scenario.name == BASE and self.variant.regime in regimes

    def inputs(self) -> dict[str, np.ndarray]:
        """Draw the inputs of the case, by input name."""
        return self.scenario.inputs(self.variant, self.seed)

    @property
    def terms(self) -> list[str]:
        """Return what a scheduler or pipeline is watched at, in the order of execution."""
        return self.scenario.terms(self.variant)

    def weights(self) -> Weights:
        """Return the weights of the case's component: drawn when read."""
        return self.variant.weights(self.component, self.seed)


def all_cases() -> list[Case]:
    """Return every case, grouped by component and variant."""
    cases = []
    for component in COMPONENTS:
        for name in variant_names(component):
            variant = parse_variant(name)
            cases += [Case(component, variant, s) for s in scenarios(component, variant)]
    return cases


def find_case(case_id: str) -> Case:
    """Return the case of that id, of a golden or of mode `memory`.

    Raises:
        UsageError: No such case.
    """
    from conformance.memory.cases import memory_cases  # made of cases

    known = [*all_cases(), *memory_cases()]
    for case in known:
        if case.id == case_id.partition("[")[0]:  # an item's id names its case too
            return case
    ids = [case.id for case in known]
    begun = [own for own in ids if own.startswith(f"{case_id.rstrip('/')}/")]
    begun.sort(key=lambda own: not own.endswith(f"/{BASE}"))
    begun.sort(key=lambda own: not own.endswith(f"/tiny/{BASE}"))
    raise unknown_name("case", case_id, ids, begun)


def select_cases(
    components: list[str] | None = None,
    variants: list[str] | None = None,
    scenario_names: list[str] | None = None,
    expression: str | None = None,
    among: list[Case] | None = None,
) -> list[Case]:
    """Choose cases by globs.

    Args:
        components: Globs of component names; None for all.
        variants: Globs of variant names; None for `tiny*`, `odd*` and `toy`. What has no variant,
            the tokenizer, is chosen whatever they say.
        scenario_names: Globs of scenario names; None for all.
        expression: Words with `and`, `or`, `not` and parentheses; a word holds where it is part of
            the case id; a whole id means that case alone, and a word with `*` is a glob.
        among: What is chosen from; None for `all_cases`.

    Returns:
        The cases, in that order.

    Raises:
        UsageError: A glob names nothing that exists, the expression cannot be read, or no case
            is left.
    """
    cases = all_cases() if among is None else among
    ids = {case.id for case in cases}
    variants = variants if variants is not None else list(DEFAULT_VARIANTS)
    for kind, globs, known in (
        ("component", components, list(dict.fromkeys(c.component for c in cases))),
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
        and (case.variant.name == NO_VARIANT or _matches(case.variant.name, variants))
        and _matches(case.scenario.name, scenario_names)
        and (expression is None or _holds(expression, case.id, ids))
    ]
    if not chosen:
        own = [case for case in cases if _matches(case.component, components)]
        raise _nothing_selected(own, variants, expression)
    return chosen


def _nothing_selected(
    cases: Iterable[Case], variants: list[str], expression: str | None
) -> UsageError:
    """Build the error for a selection that leaves no case.

    Args:
        cases: Those of the components that were asked for.
        variants: Globs.
        expression: Of `-k`.
    """
    cases = [case for case in cases if case.variant.name != NO_VARIANT]
    text = f"no case is selected among variants {', '.join(variants)}"
    if cases and not any(_matches(case.variant.name, variants) for case in cases):
        components = list(dict.fromkeys(case.component for case in cases))
        who = components[0] if len(components) == 1 else "what was asked for"
        return UsageError(f"{text}: {who} has cases in {variants_text(cases)}")
    by = f" by -k {expression!r}" if expression else ""
    return UsageError(f"{text}{by}: `sd1-conformance list --all` prints what there is")


def variants_text(cases: Iterable[Case], *, choosing: bool = True) -> str:
    """Say in which variants there are cases.

    Args:
        cases: Some, not only of what has no variant.
        choosing: Whether to say what to write for them.

    Returns:
        `variant tiny alone: write --variant tiny`, or a few of several and how many more.
    """
    names = list(dict.fromkeys(c.variant.name for c in cases if c.variant.name != NO_VARIANT))
    if len(names) == 1:
        text, lead = f"variant {names[0]} alone", "write"
    else:
        more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        text, lead = f"variants {', '.join([*names[:_SHOWN], *more])}", "name some, as in"
    return f"{text}: {lead} --variant {names[0]}" if choosing else text


def _matches(name: str, globs: list[str] | None) -> bool:
    return globs is None or any(fnmatchcase(name, glob) for glob in globs)


_WORDS = re.compile(r"[()]|[^\s()]+")


def _holds(expression: str, case_id: str, ids: Collection[str]) -> bool:
    """Evaluate `-k` for one case id, of those that there are."""
    reader = _Expression(expression, case_id, ids)
    try:
        value = reader.any_of()
    except RecursionError:
        raise reader.unreadable() from None
    if reader.words:
        raise reader.unreadable()
    return value


class _Expression:
    """Reads words, `and`, `or`, `not`, parentheses by recursive descent, evaluating on the way."""

    def __init__(self, text: str, case_id: str, ids: Collection[str]) -> None:
        self.text = text
        self.case_id = case_id
        self.ids = ids
        self.words = _WORDS.findall(text)

    def unreadable(self) -> UsageError:
        return UsageError(f"cannot read -k {self.text!r}: use words, and, or, not and parentheses")

    def next_is(self, word: str) -> bool:
        """Take the next word if it is this one."""
        if self.words[:1] == [word]:
            del self.words[0]
            return True
        return False

    def any_of(self) -> bool:
        value = self.all_of()
        while self.next_is("or"):
            value = self.all_of() or value
        return value

    def all_of(self) -> bool:
        value = self.one()
        while self.next_is("and"):
            value = self.one() and value
        return value

    def one(self) -> bool:
        if self.next_is("not"):
            return not self.one()
        if self.next_is("("):
            value = self.any_of()
            if not self.next_is(")"):
                raise self.unreadable()
            return value
        if not self.words or self.words[0] in {")", "and", "or"}:
            raise self.unreadable()
        word = self.words.pop(0).partition("[")[0]
        if "*" in word:
            return fnmatchcase(self.case_id, word)
        # A case id means that case alone, though it be part of another one.
        return word == self.case_id if word in self.ids else word in self.case_id
