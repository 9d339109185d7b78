"""The NumPy port's schedulers conform, agree with sd1_impl beyond the goldens, can be caught."""

from __future__ import annotations

import importlib
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance.case import find_case, select_cases
from conformance.execution import Execution
from conformance.port import resolve
from conformance.summary import earliest
from conformance.tolerance import LIMIT
from sd1_impl.schedulers import SCHEDULERS as REFERENCE
from sd1_impl.schedulers import SigmaSchedule

PORT = Path(__file__).resolve().parents[2] / "examples" / "numpy" / "port.py"
CASES = select_cases(["scheduler/*"])


@pytest.fixture
def port():
    """The port's schedulers."""
    resolve(f"{PORT}:factory")
    return importlib.import_module("sd1_numpy.schedulers")


def judged(runner, case_id: str, dtype: str = "float32"):
    """Run one case."""
    case = find_case(case_id)
    return runner.run(case, Execution(dtype=dtype).for_case(case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_conforms(runner, case, dtype: str) -> None:
    """Every setting passes, step by step and table by table; what has no answer is refused."""
    result = judged(runner, case.id, dtype)
    assert result.verdict == "pass", result.message
    if case.refused:
        assert result.message.startswith("refused with ValueError")
        return
    assert result.worst.ratio < LIMIT / 2
    terms = {*case.scenario.terms(case.variant), "timesteps"}
    assert {record.name for record in result.records} == terms


SHARED = {
    "num_train_timesteps": [1000, 1100],
    "beta_start": [0.00085, 0.0001],
    "beta_end": [0.012, 0.02],
    "beta_schedule": ["scaled_linear", "linear"],
    "prediction_type": ["epsilon", "v_prediction", "sample"],
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "steps_offset": [0, 1],
    "num_inference_steps": [1, 2, 3, 4, 5, 7, 14, 15, 20],
    "begin_index": [0, 0, 2],
}
CLIP = {"clip_sample": [False, True], "clip_sample_range": [1.0, 0.8]}
KARRAS = {"use_karras_sigmas": [False, True]}
END = {"final_sigmas_type": ["zero", "sigma_min"]}
ONE = {"set_alpha_to_one": [False, True]}
OWN = {
    "ddpm": CLIP | {"variance_type": ["fixed_small", "fixed_small_log", "fixed_large"]},
    "ddim": CLIP | ONE | {"eta": [0.0, 0.3, 1.0]},
    "pndm": ONE | {"skip_prk_steps": [True, False]},
    "lms": KARRAS,
    "euler": KARRAS | END,
    "euler_ancestral": {},
    "heun": KARRAS | CLIP,
    "dpmpp_2m": KARRAS
    | END
    | {"lower_order_final": [True, False], "euler_at_final": [False, True]},
}
MIXTURES = [(name, seed) for name in OWN for seed in range(16)]


def mixture(name: str, seed: int) -> dict:
    """Return settings of a scheduler, drawn independently of each other."""
    draw = np.random.default_rng([list(OWN).index(name), seed])
    settings = SHARED | OWN[name]
    return {setting: values[draw.integers(len(values))] for setting, values in settings.items()}


def reference(name: str, config: dict):
    """Return sd1_impl's scheduler and its run; it raises ValueError where there is none."""
    config_type, algorithm = REFERENCE[name]
    known = {field.name for field in fields(config_type)}
    scheduler = algorithm(config_type(**{k: config[k] for k in config if k in known}))
    run = scheduler.start(config["num_inference_steps"], begin_index=config["begin_index"])
    return scheduler, run


def reference_tables(scheduler, run) -> dict[str, np.ndarray]:
    """Return what the port shows as tables."""
    tables = {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}
    if not isinstance(scheduler, SigmaSchedule):
        return tables | {"final_alpha_cumprod": [scheduler.final_alpha_cumprod]}
    return tables | {"sigmas": run.sigmas, "init_noise_sigma": [run.init_noise_sigma]}


@pytest.mark.parametrize(("name", "seed"), MIXTURES, ids=str)
def test_mixed_settings_agree_with_sd1_impl(port, name: str, seed: int) -> None:
    """Where no golden looks, two programs that share no code say the same, or both refuse."""
    config = mixture(name, seed)
    try:
        scheduler, run = reference(name, config)
    except ValueError:
        with pytest.raises((ValueError, port.UnsupportedError)):
            port.scheduler_of(name, config)
        return
    ours = port.scheduler_of(name, config)
    np.testing.assert_allclose(ours.timesteps, run.timesteps, rtol=1e-12, atol=1e-10)
    for table, values in reference_tables(scheduler, run).items():
        np.testing.assert_allclose(ours.tables[table], values, rtol=1e-12, err_msg=table)
    draws = np.random.default_rng(seed)
    x, original, fresh = draws.standard_normal((3, 1, 2, 2, 3))
    said, noise = draws.standard_normal((2, len(ours.timesteps), 1, 2, 2, 3))
    x = x * run.init_noise_sigma
    got = port.open_loop(ours, x, said, noise)
    x, close = torch.tensor(x), {"rtol": 1e-12, "atol": 1e-12}
    for k, t in enumerate(run.timesteps.tolist()):
        if run.timesteps.tolist().count(t) == 1:  # a noise level is asked for by its timestep
            noisy = scheduler.add_noise(torch.tensor(original), torch.tensor(fresh), t, run)
            np.testing.assert_allclose(ours.mix(k, original, fresh), noisy, **close)
        model_input = scheduler.scale_model_input(x, t, run)
        own = (torch.tensor(noise[k]),) if scheduler.adds_noise(t) else ()
        x = scheduler.step(torch.tensor(said[k]), t, x, run, *own)
        np.testing.assert_allclose(got["model_inputs"][k], model_input, **close)
        np.testing.assert_allclose(got["samples"][k], x, **close)


def test_mixtures_are_no_refusals() -> None:
    """Most of the mixtures are answered, with every value of every setting among them."""
    answered = []
    for name, seed in MIXTURES:
        try:
            reference(name, mixture(name, seed))
        except ValueError:
            continue
        answered.append((name, mixture(name, seed)))
    assert len(answered) > 0.7 * len(MIXTURES)
    for name, own in OWN.items():
        configs = [config for algorithm, config in answered if algorithm == name]
        for setting, values in own.items():
            assert {config[setting] for config in configs} == set(values), (name, setting)


@pytest.mark.parametrize("name", OWN)
def test_a_run_leaves_its_inputs_alone_and_is_repeatable(port, name: str) -> None:
    """Another run of the same settings says the same, bit by bit, whatever was run between."""
    config = json.loads(find_case(f"scheduler/{name}/-/base").inputs()["config"].item())
    draws = np.random.default_rng(0).standard_normal((2, 51, 1, 4, 2, 2))
    steps = len(port.scheduler_of(name, config).timesteps) if name != "heun" else 51
    said, noise = draws[:, :steps]
    copies = said.copy(), noise.copy()
    runs = []
    for _ in range(2):
        runs.append(port.open_loop(port.scheduler_of(name, config), said[0], said, noise))
        port.open_loop(port.scheduler_of("lms", mixture("lms", 0)), said[0], said[1:2])
    assert np.array_equal(runs[0]["samples"], runs[1]["samples"])
    assert np.array_equal(said, copies[0])
    assert np.array_equal(noise, copies[1])


@pytest.mark.parametrize(
    ("algorithm", "setting", "value"),
    [
        ("ddim", "timestep_spacing", "sqrt"),
        ("ddim", "beta_schedule", "squaredcos_cap_v2"),
        ("ddpm", "variance_type", "learned"),
        ("pndm", "prediction_type", "sample"),
        ("pndm", "use_karras_sigmas", True),
        ("euler", "final_sigmas_type", "sigma_max"),
        ("euler_ancestral", "use_karras_sigmas", False),
        ("euler_ancestral", "prediction_type", "sample"),
        ("dpmpp_2m", "algorithm_type", "sde-dpmsolver++"),
    ],
)
def test_declines_settings_that_it_would_ignore(
    runner, algorithm: str, setting: str, value: object
) -> None:
    """A setting, or a value of one, that a scheduler does not have is refused by its name."""
    case = find_case(f"scheduler/{algorithm}/-/steps7")
    inputs = case.inputs()
    config = json.loads(inputs["config"].item()) | {setting: value}
    loaded = runner.load(case, Execution())
    with pytest.raises(Exception, match=setting) as raised:
        loaded.run(inputs | {"config": np.array(json.dumps(config))})
    assert type(raised.value).__name__ == "UnsupportedError"


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("ddim", {"num_inference_steps": 0}, "num_inference_steps is 0, expected 1 to 1000"),
        ("ddim", {"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ("ddim", {"begin_index": 7}, "begin_index is 7, expected 0 to 6"),
        ("ddim", {"begin_index": -1}, "begin_index is -1"),
        ("ddim", {"eta": 1.1}, "eta is 1.1, expected 0 to 1"),
        ("ddim", {"steps_offset": 500}, "do not fit into 1000"),
        ("heun", {"clip_sample": True, "clip_sample_range": 0}, "clip_sample_range is 0"),
        ("pndm", {"skip_prk_steps": False, "num_inference_steps": 3}, "num_inference_steps is 3"),
        ("pndm", {"skip_prk_steps": False, "begin_index": 1}, "begin_index is 1, expected 0 with"),
        ("heun", {"begin_index": 3}, "begin_index is 3, expected an even one"),
        ("dpmpp_2m", {"num_inference_steps": 1000}, "no 1000 different timesteps"),
    ],
)
def test_refuses_what_is_no_run(port, algorithm: str, changes: dict, message: str) -> None:
    """Numbers that no run has are named, before anything is computed."""
    config = json.loads(find_case(f"scheduler/{algorithm}/-/steps7").inputs()["config"].item())
    with pytest.raises(ValueError, match=message):
        port.scheduler_of(algorithm, config | changes)


@pytest.mark.parametrize(
    ("algorithm", "scenario"),
    [("ddpm", "steps7"), ("ddim", "eta1"), ("euler_ancestral", "steps7")],
)
def test_refuses_to_go_without_noise(runner, algorithm: str, scenario: str) -> None:
    """Where steps add noise it has to be given."""
    case = find_case(f"scheduler/{algorithm}/-/{scenario}")
    inputs = case.inputs()
    del inputs["noise"]
    with pytest.raises(ValueError, match="noise is missing"):
        runner.load(case, Execution()).run(inputs)


def one_more(wrapped):
    """Add a timestep, as range() with a stride does where steps do not divide 1000."""
    return lambda self, every: np.append(wrapped(self, every), 0)


def one_entry_off(wrapped):
    """Change one entry of the table in its fourth digit."""
    return lambda self, count: wrapped(self, count) * np.where(np.arange(count) == 500, 1.0001, 1)


def third_step_off(wrapped):
    """Change one step in its fourth digit."""
    return lambda self, k, *rest: wrapped(self, k, *rest) * (1.0001 if k == 2 else 1)


def cut(wrapped):
    """Cut fractions off the timesteps."""
    return lambda self, every: wrapped(self, np.floor(every))


def oldest_first(wrapped):
    """Weigh slopes in the order in which they were made."""
    return lambda nodes, j, end: wrapped(nodes, len(nodes) - 1 - j, end)


WRONG = {
    "plms": (
        "pndm:PNDM.BLENDS",
        ((1,), (1, 0), (1, 0, 0), (1, 0, 0, 0)),
        "pndm/-/steps7",
        "samples#2",
    ),
    "long": ("ddim:DDIM.asked", one_more, "ddim/-/base", "timesteps"),
    "table": ("ddim:DDIM.betas", one_entry_off, "ddim/-/base", "betas"),
    "step": ("ddim:DDIM.step", third_step_off, "ddim/-/base", "samples#2"),
    "runge-kutta": (
        "pndm:PNDM.RUNGE_KUTTA",
        (1 / 4, 1 / 4, 1 / 4, 1 / 4),
        "pndm/-/warm-up7",
        "samples#3",
    ),
    "cut": ("euler:Euler.ask", cut, "euler/-/steps7", "timesteps"),
    "rho": ("sigmas:RHO", 5, "euler/-/karras7", "sigmas"),
    "first": (
        "sigmas:SigmaScheduler.first_deviation",
        lambda _: lambda _self, sigma: sigma,
        "euler/-/leading7",
        "init_noise_sigma",
    ),
    "order": ("lms:integral", oldest_first, "lms/-/steps7", "samples#1"),
    "three": ("lms:ORDER", 3, "lms/-/steps7", "samples#3"),
    "two-calls": ("heun:Heun.step", third_step_off, "heun/-/steps7", "samples#2"),
    "few": ("dpmpp_2m:FEW", 14, "dpmpp_2m/-/sigma-min14", "samples#13"),
    "unscaled": (
        "euler_ancestral:EulerAncestral.scale",
        lambda _: lambda _self, _k, x: x,
        "euler_ancestral/-/steps7",
        "model_inputs#0",
    ),
}
"""What is replaced, by file, what is put there, the case and the probe where it shows first."""

HINTS = {
    "long": "shape (51,), expected (50,)",
    "table": "entry 500 is 0.0048154355, expected",
    "step": "times the sample instead of",
}
"""What the hint says of some of them."""


def spoil(monkeypatch, wrong: str) -> tuple[str, str]:
    """Make one choice wrong; return the case and the probe that show it."""
    place, value, case_id, probe = WRONG[wrong]
    room, _, name = place.partition(":")
    *owners, last = name.split(".")
    owner = importlib.import_module(f"sd1_numpy.schedulers.{room}")
    for step in owners:
        owner = getattr(owner, step)
    made = value(getattr(owner, last)) if callable(value) else value
    monkeypatch.setattr(owner, last, made)
    return f"scheduler/{case_id}", probe


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_choice_is_caught(runner, monkeypatch, wrong: str) -> None:
    """The first divergence is the table or the step that was made wrong."""
    case_id, probe = spoil(monkeypatch, wrong)
    result = judged(runner, case_id)
    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == probe
    assert HINTS.get(wrong, "") in result.first_divergence["hint"]


def test_settings_beyond_sd1_come_last(runner, port, monkeypatch) -> None:
    """A port that ignores a setting is told which, after what is wrong with SD v1 itself."""
    plain = port.Scheduler.betas

    def deaf(self, count):
        self.config = self.config | {"beta_schedule": "scaled_linear"}
        return plain(self, count)

    with monkeypatch.context() as patch:
        patch.setattr(port.Scheduler, "betas", deaf)
        ignored = judged(runner, "scheduler/ddim/-/linear")
    case_id, _ = spoil(monkeypatch, "step")
    wrong = judged(runner, case_id)
    assert ignored.first_divergence["probe"] == "betas"
    hint = ignored.first_divergence["hint"]
    assert "this case asks for beta_schedule linear, as not in SD v1" in hint
    assert earliest([ignored.as_json(), wrong.as_json()])["case"] == wrong.item_id


def test_an_answer_where_there_is_none_is_skipped(runner, port, monkeypatch) -> None:
    """A port that computes what the reference cannot is not judged by it."""
    monkeypatch.setattr(port.PNDM, "asked", lambda _self, every: every.repeat(2))
    result = judged(runner, "scheduler/pndm/-/steps1")
    assert result.verdict == "skip"
    assert "the answer cannot be judged: PLMS takes its first step twice" in result.message
