"""Which executions the options choose: names, globs, and what neither fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conformance.case import all_cases, find_case
from conformance.choice import executions, lacks_oracle, not_applying, scope_of
from conformance.errors import UsageError
from conformance.execution import STABILITY, Execution
from conformance.port import Hello

PORT = Hello(
    "mine",
    "1",
    ("unet",),
    arithmetics=("float32", "bfloat16", "tf32"),
    devices=("cpu", "cuda", "cuda:0"),
    replace=False,
    backends=("sdpa", "math", "plain"),
)
ASKED = {"dtype": "float32", "device": "cpu", "backend": "sdpa", "mode": "trace"}


def chosen(axis: str, text: str) -> list[str]:
    """Return what an option chooses, the others being as ever."""
    runs = executions(**{**ASKED, axis: text}, hello=PORT)
    return [getattr(run, axis) for run in runs]


@pytest.mark.parametrize(
    ("axis", "text", "names"),
    [
        ("dtype", "*", ["float32", "bfloat16", "tf32"]),
        ("dtype", "*float*, tf32", ["float32", "bfloat16", "tf32"]),
        ("dtype", "float64,float32", ["float64", "float32"]),
        ("device", "cuda*", ["cuda", "cuda:0"]),
        ("backend", "*", ["sdpa", "math", "plain"]),
        ("backend", "[mp]*,sliced", ["math", "plain", "sliced"]),
        ("mode", "*", ["trace", *STABILITY]),
        ("mode", "repeat,trace,splice", ["splice", "trace", "repeat"]),
    ],
)
def test_names_and_globs(axis: str, text: str, names: list[str]) -> None:
    """A glob stands for what the port offers; a name is kept, for its cases to be skipped."""
    assert chosen(axis, text) == names


@pytest.mark.parametrize(
    ("axis", "text", "told"),
    [
        (
            "dtype",
            "float8",
            "unknown dtype 'float8': the nearest is float64; choose from float64, ",
        ),
        ("dtype", "policy:*", "dtype 'policy:*' fits none that the port offers: float32, bfl"),
        ("device", "tpu", "mine offers no device 'tpu' here (it says: cpu, cuda, cuda:0)"),
        ("device", "tpu*", "mine offers no device 'tpu*' here"),
        ("backend", "flash2", "unknown backend 'flash2'"),
        ("backend", "", "unknown backend ''"),
        ("mode", "shuffle", "unknown mode 'shuffle': choose from splice, trace, repeat, fresh"),
    ],
)
def test_what_fits_nothing(axis: str, text: str, told: str) -> None:
    """It is one line that names the option and the choices."""
    with pytest.raises(UsageError) as error:
        chosen(axis, text)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("runs", "names", "told"),
    [
        ([Execution()], ["scheduler/ddim", "training"], ""),
        ([Execution(backend="plain"), Execution()], ["scheduler/ddim", "training"], ""),
        ([Execution(backend="plain", mode="repeat")], ["unet"], ""),
        ([Execution(mode="repeat")], ["scheduler/ddim", "training"], ""),
        (
            [Execution(backend="plain", mode="splice")],
            ["unet", "scheduler/ddim"],
            "scheduler/ddim knows one way to be run: backend and mode do not apply",
        ),
        (
            [Execution(backend="plain")],
            ["training", "training/vae", "tokenizer"],
            "training*, tokenizer know one way to be run: backend does not apply",
        ),
    ],
)
def test_one_way_to_be_run(runs: list[Execution], names: list[str], told: str) -> None:
    """What is not run as it was asked to be is named; stability modes apply to everything."""
    cases = [next(case for case in all_cases() if case.component == name) for name in names]
    assert not_applying(cases, runs) == told


def test_scope_names_other_backends() -> None:
    """Backends are named where there are others than the port's own, which need no word."""
    case = find_case("unet/tiny/base")
    own, other = Execution(), Execution(backend="plain")
    assert scope_of([(case, own)]) == "unet; tiny; float32; cpu; trace; sd1 was not run"
    told = scope_of([(case, own), (case, other)])
    assert told == "unet; tiny; float32; cpu; sdpa, plain; trace; sd1 was not run"


REPLACING = Hello("fake", "1", ("unet",))
UNSPLICED = {
    "default": (None, REPLACING, "unet/tiny/base", "trace", True),
    "chosen": ("trace", REPLACING, "unet/tiny/base", "trace", False),
    "spliced": (None, REPLACING, "unet/tiny/base", "splice", False),
    "no-replace": (None, replace(REPLACING, replace=False), "unet/tiny/base", "trace", False),
    "no-such-mode": (None, REPLACING, "scheduler/ddim/-/base", "", False),
}


@pytest.mark.parametrize(
    ("mode", "hello", "case", "own", "told"), UNSPLICED.values(), ids=UNSPLICED
)
def test_splice_mode_that_lacks_the_oracle(mode, hello, case, own, told) -> None:
    """It is named where it would have been run, and nobody chose otherwise."""
    judged = [(find_case(case), Execution(mode=own))]
    text = "splice mode was not run: it needs the oracle"
    assert lacks_oracle(judged, mode, hello) == (text if told else "")
