"""Error growth of a picture: step by step, and by who makes it."""

from __future__ import annotations

import math

import pytest

from conformance.compare import Record
from conformance.tolerance import LIMIT
from conformance.trajectory import trajectory


def record(name: str, ratio: float) -> Record:
    """Return a record of which only name and ratio matter."""
    return Record(name, "probe", [1], 1e-6 * ratio, 1e-6, ratio, "pass", approximate=True)


def test_a_step_is_split_by_who_makes_its_errors() -> None:
    """Both branches are the model's, of which the worse counts; other terms are left out."""
    ratios = {
        "prompt_embeds": 9.0,
        "timestep#0": 0.0,
        "model_input#0": 0.5,
        "noise_pred_uncond#0": 1.0,
        "noise_pred_text#0": 2.0,
        "noise_pred#0": 3.0,
        "latents#0": 4.0,
        "latents#7": 5.0,
    }
    steps = trajectory(record(name, ratio) for name, ratio in ratios.items())
    assert [step["step"] for step in steps] == [0, 7]
    shares = {name: share["ratio"] for name, share in steps[0].items() if name != "step"}
    assert shares == {"input": 0.5, "model": 2.0, "guidance": 3.0, "scheduler": 4.0}
    assert steps[1] == {
        "step": 7,
        "scheduler": {"err": pytest.approx(5e-6), "noise": 1e-6, "ratio": 5.0},
    }


def test_what_is_put_back_has_a_share_of_its_own() -> None:
    """Where inpainting blends, the step is the scheduler's and the latents are the blend's."""
    (step,) = trajectory([record("unblended#2", 1.0), record("latents#2", 6.0)])
    assert (step["scheduler"]["ratio"], step["blend"]["ratio"]) == (1.0, 6.0)


def test_what_is_not_finite_counts_most() -> None:
    """NaN is worse than any number."""
    records = [record("noise_pred_uncond#0", 7.0), record("noise_pred_text#0", math.nan)]
    assert math.isnan(trajectory(records)[0]["model"]["ratio"])


@pytest.mark.parametrize(
    ("mutant", "case_id", "share"),
    [
        ("pipe-cfg-formula", "pipeline/txt2img/tiny/guidance1.5", "guidance"),
        ("sch-prediction-type", "pipeline/txt2img/tiny/ddpm", "scheduler"),
        ("pipe-inpaint-timestep-left", "pipeline/inpaint/tiny/base", "blend"),
    ],
)
def test_a_wrong_port_departs_in_its_own_term(mutant: str, case_id: str, share: str) -> None:
    """In splice mode one share of the first step is over the limit, and it is the right one."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from conformance.case import find_case
    from conformance.execution import Execution
    from conformance.golden import SPLICE
    from conformance.mutants.catalogue import find_mutants
    from conformance.mutants.port import MutantPort
    from conformance.runner import Runner

    runner = Runner(MutantPort(find_mutants([mutant])[0]))
    case = find_case(case_id)
    line = runner.run(case, Execution(mode=SPLICE).for_case(case)).as_json()
    assert line["verdict"] == "fail", line["message"]
    first = line["trajectory"][0]
    wrong = [name for name, own in first.items() if name != "step" and not own["ratio"] <= LIMIT]
    assert wrong == [share]


def test_other_components_have_none() -> None:
    """A line of a network or a scheduler has no trajectory."""
    pytest.importorskip("torch")
    from conformance.case import find_case
    from conformance.execution import Execution
    from conformance.port import resolve
    from conformance.runner import Runner

    case = find_case("scheduler/ddim/-/steps3")
    line = Runner(resolve("sd1_impl")).run(case, Execution().for_case(case)).as_json()
    assert line["verdict"] == "pass"
    assert "trajectory" not in line
