"""A third, independent implementation of the schedulers judges the judges: plain NumPy, no torch.

It shares no code with `sd1_impl` or diffusers and is in no noise, so it is a held-out evaluation;
and it shows that a port in any array library is an object with `hello`, `load` and `run`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from conformance.case import select_cases
from conformance.execution import Execution
from conformance.port import Hello
from conformance.results import earliest
from conformance.runner import Runner
from conformance.tolerance import LIMIT

SHARES = ([1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
CASES = select_cases(["scheduler/*"])


class Scheduler:
    """All three algorithms, from one formula: x_prev = a x0 + b epsilon + c noise."""

    def __init__(self, algorithm: str, dtype: str, fault: str) -> None:
        self.algorithm, self.dtype, self.fault = algorithm, np.dtype(dtype), fault

    def run(self, inputs, probes=(), _replace=None):
        """Run once, open loop."""
        c = json.loads(str(inputs["config"]))
        sample, said, noise = (
            inputs[name].astype(self.dtype) if name in inputs else None
            for name in ("sample", "model_outputs", "noise")
        )
        root = 2 if c["beta_schedule"] == "scaled_linear" else 1
        ends = c["beta_start"] ** (1 / root), c["beta_end"] ** (1 / root)
        betas = np.linspace(*ends, c["num_train_timesteps"]) ** root
        keep = np.cumprod(1 - betas)
        final = keep[0] if not c.get("set_alpha_to_one", True) else 1.0
        times, stride = self.times(c), c["num_train_timesteps"] // c["num_inference_steps"]
        past, samples = [], [sample]
        for k, t in enumerate(times):
            x, e, here, there = samples[-1], said[k], t, t - stride
            if self.algorithm == "ddpm" and t == times[-1]:
                there = -1  # a run of DDPM ends at the clean sample
            if self.algorithm == "pndm" and k == 1:
                x, e, here, there = samples[0], (past[0] + e) / 2, t + stride, t
            elif self.algorithm == "pndm":
                past = [e, *past[:3]]
                e = sum(w * o for w, o in zip(SHARES[len(past) - 1], past, strict=True))
            alphas = float(keep[here]), float(keep[there] if there >= 0 else final)
            z = noise[k] if noise is not None and t > 0 else 0
            samples.append(self.step(c, x, e, z, alphas))
        outputs = {"timesteps": np.array(times), "model_inputs": np.stack(samples[:-1])}
        outputs["samples"] = np.stack(samples[1:])
        tables = {"betas": betas, "alphas_cumprod": keep, "final_alpha_cumprod": np.array([final])}
        wanted = {name: tables[name].astype(self.dtype) for name in probes}
        if self.fault == "short":
            outputs["timesteps"] = outputs["timesteps"][:-1]
        if self.fault == "table" and probes:
            wanted["betas"][500] *= 1 + 1e-4
        if self.fault == "step":
            outputs["samples"][2] *= 1 + 1e-4
        return outputs, wanted

    def times(self, c):
        """Return the timesteps of a run."""
        n, count = c["num_inference_steps"], c["num_train_timesteps"]
        times = [i * (count // n) + c["steps_offset"] for i in reversed(range(n))]
        plms = self.algorithm == "pndm"
        if times[0] >= count or (plms and n == 1):
            raise ValueError(f"num_inference_steps {n} has no run")
        return [*times[:2], *times[1:]][c["begin_index"] :] if plms else times[c["begin_index"] :]

    def step(self, c, x, e, noise, alphas):
        """Step from one share of the signal to another."""
        a, b = alphas
        x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
        if c["prediction_type"] == "v_prediction":
            x0, e = a**0.5 * x - (1 - a) ** 0.5 * e, a**0.5 * e + (1 - a) ** 0.5 * x
        if c.get("clip_sample"):
            x0 = np.clip(x0, -c["clip_sample_range"], c["clip_sample_range"])
        posterior = (1 - b) / (1 - a) * (1 - a / b)
        if self.algorithm == "ddpm":
            variance = 1 - a / b if c["variance_type"] == "fixed_large" else max(posterior, 1e-20)
            mean = b**0.5 * (1 - a / b) / (1 - a) * x0 + (a / b) ** 0.5 * (1 - b) / (1 - a) * x
            return mean + variance**0.5 * noise
        sigma = c.get("eta", 0) * posterior**0.5
        return b**0.5 * x0 + (1 - b - sigma**2) ** 0.5 * e + sigma * noise


class Port:
    """Schedulers alone."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def hello(self):
        """Offer three components."""
        names = tuple(f"scheduler/{name}" for name in ("ddpm", "ddim", "pndm"))
        return Hello("numpy", "1", names, ("float32", "float64"))

    def load(self, component, _variant, weights, arithmetic, _device):
        """Return one of them: there are no weights."""
        assert len(weights) == 0
        return Scheduler(component.partition("/")[2], arithmetic, self.fault)


def judged(case, dtype: str, fault: str = ""):
    """Run one case."""
    return Runner(Port(fault)).run(case, Execution(dtype=dtype).for_case(case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case_", CASES, ids=lambda c: c.id)
def test_numpy_schedulers_conform(case_, dtype: str, monkeypatch) -> None:
    """Every case passes, at no more than half the limit; what is refused is refused."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    result = judged(case_, dtype)
    assert result.verdict == "pass", result.message
    if case_.refused:
        assert result.message.startswith("refused with ValueError")
        return
    assert result.worst.ratio <= LIMIT / 2
    names = {record.name for record in result.records}
    assert {*case_.scenario.terms(), "timesteps"} == names


@pytest.mark.parametrize(
    ("fault", "probe", "words"),
    [
        ("short", "timesteps", "shape (49,), expected (50,)"),
        ("table", "betas", "entry 500 is 0.0048154355, expected"),
        ("step", "samples#2", "times the sample instead of"),
    ],
)
def test_wrong_numpy_schedulers(fault: str, probe: str, words: str, monkeypatch) -> None:
    """What is wrong is named, with what should stand there."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    (case,) = select_cases(["scheduler/ddim"], None, ["base"])
    result = judged(case, "float32", fault)
    assert result.verdict == "fail"
    assert result.first_divergence["probe"] == probe
    assert words in result.first_divergence["hint"]


def test_settings_beyond_sd1_come_last(monkeypatch) -> None:
    """A port that ignores a setting is told which, after what is wrong with SD v1 itself."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    (asked,) = select_cases(["scheduler/ddim"], None, ["linear"])
    (plain,) = select_cases(["scheduler/ddim"], None, ["steps7"])
    real = Scheduler.run

    def deaf(self, inputs, probes=(), _replace=None):
        config = json.loads(str(inputs["config"])) | {"beta_schedule": "scaled_linear"}
        return real(self, {**inputs, "config": np.array(json.dumps(config))}, probes)

    monkeypatch.setattr(Scheduler, "run", deaf)
    results = [judged(asked, "float32"), judged(plain, "float32", "step")]
    assert [r.first_divergence["probe"] for r in results] == ["betas", "samples#2"]
    hint = results[0].first_divergence["hint"]
    assert "this case asks for beta_schedule linear, as not in SD v1" in hint
    first = earliest([r.as_json() for r in results])
    assert first["case"] == "scheduler/ddim/-/steps7[float32-cpu]"


def test_an_answer_where_there_is_none_is_skipped() -> None:
    """A port that computes what the reference cannot is not judged by it."""
    (case,) = select_cases(["scheduler/pndm"], None, ["steps1"])

    class Bold(Port):
        def load(self, *_):
            return self

        def run(self, *_):
            return {}, {}

    result = Runner(Bold()).run(case, Execution().for_case(case))
    assert result.verdict == "skip"
    assert "the answer cannot be judged: PLMS takes its first step twice" in result.message
