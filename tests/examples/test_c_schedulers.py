"""The C port's schedulers: they conform, a wrong choice is named, and bad input is refused."""

import math
import shlex
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from conformance.case import all_cases, find_case
from conformance.errors import RaisedError, UnsupportedError
from conformance.execution import Execution
from conformance.port import resolve
from conformance.runner import Runner
from conformance.sampling import ALGORITHMS, SCHEDULERS, calls, config_array, settings
from conformance.variants import parse_variant

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler: cc is not on the path")

SOURCE = Path(__file__).parents[2] / "examples/c"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")

FLOATS = ("float32", "float64")

WRONG = {
    "steps_offset 0": (
        "noise_schedule.c",
        ("offset = settings->steps_offset;", "offset = 0;"),
        ("ddim/-/base", "timesteps"),
    ),
    "final alpha 1": (
        "noise_schedule.c",
        (
            "bool clean = settings->algorithm == DDPM || settings->set_alpha_to_one;",
            "bool clean = true;",
        ),
        ("ddim/-/base", "final_alpha_cumprod"),
    ),
    "linear betas": (
        "noise_schedule.c",
        ("settings->beta_schedule == SCALED_LINEAR", "false"),
        ("pndm/-/base", "betas"),
    ),
    "rho 5": (
        "noise_schedule.c",
        ("#define RHO 7.0", "#define RHO 5.0"),
        ("euler/-/karras20", "sigmas"),
    ),
    "final sigma": (
        "noise_schedule.c",
        (
            "clean ? 0.0 : schedule->training_sigmas[0]",
            "clean ? schedule->training_sigmas[0] : 0.0",
        ),
        ("dpmpp_2m/-/base", "sigmas"),
    ),
    "sample not scaled": (
        "scheduler_steps.c",
        ("grown ? level_of_sigma(*sigmas_at_call(sampler)).signal : 1.0", "grown ? 1.0 : 1.0"),
        ("euler/-/base", "model_inputs#0"),
    ),
    "variance for deviation": (
        "scheduler_steps.c",
        ("{sqrt(variance), noise}", "{variance, noise}"),
        ("ddpm/-/base", "samples#0"),
    ),
    "eta ignored": (
        "scheduler_steps.c",
        ("eta = sampler->settings->eta;", "eta = 0.0;"),
        ("ddim/-/eta0.5", "samples#0"),
    ),
    "PLMS reversed": (
        "scheduler_steps.c",
        ("- 1][k], sampler->past[k]}", "- 1][k], sampler->past[sampler->remembered - 1 - k]}"),
        ("pndm/-/base", "samples#2"),
    ),
    "points of Gauss": (
        "scheduler_steps.c",
        ("sign / sqrt(3.0)", "sign / 2.0"),
        ("lms/-/base", "samples#2"),
    ),
    "not enough new noise": (
        "scheduler_steps.c",
        ("sqrt(1.0 - ratio * ratio)", "(1.0 - ratio)"),
        ("euler_ancestral/-/base", "samples#0"),
    ),
    "slope of the end alone": (
        "scheduler_steps.c",
        ("{half, sampler->past[0]}, {half, sampler->epsilon}", "{2.0 * half, sampler->epsilon}"),
        ("heun/-/base", "samples#1"),
    ),
    "few steps are 14": (
        "scheduler_steps.c",
        ("#define FEW_STEPS 15 ", "#define FEW_STEPS 14 "),
        ("dpmpp_2m/-/sigma-min14", "samples#13"),
    ),
}
"""A file, what is replaced in it and by what; a case that sees it, and the first wrong term."""


def build(program: Path, *flags: str, changed: dict[str, str] | None = None) -> Path:
    """Compile the sources, some of them changed; return the program."""
    sources = {path.name: path for path in SOURCE.glob("*.c")}
    for name, source in (changed or {}).items():
        sources[name] = program.with_name(name)
        sources[name].write_text(source, encoding="utf-8")
    command = [COMPILER, *STRICT, *flags, "-I", SOURCE, "-o", program, *sources.values(), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The port with checks of every access to memory, where the compiler has them."""
    folder = tmp_path_factory.mktemp("c")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    trial = [COMPILER, *SANITIZERS, "-o", folder / "empty", folder / "empty.c"]
    missing = subprocess.run(trial, capture_output=True, check=False).returncode
    return build(folder / "port", "-O1", *(() if missing else SANITIZERS))


@contextmanager
def started(program: Path):
    """The port; it must end with code 0, which it does not if a sanitizer found a leak."""
    port = resolve(f"exec:{shlex.quote(str(program))}")
    try:
        yield port
        assert port.starts == 1
        assert port.end() == 0
    finally:
        port.close()


@pytest.fixture
def port(program):
    """The port."""
    with started(program) as port:
        yield port


def judge(port, case_ids: list[str], arithmetic: str) -> list:
    """Run cases and judge them."""
    runner = Runner(port)
    runner.asks_for_age = False
    return [runner.run(find_case(case), Execution(dtype=arithmetic)) for case in case_ids]


@pytest.mark.parametrize("arithmetic", FLOATS)
@pytest.mark.parametrize("component", SCHEDULERS)
def test_conforms(port, component, arithmetic):
    """Every case passes, well within the ordinary limit; nothing is declined."""
    cases = [case.id for case in all_cases() if case.component == component]
    results = judge(port, cases, arithmetic)
    assert {(r.case.id, r.message) for r in results if r.verdict != "pass"} == set()
    assert max(r.worst.ratio for r in results if r.worst) < 2


@pytest.mark.parametrize("name", WRONG)
def test_wrong_choice_is_named(tmp_path, name):
    """One wrong choice in the source fails at the term that it is in."""
    file, (right, wrong), (scenario, term) = WRONG[name]
    source = (SOURCE / file).read_text(encoding="utf-8")
    assert source.count(right) == 1
    program = build(tmp_path / "port", changed={file: source.replace(right, wrong)})
    with started(program) as port:
        (result,) = judge(port, [f"scheduler/{scenario}"], "float32")
    assert result.verdict == "fail"
    assert (result.first_divergence["probe"], result.first_divergence["kind"]) == (term, "fault")


def loaded(port, algorithm: str, arithmetic: str = "float32"):
    """Load a scheduler."""
    variant = parse_variant("-")
    weights = variant.weights(f"scheduler/{algorithm}")
    return port.load(f"scheduler/{algorithm}", variant, weights, arithmetic, "cpu")


def inputs(algorithm: str, config: dict, **changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the inputs of a run, all ones, some of them changed or left out."""
    every = np.ones((calls(algorithm, config), 1, 4, 2, 3), np.float32)
    given = {"sample": every[0], "model_outputs": every, "noise": every} | changed
    given["config"] = config_array(config)
    return {name: array for name, array in given.items() if array is not None}


REFUSED = {
    "no number": ("ddim", {"eta": "0"}, "eta"),
    "too much noise": ("ddim", {"eta": 1.5}, "eta"),
    "no boolean": ("ddim", {"clip_sample": 0}, "clip_sample"),
    "clipped to nothing": ("heun", {"clip_sample_range": 0}, "clip_sample_range"),
    "falling betas": ("lms", {"beta_start": 0.5}, "betas"),
    "no training": ("lms", {"num_train_timesteps": 0}, "num_train_timesteps"),
    "huge training": ("lms", {"num_train_timesteps": 1 << 50}, "num_train_timesteps"),
    "no steps": ("euler", {"num_inference_steps": 0}, "1 to 1000"),
    "too many steps": ("euler", {"num_inference_steps": 1001}, "1 to 1000"),
    "past the table": ("ddpm", {"num_inference_steps": 1000}, "begin at timestep 1000"),
    "huge offset": ("ddpm", {"steps_offset": 1 << 53}, "steps_offset"),
    "one step": ("pndm", {"num_inference_steps": 1}, "2 or more"),
    "three steps": ("pndm", {"num_inference_steps": 3, "skip_prk_steps": False}, "4 or more"),
    "late warm-up": ("pndm", {"begin_index": 2, "skip_prk_steps": False}, "begin_index"),
    "same timesteps": ("dpmpp_2m", {"num_inference_steps": 1000}, "different timesteps"),
    "within a step": ("heun", {"begin_index": 3}, "even"),
    "after the end": ("ddim", {"begin_index": 7}, "0 to 6"),
}
"""What is changed in seven steps, and what the refusal names."""

UNSUPPORTED = {
    "unknown": ("ddim", {"thresholding": False}, "thresholding"),
    "another's": ("euler", {"eta": 0.0}, "eta"),
    "betas": ("ddim", {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
    "variance": ("ddpm", {"variance_type": "learned"}, "learned"),
    "prediction": ("pndm", {"prediction_type": "sample"}, "sample"),
    "ancestral": ("euler_ancestral", {"use_karras_sigmas": False}, "use_karras_sigmas"),
}
"""Settings that there are not, and what the answer names."""


@pytest.mark.parametrize(
    ("algorithm", "changes", "named", "error"),
    [(*row, RaisedError) for row in REFUSED.values()]
    + [(*row, UnsupportedError) for row in UNSUPPORTED.values()],
    ids=[*REFUSED, *UNSUPPORTED],
)
def test_wrong_settings_are_named(port, algorithm, changes, named, error):
    """What cannot be is an error, what this port does not have is declined; the next run goes."""
    component, right = loaded(port, algorithm), settings(algorithm, 7)
    with pytest.raises(error, match=named):
        component.run(inputs(algorithm, right) | {"config": config_array(right | changes)})
    component.run(inputs(algorithm, right))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_missing_settings_are_named(port, algorithm):
    """No setting has a default."""
    component, right = loaded(port, algorithm), settings(algorithm, 7)
    for name in right:
        without = config_array({other: right[other] for other in right if other != name})
        with pytest.raises(RaisedError, match=f"config lacks {name}"):
            component.run(inputs(algorithm, right) | {"config": without})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sample", np.ones((4, 2, 3), np.float32)),
        ("sample", np.ones((1, 4, 2, 3), np.float64)),
        ("sample", np.ones((1, 4, 0, 3), np.float32)),
        ("sample", None),
        ("model_outputs", np.ones((1, 4, 2, 3), np.float32)),
        ("model_outputs", np.ones((7, 1, 4, 3, 2), np.float32)),
        ("model_outputs", None),
        ("noise", np.ones((6, 1, 4, 2, 3), np.float32)),
        ("noise", None),
    ],
)
def test_wrong_samples_are_named(port, name, wrong):
    """An input that is missing, or of a wrong shape or dtype, is refused; the next run goes."""
    component, right = loaded(port, "ddpm"), settings("ddpm", 7)
    with pytest.raises(RaisedError, match=name):
        component.run(inputs("ddpm", right, **{name: wrong}))
    component.run(inputs("ddpm", right))


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("steps", [27, 31, 48, 96])
def test_timesteps_half_way(port, steps, spacing):
    """Where a timestep lies half way between two integers, NumPy's last bit decides."""
    config = settings("ddim", steps, timestep_spacing=spacing)
    wanted = (
        np.arange(1000, 0, -1000 / steps).round()[:steps] - 1
        if spacing == "trailing"
        else np.linspace(0, 999, steps).round()[::-1]
    )
    outputs, _ = loaded(port, "ddim").run(inputs("ddim", config))
    np.testing.assert_array_equal(outputs["timesteps"], wanted)


@pytest.mark.parametrize("arithmetic", FLOATS)
def test_clipping_lets_nan_through(port, arithmetic):
    """A broken prediction shows: it is not clipped to a number."""
    config = settings("ddpm", 1, clip_sample=True)
    broken = np.full((1, 1, 4, 2, 3), math.nan, np.float32)
    component = loaded(port, "ddpm", arithmetic)
    outputs, _ = component.run(inputs("ddpm", config, model_outputs=broken))
    assert outputs["samples"].dtype == np.dtype(arithmetic)
    assert np.isnan(outputs["samples"]).all()
