"""Cases: their ids, and choosing them by globs and expressions."""

from __future__ import annotations

from itertools import groupby

import pytest

from conformance.case import all_cases, find_case, select_cases
from conformance.errors import ExitCode, UsageError
from conformance.golden import golden_path, golden_root, manifest
from conformance.variants import variant_names

TIME_CASES = ("t0", "t1", "t500", "t999", "t1000", "t976.8889", "t0.55", "tfloat", "tsamples")


def chosen(expression: str, variant: str = "tiny") -> set[str]:
    """Return the scenarios of one variant for which an expression holds."""
    return {c.scenario.name for c in select_cases(variants=[variant], expression=expression)}


def test_ids_are_unique() -> None:
    """No two cases share an id, nor differ from another by letter case alone."""
    ids = [case.id.lower() for case in all_cases()]
    assert len(ids) == len(set(ids)) > 50


def test_id_is_golden_path() -> None:
    """A case's id is where its golden lies."""
    for case in all_cases():
        path = golden_path(case.id).relative_to(golden_root()).as_posix()
        assert path == f"{case.id}.safetensors"
        assert case.id == f"{case.component}/{case.variant.name}/{case.scenario.name}"


def test_recorded_tiny_cases() -> None:
    """Every case of every tiny variant has a golden."""
    assert {case.id for case in select_cases(variants=["tiny*"])} <= set(manifest()["goldens"])


def test_hunts_is_current() -> None:
    """A golden hunts the bug that its scenario names today."""
    goldens = manifest()["goldens"]
    cases = select_cases(variants=["tiny*"])
    assert [c.id for c in cases if goldens[c.id]["hunts"] != c.scenario.hunts] == []


def test_inputs_differ_between_scenarios() -> None:
    """No two scenarios of a variant hand over the same sample."""
    samples = [c.inputs()["sample"].tobytes() for c in select_cases(variants=["tiny"])]
    assert len(samples) == len(set(samples))


def test_grouped_by_variant() -> None:
    """Cases of one variant stand together, so that each network is built once."""
    names = [case.variant.name for case in all_cases()]
    assert [name for name, _ in groupby(names)] == list(dict.fromkeys(names))
    assert set(names) == set(variant_names())


def test_find_case() -> None:
    """A case is found by its id."""
    assert find_case("unet/tiny/base").id == "unet/tiny/base"


@pytest.mark.parametrize(
    "case_id", ["unet/tiny", "tiny/base", "unet/tiny/bas", "", "unet/tiny/base.safetensors"]
)
def test_find_unknown_case(case_id: str) -> None:
    """Part of an id is no id."""
    with pytest.raises(UsageError, match=f"unknown case '{case_id}'"):
        find_case(case_id)


def test_default_selection() -> None:
    """By default the small sizes run in every regime, and the full size does not."""
    cases = select_cases()
    assert {c.variant.size for c in cases} == {"tiny", "tiny-inpaint", "odd"}
    assert not any(c.full_size for c in cases)
    expected = [c.id for c in all_cases() if c.variant.size in {"tiny", "tiny-inpaint", "odd"}]
    assert [c.id for c in cases] == expected


@pytest.mark.parametrize(
    ("globs", "ids"),
    [
        ({"variants": ["tiny"], "scenario_names": ["base"]}, ["unet/tiny/base"]),
        ({"variants": ["tiny-*var"]}, ["unet/tiny-lowvar/base"]),
        ({"variants": ["odd", "tiny"], "scenario_names": ["t1"]}, ["unet/tiny/t1", "unet/odd/t1"]),
        (
            {"variants": ["tiny"], "scenario_names": ["t9*9"]},
            ["unet/tiny/t976.8889", "unet/tiny/t999"],
        ),
        (
            {"components": ["un*"], "variants": ["tiny-inpaint"]},
            ["unet/tiny-inpaint/base", "unet/tiny-inpaint/nonsquare"],
        ),
        ({"variants": ["tiny"], "scenario_names": ["t?"]}, ["unet/tiny/t0", "unet/tiny/t1"]),
        (
            {"variants": ["tiny-[ds]*"]},
            ["unet/tiny-dense/base", "unet/tiny-sharp/base"],
        ),
    ],
    ids=["exact", "glob", "two", "inner-glob", "component", "question-mark", "set"],
)
def test_globs(globs: dict, ids: list[str]) -> None:
    """Globs of component, variant and scenario are all to hold; order is that of the matrix."""
    assert sorted(c.id for c in select_cases(**globs)) == sorted(ids)
    order = [c.id for c in all_cases()]
    found = [order.index(c.id) for c in select_cases(**globs)]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("expression", "scenarios"),
    [
        ("base", {"base"}),
        ("unet/tiny/base", {"base"}),
        ("quiet or loud", {"quiet", "loud"}),
        ("quiet or loud and nonsquare", {"quiet"}),
        ("(quiet or loud) and nonsquare or base", {"base"}),
        ("nonsquare and quiet or loud", {"loud"}),
        ("batch and not batch3", {"batch1"}),
        ("not not quiet", {"quiet"}),
        ("not (batch or t) and unet", set()),
        ("tiny/batch", {"batch1", "batch3"}),
        ("*/t1", {"t1"}),
        ("*/t1*", {"t1", "t1000"}),
        ("(quiet)or(loud)", {"quiet", "loud"}),
        ("  quiet  ", {"quiet"}),
        ("tiny/t and not tsamples and not tfloat", {*TIME_CASES[:7], "tokens7"}),
    ],
)
def test_expressions(expression: str, scenarios: set[str]) -> None:
    """Words join with `not` before `and` before `or`; a word with a star is a glob of the id."""
    if not scenarios:
        with pytest.raises(UsageError, match="no case is selected"):
            chosen(expression)
    else:
        assert chosen(expression) == scenarios


@pytest.mark.parametrize(
    "expression",
    ["", "   ", "base or", "or base", "base and", "not", "(base", "base)", "()", "base quiet",
     "base and and quiet", "not or base", "base or (quiet", "and"],
)  # fmt: skip
def test_bad_expressions(expression: str) -> None:
    """What cannot be read is refused, and quoted."""
    with pytest.raises(UsageError, match="cannot read -k") as caught:
        chosen(expression)
    assert repr(expression) in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_deep_expression() -> None:
    """However deep the parentheses, a bad expression is bad usage."""
    with pytest.raises(UsageError):
        chosen("(" * 5000)


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        ({"components": ["vea_decoder"]}, "unknown component 'vea_decoder': choose from unet"),
        ({"components": ["unet", "UNET"]}, "unknown component 'UNET'"),
        ({"variants": ["tinny"]}, "unknown variant 'tinny': choose from .*odd.*tiny, tiny-dense"),
        ({"variants": ["tiny", "huge*"]}, r"unknown variant 'huge\*'"),
        ({"variants": ["tiny-unit"]}, "unknown variant 'tiny-unit'"),
        ({"scenario_names": ["t99"]}, "unknown scenario 't99': choose from base, t0, t1"),
        ({"scenario_names": ["base", ""]}, "unknown scenario ''"),
        ({"variants": ["tiny-dense"], "scenario_names": ["quiet"]}, "no case is selected"),
        ({"variants": []}, "no case is selected"),
        ({"components": []}, "no case is selected"),
        ({"expression": "nowhere"}, "no case is selected"),
    ],
    ids=[
        "component",
        "component-case",
        "variant",
        "variant-glob",
        "unit-is-not-spelled",
        "scenario",
        "scenario-empty",
        "combination",
        "no-variants",
        "no-components",
        "expression",
    ],
)
def test_selection_errors(globs: dict, message: str) -> None:
    """A name that matches nothing is refused with what there is; so is an empty selection."""
    with pytest.raises(UsageError, match=message) as caught:
        select_cases(**globs)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(caught.value)
