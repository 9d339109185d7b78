"""The runs that each stability mode makes of a case: the first, and those compared with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance import determinism
from conformance.case import Case
from conformance.contract import call, check_contract
from conformance.errors import UnsupportedError
from conformance.execution import STABILITY, Execution
from conformance.golden import Golden
from conformance.layout import require_shapes
from conformance.offer import supplied_embedding
from conformance.port import Arrays
from conformance.scenarios import scenarios
from conformance.stability_batch import (
    among_others,
    batch_of,
    chosen,
    stacked,
    taken,
    with_other_texts,
)
from conformance.stability_processes import THREADS, in_own_process, process_of
from conformance.stability_rows import Rows, rows_of

if TYPE_CHECKING:
    from conformance.runner import Runner

OTHER_SEED = 2
"""Of the inputs of another call, where a component has no other case."""


@dataclass(frozen=True)
class Run:
    """One run, to be compared with the first.

    Attributes:
        changed: What is found if it differs, as the hint says it.
        rows: What it showed.
        before: What the first run showed of the same; None for all of it.
        narrower: Runs that tell apart what this one changed at once, made where it differs.
    """

    changed: str
    rows: Rows
    before: Rows | None = None
    narrower: Sequence[Callable[[], Run]] = ()


@dataclass(frozen=True)
class Subject:
    """A case on a port, to be run several times.

    Attributes:
        runner: Holds the port.
        case: The case.
        execution: How it is run.
        golden: Of the case.
        inputs: Of the case.
    """

    runner: Runner
    case: Case
    execution: Execution
    golden: Golden
    inputs: Arrays

    def show(self, inputs: Arrays | None = None, runner: Runner | None = None) -> Rows:
        """Run once and return what is shown.

        Args:
            inputs: Others than the case's.
            runner: Another process of the port.
        """
        inputs, runner = inputs or self.inputs, runner or self.runner
        require_shapes(runner.hello, self.case.component, inputs)
        component = runner.load(self.case, self.execution)
        asked = self.golden.asked if runner.shows_probes(self.execution) else ()
        own = (runner.hello, self.case, self.golden, self.execution, inputs)
        outputs, probes = call(component, inputs, asked, supplied_embedding(*own))
        check_contract(self.golden, outputs, probes, self.execution.dtype)
        return rows_of(self.case, self.golden, outputs, probes)

    def runs(self) -> Runs:
        """Make the runs of the mode one by one: the first, and those that are compared with it."""
        return _RUNS[self.execution.mode](self)

    def show_anew(self) -> Rows:
        """Load once more, run once, and return what is shown."""
        self.runner.release()
        return self.show()

    def call_another(self) -> None:
        """Run another case of the same component, which differs in as many inputs as possible."""
        component = self.runner.load(self.case, self.execution)
        for inputs in _other_inputs(self.case):
            try:
                require_shapes(self.runner.hello, self.case.component, inputs)
                call(component, inputs, (), None)
            except UnsupportedError:
                continue
            return


Runs = Generator[Run, None, None]


def _other_inputs(case: Case) -> Iterator[Arrays]:
    """Yield inputs of other cases, those first that have the same shapes and no value in common."""
    own = case.inputs()
    known = [s for s in scenarios(case.component, case.variant) if not s.refused]
    others = [replace(case, scenario=s) for s in known if s.name != case.scenario.name]
    later = []
    for other in [*others, replace(case, seed=OTHER_SEED)]:
        inputs = other.inputs()
        if _are_others(own, inputs):
            yield with_other_texts(inputs)
        else:
            later.append(other)
    yield from (with_other_texts(other.inputs()) for other in later)


def _are_others(own: Arrays, inputs: Arrays) -> bool:
    """Say whether inputs have the same shapes, and neither a tensor nor a timestep in common."""
    if {n: a.shape for n, a in own.items()} != {n: a.shape for n, a in inputs.items()}:
        return False
    told = [name for name, a in own.items() if a.dtype.kind != "U" and (a.ndim or a.dtype == int)]
    return not any(np.array_equal(own[name], inputs[name]) for name in told)


def _repeat(subject: Subject) -> Runs:
    yield Run("", subject.show_anew())
    yield Run("the second call differs from the first", subject.show())
    subject.runner.release()
    subject.call_another()

    def loaded() -> Run:
        return Run("what is loaded once more differs from the first", subject.show_anew())

    yield Run("depends on what was called before", subject.show(), narrower=[loaded])


_LOCALES = ("C", "C.UTF-8")


def _variables(hash_seed: int, locale: int) -> dict[str, str]:
    return {determinism.HASH_SEED: str(hash_seed), "LC_ALL": _LOCALES[locale]}


def _fresh(subject: Subject) -> Runs:
    def shown(hash_seed: int, locale: int, number: int = 0) -> Rows:
        process = process_of(subject.runner, _variables(hash_seed, locale), number)
        return subject.show(runner=process)

    yield Run("", shown(1, 0))
    apart: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("two processes of the same variables differ", (1, 0, 1)),
        (f"depends on {determinism.HASH_SEED}: on the order of a set, or on a hash", (2, 0)),
        ("depends on the locale (LC_ALL)", (1, 1)),
    )

    def run(changed: str, how: tuple[int, ...]) -> Run:
        return Run(changed, shown(*how))

    yield Run("two processes differ", shown(2, 1), narrower=[partial(run, *own) for own in apart])


def _state(subject: Subject) -> Runs:
    if in_own_process(subject.runner):
        message = (
            f"{subject.runner.hello.name} runs in a process of its own, whose default dtype and "
            "grad mode nobody else can set"
        )
        raise UnsupportedError(message)
    if "torch" not in sys.modules:
        message = f"{subject.runner.hello.name} does not use torch: it has no such state"
        raise UnsupportedError(message)

    def shown(default_dtype: str, *, gradients: bool) -> Rows:
        with determinism.state(default_dtype, gradients=gradients):
            return subject.show_anew()

    def on_gradients() -> Run:
        return Run("depends on the grad mode", shown("float32", gradients=True))

    def on_dtype(name: str) -> Run:
        changed = f"depends on the default dtype ({name} for float32)"
        return Run(changed, shown(name, gradients=False))

    try:
        yield Run("", shown("float32", gradients=False))
        for name, gradients in (("float64", True), ("float16", False)):
            rows = shown(name, gradients=gradients)
            own = (on_gradients, partial(on_dtype, name))
            yield Run(f"depends on the state of torch ({name})", rows, narrower=own)
    finally:
        subject.runner.release()  # what was built in such a state is for nobody else


def _threads(subject: Subject) -> Runs:
    if not in_own_process(subject.runner) and _knows_torch(subject):
        rows = []
        for count in (1, 2):
            with determinism.thread_count(count):
                rows.append(subject.show())
    else:
        variables = [dict.fromkeys(THREADS, str(count)) for count in (1, 2)]
        rows = [subject.show(runner=process_of(subject.runner, own)) for own in variables]
    yield Run("", rows[0])
    yield Run("two threads against one", rows[1])


def _knows_torch(subject: Subject) -> bool:
    """Say whether a port that lives here computes with torch, whose threads can be counted."""
    torch = sys.modules.get("torch")
    component: Any = subject.runner.load(subject.case, subject.execution)
    while component is not None and torch is not None:
        module = sys.modules.get(type(component).__module__)
        if getattr(module, "torch", None) is torch:
            return True
        component = getattr(component, "component", None)
    return False


def _batch(subject: Subject) -> Runs:
    inputs = subject.inputs
    batch = batch_of(subject.case, inputs)
    whole = subject.show()
    yield Run("", whole)
    alone = [subject.show(chosen(inputs, [i])) for i in range(batch)]

    def sample(rows: Rows, number: int, count: int = batch) -> Rows:
        return taken(rows, alone[0], count, [number])

    def company(number: int) -> Run:
        """Replace the others: of an honest port this changes no bit, the sizes being the same."""
        rows = subject.show(among_others(inputs, batch, batch, kept=number))
        changed = f"sample {number} changes where the other samples are replaced"
        return Run(changed, sample(rows, number), sample(whole, number))

    def each(rows: Rows, changed: str) -> list[Callable[[], Run]]:
        """Tell which sample it is that differs in other rows of the whole batch."""

        def one(number: int) -> Run:
            return Run(changed.format(number), sample(rows, number), sample(whole, number))

        return [partial(one, number) for number in range(batch)]

    yield company(0)
    apart = stacked(alone, whole)
    narrower: list[Callable[[], Run]] = [partial(company, number) for number in range(1, batch)]
    narrower += each(apart, "sample {} alone differs from the same in its batch")
    yield Run("a sample alone differs from the same in its batch", apart, narrower=narrower)
    moved = [*range(1, batch), 0]
    rows = subject.show(chosen(inputs, moved))
    back = taken(rows, alone[0], batch, [moved.index(i) for i in range(batch)])
    placed = each(back, "sample {} changes with its place in the batch")
    yield Run("a sample changes with its place in the batch", back, narrower=placed)
    count = batch + 1
    try:
        rows = subject.show(among_others(inputs, batch, count))
    except UnsupportedError:  # that many are too many for it
        return
    changed = "sample 0 changes with the other samples and one more"
    yield Run(changed, sample(rows, 0, count), sample(whole, 0))


_RUNS: dict[str, Callable[[Subject], Runs]] = dict(
    zip(STABILITY, (_repeat, _fresh, _state, _threads, _batch), strict=True)
)
