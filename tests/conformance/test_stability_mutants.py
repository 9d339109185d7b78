"""Mutants of the stability modes: a trace takes them for right, their own mode does not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from conformance.execution import STABILITY, Execution
from conformance.mutants import runtime
from conformance.mutants.catalogue import CATALOGUE, find_mutants
from conformance.mutants.gate import cases_of, executions_of, quiet_runner
from conformance.mutants.named import port_spec
from conformance.mutants.unstable import expected_probe
from conformance.port import resolve
from conformance.stability_processes import end_processes
from conformance.tolerance import LIMIT

UNSTABLE = [mutant for mutant in CATALOGUE if mutant.unstable and not mutant.heavy]
QUICK = ("rt-tokenizer-cache", "rt-scheduler-history", "rt-one-sample-kernel")
CAUSES = {
    "rt-nondeterministic-kernel": "the second call differs from the first",
    "rt-first-prompt-kept": "depends on what was called before",
    "rt-scheduler-history": "the second call differs from the first",
    "rt-tokenizer-cache": "the second call differs from the first",
    "rt-hash-order": "depends on PYTHONHASHSEED",
    "rt-default-dtype": "depends on the default dtype (float64 for float32)",
    "rt-dropout-with-gradients": "depends on the grad mode",
    "rt-thread-tail": "two threads against one",
    "rt-one-sample-kernel": "sample 0 alone differs from the same in its batch",
    "rt-batch-beyond-a-pair": "sample 0 changes with the other samples",
}


def marked(name: str) -> object:
    """Return a mutant as a parameter, the slower ones under the marker of all mutants."""
    marks = [] if name in QUICK else [pytest.mark.mutants]
    return pytest.param(name, id=name, marks=marks)


def test_every_mode_has_one() -> None:
    """At least one wrong port a mode, each with one mode and one cause."""
    assert {mutant.id for mutant in UNSTABLE} == set(CAUSES)
    assert {mode for mutant in UNSTABLE for mode in mutant.modes} == set(STABILITY)
    assert all(len(mutant.modes) == 1 for mutant in UNSTABLE)


@pytest.mark.parametrize("name", [marked(name) for name in CAUSES])
def test_it_dies_in_its_mode_alone(name: str) -> None:
    """Its trace passes; its mode fails by twice the limit, says why, and names the place."""
    (mutant,) = find_mutants([name])
    (case,) = cases_of(mutant)
    (execution,) = executions_of(mutant, case)
    assert (execution.mode,) == mutant.modes
    trace = Execution(dtype=mutant.dtype).for_case(case)
    runtime._past.clear()
    assert quiet_runner(mutant).run(case, trace).verdict in {"pass", "warn"}
    runtime._past.clear()
    runner = quiet_runner(mutant)
    result = runner.run(case, execution)
    end_processes()
    first = result.first_divergence
    assert first is not None, result.message
    assert first["ratio"] >= 2 * LIMIT
    assert first["hint"].startswith(CAUSES[name])
    assert first["probe"] == expected_probe(mutant, case, execution.mode)
    end_processes()


def test_a_mutant_is_a_port_argument() -> None:
    """Any mutant can be run by its id, in another process too; what is none is refused."""
    port = resolve(port_spec("rt-tokenizer-cache"))
    assert port.hello().name == "sd1_impl with rt-tokenizer-cache"
    with pytest.raises(Exception, match="has no 'no-mutant'"):
        resolve(port_spec("no-mutant"))
