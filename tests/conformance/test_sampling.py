"""Names, settings and steps of schedulers and pipelines; tables, pixels and terms of a step."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from conformance import spec
from conformance.case import find_case, select_cases
from conformance.golden_files import load_golden
from conformance.pixels import judge_pixels
from conformance.sampling import (
    ALGORITHMS,
    IMAGE_TO_IMAGE,
    INPAINT,
    OWN,
    PUBLISHED,
    adds_noise,
    calls,
    config_array,
    kept_steps,
    read_config,
    settings,
)
from conformance.scenarios.grid import SPACINGS
from conformance.tables import judge_table
from conformance.terms import TERMS, coefficients, entering

SAMPLING = select_cases(["scheduler/*", "pipeline/*"], ["*"])


def test_settings_are_sd_v1s() -> None:
    """Nothing is left out, what is changed is changed, and a misspelt setting is no setting."""
    config = settings("ddim", 7, eta=0.5)
    assert config == PUBLISHED | OWN["ddim"] | {
        "num_inference_steps": 7,
        "begin_index": 0,
        "eta": 0.5,
    }
    with pytest.raises(KeyError, match="setalpha"):
        settings("ddim", 7, setalpha=1)
    with pytest.raises(KeyError, match="eta"):
        settings("pndm", 7, eta=1)


@pytest.mark.parametrize(
    ("algorithm", "changes", "count", "noisy"),
    [
        ("ddpm", {}, 20, True),
        ("ddim", {}, 20, False),
        ("ddim", {"eta": 0.1}, 20, True),
        ("pndm", {}, 21, False),
        ("pndm", {"begin_index": 5}, 16, False),
        ("ddpm", {"begin_index": 19}, 1, True),
        ("pndm", {"skip_prk_steps": False}, 29, False),
        ("heun", {}, 39, False),
        ("heun", {"begin_index": 12}, 27, False),
        ("euler_ancestral", {}, 20, True),
        ("dpmpp_2m", {}, 20, False),
    ],
    ids=[
        "ddpm",
        "ddim",
        "eta",
        "pndm",
        "late",
        "last",
        "warm-up",
        "heun",
        "heun-late",
        "ancestral",
        "dpmpp",
    ],
)
def test_calls_and_noise(algorithm: str, changes: dict, count: int, noisy: bool) -> None:  # noqa: FBT001
    """The model is asked once a step, once more by PLMS; DDPM adds noise, DDIM if it is told to."""
    config = settings(algorithm, 20, **changes)
    assert calls(algorithm, config) == count
    assert adds_noise(algorithm, config) is noisy
    assert read_config(config_array(config)) == config
    assert config_array(config).shape == ()


@examples(max_examples=50, deadline=None)
@given(st.integers(1, 2000))
def test_kept_steps(count: int) -> None:
    """The first four, the last four, up to eight between; a short run has no gaps."""
    kept = kept_steps(count)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, 16)
    assert set(range(min(4, count))) | set(range(max(0, count - 4), count)) <= set(kept)
    assert set(kept) <= set(range(count))


@pytest.mark.parametrize("case", SAMPLING, ids=lambda c: c.id)
def test_terms_are_in_the_order_of_execution(case) -> None:
    """Sorting by place gives back what a case is watched at; outputs come where they are made."""
    terms = case.terms
    shuffled = random.Random(0).sample(terms, len(terms))  # noqa: S311 - any order
    assert sorted(shuffled, key=lambda n: spec.place(case.component, n)) == terms
    if case.is_pipeline:
        ends = [spec.place(case.component, n) for n in ("vae", "image", "image_uint8")]
        assert ends == sorted(ends)
        assert all(spec.place(case.component, n) <= ends[0] for n in terms)


def test_every_scenario_of_the_issue_is_there() -> None:
    """Guidance, prompts, shapes, step counts, schedulers: what was asked for is in the matrix."""
    pictures = [c.scenario for c in SAMPLING if c.is_pipeline and c.variant.name == "tiny"]
    assert {0.0, 1.0, 7.5} <= {s.guidance_scale for s in pictures}
    assert {1, 2, 7, 50} <= {s.steps for s in pictures}
    assert {s.algorithm for s in pictures} == set(ALGORITHMS)
    assert any(len(set(s.prompts)) > 1 for s in pictures)
    assert any(s.height != s.width for s in pictures)
    for task in (IMAGE_TO_IMAGE, INPAINT):
        edits = [c.scenario for c in SAMPLING if c.component == task]
        assert {s.algorithm for s in edits} == set(ALGORITHMS)
        assert {0.1, 0.5, 1.0} <= {s.strength for s in edits}
        assert {0.0, 1.0, 7.5} <= {s.guidance_scale for s in edits}
        assert {1, 2, 3} <= {len(s.prompts) for s in edits}
        assert {1, 2} <= {s.each for s in edits}
    recorded = [c for c in SAMPLING if c.is_scheduler and not c.refused]
    assert len(recorded) >= 300
    for name in ALGORITHMS:
        own = [c.scenario for c in recorded if c.component == f"scheduler/{name}"]
        long = set() if name == "lms" else {999}  # the reference integrates LMS numerically
        assert {2, 3, 7, 20, 30, 50} | long <= {s.steps for s in own}
        assert {s.config["timestep_spacing"] for s in own} == set(SPACINGS)
        assert any(s.config["begin_index"] for s in own)


REFUSED = [case for case in SAMPLING if case.refused]


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.id)
def test_where_nothing_is_recorded_the_reference_has_no_answer(case) -> None:
    """It raises, is not finite, asks at a timestep that no model knows, or leaves a step out."""
    diffusers = pytest.importorskip("conformance.adapters.diffusers").port()
    component = diffusers.load(case.component, case.variant, case.weights(), "float32", "cpu")
    try:
        outputs, _ = component.run(case.inputs())
    except (IndexError, ValueError):
        return
    finite = all(np.isfinite(array).all() for array in outputs.values())
    known = outputs["timesteps"].max() < case.scenario.config["num_train_timesteps"]
    whole = len(outputs["timesteps"]) == case.scenario.steps + (case.component == "scheduler/pndm")
    assert not (finite and known and whole)


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.id)
def test_sd1_impl_names_the_setting_that_it_refuses(case) -> None:
    """A ValueError says which number of steps, and why."""
    port = pytest.importorskip("conformance.adapters.sd1_impl").port()
    component = port.load(case.component, case.variant, case.weights(), "float32", "cpu")
    with pytest.raises(ValueError, match=rf"{case.scenario.steps}\b"):
        component.run(case.inputs())


def test_a_table_is_judged_by_its_worst_entry() -> None:
    """One entry out of a thousand counts; NaN fails; half-precision models have float32 tables."""
    truth = np.linspace(0.1, 1, 1000)
    noise = np.full(1000, 1e-7)
    value = truth.copy()
    value[123] *= 1 + 3e-7
    record = judge_table("betas", value, truth, noise, "float32")
    assert (record.verdict, record.note) == ("warn", "")
    assert record.ratio == pytest.approx(3, rel=1e-6)
    value[7] *= 1 + 5e-7
    record = judge_table("betas", value, truth, noise, "bfloat16")
    assert record.verdict == "fail"
    assert record.note.startswith("entry 7 is 0.106306")
    value[500] = np.nan
    assert judge_table("betas", value, truth, noise, "float32").note.startswith("entry 500 is nan")
    exact = judge_table("betas", truth, truth, 0 * noise, "float64")
    assert (exact.verdict, exact.ratio) == ("pass", 0.0)


IMAGE = np.random.default_rng(0).random((2, 3, 16, 24))
PIXELS = np.round(255 * IMAGE.transpose(0, 2, 3, 1)).astype(np.uint8)


def test_right_pixels_pass() -> None:
    """Roundings pass; so does another image's, whose own pixels are right: that is judged apart."""
    record = judge_pixels("image_uint8", PIXELS, IMAGE, PIXELS, 1e-6, "float32")
    assert (record.verdict, record.ratio) == ("pass", 0.0)
    assert record.note == "identical to the reference's picture"
    other = judge_pixels("image_uint8", PIXELS[::-1], IMAGE[::-1], PIXELS, 1e-6, "float32")
    assert other.verdict == "pass"
    assert "PSNR" in other.note
    assert "SSIM" in other.note


@pytest.mark.parametrize(
    ("levels", "verdict"), [(0.9, "pass"), (1.5, "pass"), (3, "warn"), (5, "fail")]
)
def test_a_pixel_may_round_what_the_limit_allows(levels: float, verdict: str) -> None:
    """A pixel between two levels may take either within the limit, and no further."""
    image = IMAGE.copy()
    unit = 1e-5  # noise of the worst element, over the RMS
    scale = float(np.sqrt(np.mean(np.square(255 * image))))
    image[0, 0, 0, 0] = (PIXELS[0, 0, 0, 0] + 0.5 + levels * unit * scale) / 255
    record = judge_pixels("image_uint8", PIXELS, image, PIXELS, unit, "float32")
    assert record.verdict == verdict
    assert record.ratio == pytest.approx(levels, rel=0.01)


def test_terms_of_a_step_are_read_off() -> None:
    """Coefficients come back exactly; what is no linear combination has none."""
    rng = np.random.default_rng(1)
    shape = (2, 4, 6, 7)
    inputs = {
        "config": config_array(settings("ddpm", 7)),
        "sample": rng.standard_normal(shape),
        "model_outputs": rng.standard_normal((7, *shape)),
        "noise": rng.standard_normal((7, *shape)),
    }
    here = rng.standard_normal(shape)
    terms = entering("scheduler/ddpm", inputs, {3: here}, 3)
    assert list(terms) == [*TERMS[:5], "noise"]
    result = 1.5 * here - 0.25 * inputs["model_outputs"][3] + 2 * inputs["noise"][3]
    found = dict(zip(TERMS, coefficients(terms, result), strict=True))
    assert found["sample"] == pytest.approx(1.5)
    assert found["model output"] == pytest.approx(-0.25)
    assert found["model output -1"] == pytest.approx(0, abs=1e-12)
    assert found["noise"] == pytest.approx(2)
    assert np.isnan(found["model output -4"])
    assert np.isnan(coefficients(terms, np.clip(result, -1, 1))).all()
    assert np.isnan(coefficients(terms, result * np.nan)).all()


def test_plms_takes_its_first_step_again() -> None:
    """The second step of PLMS starts from the run's first sample; DDIM's from the first result."""
    sample, here = np.zeros((1, 4, 2, 2)), np.ones((1, 4, 2, 2))
    outputs = np.ones((8, 1, 4, 2, 2))
    given = dict.fromkeys(range(8), here)
    for algorithm, wanted in (("pndm", sample), ("ddim", here)):
        name = f"scheduler/{algorithm}"
        config = config_array(settings(algorithm, 7))
        inputs = {"config": config, "sample": sample, "model_outputs": outputs}
        assert entering(name, inputs, given, 1)["sample"] is wanted
        assert entering(name, inputs, given, 2)["sample"] is here


@pytest.mark.parametrize(
    ("algorithm", "changes", "step", "begun"),
    [
        ("heun", {}, 3, 2),
        ("heun", {}, 4, 4),
        ("pndm", {"skip_prk_steps": False}, 7, 4),
        ("pndm", {"skip_prk_steps": False}, 12, 12),
        ("dpmpp_2m", {}, 5, 5),
    ],
)
def test_a_step_of_several_calls_starts_where_it_began(
    algorithm: str, changes: dict, step: int, begun: int
) -> None:
    """Heun's second call and Runge-Kutta's others read the sample of the step's first."""
    given = {k: np.full((1, 4, 2, 2), float(k)) for k in range(20)}
    config = config_array(settings(algorithm, 7, **changes))
    inputs = {"config": config, "sample": given[0], "model_outputs": np.ones((20, 1, 4, 2, 2))}
    terms = entering(f"scheduler/{algorithm}", inputs, given, step)
    assert terms["sample"] is given[begun]
    assert ("sample -1" in terms) == (algorithm == "dpmpp_2m")
    del given[begun]
    lost = entering(f"scheduler/{algorithm}", inputs, given, step)
    assert np.isnan(coefficients(lost, given[1])).all()


@pytest.mark.parametrize("name", ["scheduler/ddim/-/steps7", "scheduler/ddim/-/base"])
def test_values_of_a_scheduler_come_back_from_the_cache(
    name: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the oracle computed step by step is read again, and the golden has not aged by it."""
    pytest.importorskip("diffusers")
    from conformance.recording.live import LiveTraces
    from conformance.recording.verify import LiveAge

    monkeypatch.setenv("SD1_CACHE", str(tmp_path))
    case = find_case(name)
    for _ in ("computed", "read"):
        assert LiveAge(LiveTraces())(case, load_golden(case)) is None
    assert list(tmp_path.rglob("*.safetensors"))
