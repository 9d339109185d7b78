"""Cases: their ids, and choosing them by globs and expressions."""

from __future__ import annotations

from itertools import groupby

import pytest

from conformance.case import COMPONENTS, NETWORKS, all_cases, find_case, select_cases
from conformance.errors import ExitCode, UsageError
from conformance.manifest import golden_path, manifest
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.spec import BLOCKS, golden_root
from conformance.training import TRAININGS
from conformance.variants import variant_names

TIME_CASES = ("t0", "t1", "t500", "t999", "t1000", "t976.8889", "t0.55", "tfloat", "tsamples")


def chosen(expression: str) -> set[str]:
    """Return the scenarios of the tiny UNet for which an expression holds."""
    return {c.scenario.name for c in select_cases(["unet"], ["tiny"], expression=expression)}


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
    """Every case of the tokenizer and of every tiny variant has a golden."""
    cases = {case.id for case in select_cases(variants=["tiny*"]) if not case.refused}
    assert cases <= set(manifest()["goldens"])


def test_fully_probed_cases() -> None:
    """`base` of these variants of each network, and of each block, has every probe."""
    variants = ["tiny", "tiny-lowvar", "tiny-dense", "tiny-sharp"]
    variants += ["odd", "odd-lowvar", "sd1", "sd1-lowvar", "sd1-dense"]
    expected = {f"{network}/{variant}/base" for network in NETWORKS for variant in variants}
    expected |= {f"{block}/tiny/base" for block in BLOCKS}
    assert {c.id for c in all_cases() if c.every_probe and c.is_network} == expected


def test_exact_cases() -> None:
    """The tokenizer is exact, has one vocabulary for all sizes, and is never full size."""
    exact = [case for case in all_cases() if case.exact]
    assert {(c.component, c.variant.name, c.full_size) for c in exact} == {
        ("tokenizer", "-", False)
    }
    assert len(exact) >= 80


def test_hunts_is_current() -> None:
    """A golden hunts the bug that its scenario names today."""
    goldens = manifest()["goldens"]
    cases = select_cases(variants=["tiny*"])
    cases = [case for case in cases if not case.refused]
    assert [c.id for c in cases if goldens[c.id]["hunts"] != c.scenario.hunts] == []


def test_refused_cases() -> None:
    """What the reference cannot compute has a reason and no golden."""
    refused = {case.id: case.refused for case in all_cases() if case.refused}
    past = [f"{name}/-/steps1000" for name in ("ddpm", "ddim", "pndm")]
    past += [f"{name}/-/leading1000" for name in ("euler", "euler_ancestral", "heun", "dpmpp_2m")]
    alone = [f"pndm/-/{name}1" for name in ("steps", "trailing", "linspace")]
    together = ["dpmpp_2m/-/leading999", "dpmpp_2m/-/steps1000"]
    assert sorted(refused) == sorted(f"scheduler/{c}" for c in [*past, *alone, *together])
    assert all(len(reason) > 10 for reason in refused.values())
    assert not refused.keys() & manifest()["goldens"].keys()


@pytest.mark.parametrize("component", COMPONENTS)
def test_inputs_differ_between_scenarios(component: str) -> None:
    """No two scenarios of a component and variant hand over the same inputs."""
    cases = [c.inputs() for c in select_cases([component], ["tiny"])]
    facts = [str([(n, a.shape, a.tobytes()) for n, a in inputs.items()]) for inputs in cases]
    assert len(set(facts)) == len(cases) > (0 if component in (*BLOCKS, *TRAININGS) else 9)


def test_grouped_by_variant() -> None:
    """Cases of one component and variant stand together, so that each network is built once."""
    names = [(case.component, case.variant.name) for case in all_cases()]
    assert [name for name, _ in groupby(names)] == list(dict.fromkeys(names))
    known = {(c, variant) for c in COMPONENTS for variant in variant_names(c)}
    not_run = {(task, "sd1") for task in ("pipeline/img2img", "pipeline/inpaint")}
    assert set(names) == known - not_run
    assert [name for name, _ in groupby(names, lambda row: row[0])] == list(COMPONENTS)


def test_find_case() -> None:
    """A case is found by its id, or by the id of one of its items."""
    assert find_case("unet/tiny/base").id == "unet/tiny/base"
    assert find_case("tokenizer/-/plain[int64-cpu]").id == "tokenizer/-/plain"


@pytest.mark.parametrize(
    "case_id",
    [
        "unet/tiny",
        "tiny/base",
        "unet/tiny/bas",
        "",
        "unet/tiny/base.safetensors",
        "tokenizer/plain",
    ],
)
def test_find_unknown_case(case_id: str) -> None:
    """Part of an id is no id."""
    with pytest.raises(UsageError, match=f"unknown case '{case_id}'"):
        find_case(case_id)


def test_default_selection() -> None:
    """By default the small sizes run in every regime, and the full size does not."""
    cases = select_cases()
    sizes = {"-", "tiny", "tiny-inpaint", "odd", "toy"}
    assert {c.variant.size for c in cases} == sizes
    assert not any(c.full_size for c in cases)
    expected = [c.id for c in all_cases() if c.variant.size in sizes]
    assert [c.id for c in cases] == expected


@pytest.mark.parametrize(
    ("globs", "ids"),
    [
        (
            {"variants": ["tiny"], "scenario_names": ["base"]},
            [
                *(f"{name}/tiny/base" for name in (*BLOCKS, *NETWORKS, *PIPELINES, *TRAININGS)),
                *(f"{name}/-/base" for name in SCHEDULERS),
            ],
        ),
        (
            {"components": NETWORKS, "variants": ["tiny-*var"]},
            [f"{name}/tiny-lowvar/base" for name in NETWORKS],
        ),
        ({"components": ["vae_*"], "variants": ["odd"], "scenario_names": ["oddsize"]},
         ["vae_encoder/odd/oddsize", "vae_decoder/odd/oddsize"]),
        ({"variants": ["sd1"], "scenario_names": ["empty"]},
         ["tokenizer/-/empty", "text_encoder/sd1/empty"]),
        ({"components": ["*/txt*", "*/ddim"], "scenario_names": ["base", "ddpm50"]},
         ["scheduler/ddim/-/base", "pipeline/txt2img/tiny/base", "pipeline/txt2img/odd/base",
          "pipeline/txt2img/toy/base",
          "pipeline/txt2img/tiny/ddpm50"]),
        ({"components": ["tok*"], "variants": ["-"], "scenario_names": ["tokens-7[56]"]},
         ["tokenizer/-/tokens-75", "tokenizer/-/tokens-76"]),
        ({"components": ["block/*"]}, [f"{name}/tiny/base" for name in BLOCKS]),
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
            {"components": ["unet"], "variants": ["tiny-[ds]*"]},
            ["unet/tiny-dense/base", "unet/tiny-sharp/base"],
        ),
    ],
    ids=[
        "exact",
        "glob",
        "two-components",
        "tokenizer-too",
        "sampling",
        "tokenizer-alone",
        "blocks",
        "two",
        "inner-glob",
        "component",
        "question-mark",
        "set",
    ],
)  # fmt: skip
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
        (
            {"components": ["vea_decoder"]},
            "unknown component 'vea_decoder': the nearest is vae_decoder; choose from token",
        ),
        ({"components": ["unet", "UNET"]}, "unknown component 'UNET'"),
        (
            {"variants": ["tinny"]},
            "unknown variant 'tinny': the nearest is tiny; choose from odd.*tiny, tiny-dense",
        ),
        ({"variants": ["tiny", "huge*"]}, r"unknown variant 'huge\*'"),
        ({"variants": ["tiny-unit"]}, "unknown variant 'tiny-unit'"),
        (
            {"scenario_names": ["t99"]},
            "unknown scenario 't99': one of [0-9]+; the nearest are t999, steps999, ",
        ),
        ({"scenario_names": ["base", ""]}, "unknown scenario ''"),
        ({"variants": ["tiny-dense"], "scenario_names": ["quiet"]}, "no case is selected"),
        (
            {"components": ["block/*"], "variants": ["sd1"]},
            "what was asked for has cases in variant tiny alone: write --variant tiny",
        ),
        ({"components": ["unet"], "variants": []}, "no case is selected"),
        ({"components": ["unet"], "variants": ["-"]}, "no case is selected"),
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
        "blocks-elsewhere",
        "no-variants",
        "variant-of-the-tokenizer",
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
