"""False alarms: what is right, computed in another lawful way, is never called wrong.

`sd1_impl` and `diffusers` run behind a port that changes how they compute: threads, memory layout,
attention, batch, compiler. How near the worst came to the limit is printed after the last item of
each worker (`pytest -m full -rP tests/test_false_alarms.py`).
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch.nn.functional as F
from torch import Tensor, nn

from conformance.case import NETWORKS, Case, all_cases
from conformance.execution import Execution
from conformance.golden import SPLICE, TRACE
from conformance.port import Arrays, resolve
from conformance.recording.honest import CALIBRATION, IMAGES
from conformance.recording.noise import batch_size
from conformance.result import Result
from conformance.runner import Runner
from conformance.tolerance import LIMIT
from conformance.traces import find_traces

pytestmark = pytest.mark.full

CXX = shutil.which(os.environ.get("CXX", "g++"))
SDPA = "scaled_dot_product_attention"
say = partial(print, flush=True)  # `pytest -rP` shows it


def within(around: Callable[[nn.Module], Any]) -> Callable[..., Any]:
    """Return what runs a component in a context that is made for its module."""

    def run(component, *arguments):
        with around(component.module):
            return component.run(*arguments)

    return run


@contextmanager
def threads(count: int, _: nn.Module) -> Iterator[None]:
    """Compute in that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    assert torch.get_num_threads() == count
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Keep the channels of a pixel together, from the first convolution to the last."""
    (honest,) = (e for e in CALIBRATION if e.name == "channels last")
    seen = []

    def look(_module, _args, output):
        last = output.is_contiguous(memory_format=torch.channels_last)
        seen.append(last and not output.is_contiguous())

    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    handles = [part.register_forward_hook(look) for part in convolutions]
    try:
        with honest.around(module):
            yield
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == len(convolutions)
    assert all(seen), f"{seen.count(False)} of {len(seen)} convolutions have channels first"


@contextmanager
def attention(function: Callable[..., Tensor], module: nn.Module) -> Iterator[None]:
    """Compute every attention of a network by a function."""
    with mock.patch.object(F, SDPA, side_effect=function) as patched:
        yield
    parts = [m for m in module.modules() if hasattr(m, "to_q") or hasattr(m, "q_proj")]
    assert patched.call_count == len(parts) > 0, f"attention ran {patched.call_count} times"


def added_mask(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:  # noqa: FBT001
    """Return what is added to the scores of all heads: zeros, and minus infinity where masked."""
    added = query.new_zeros((*query.shape[:-1], key.shape[-2]))
    if causal:
        added = added.masked_fill(torch.ones_like(added, dtype=torch.bool).triu(1), -torch.inf)
    if mask is None:
        return added
    return added.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else added + mask


def plain(
    query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Attend by two matrix products and a softmax."""
    assert not dropout_p
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.mT * scale + added_mask(query, key, attn_mask, is_causal)
    return scores.softmax(-1) @ value


def sliced(
    query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Attend head by head, 5 queries at a time."""
    mask = added_mask(query, key, attn_mask, is_causal)
    heads = zip(*(part.split(1, dim=1) for part in (query, key, value, mask)), strict=True)
    return torch.cat([
        torch.cat([plain(some, k, v, rows, dropout_p, scale=scale)
                   for some, rows in zip(q.split(5, dim=2), m.split(5, dim=2), strict=True)], dim=2)
        for q, k, v, m in heads
    ], dim=1)  # fmt: skip


def rows(arrays: Arrays | None, chosen: Any) -> Arrays | None:
    """Take samples of a batch; what has no axis belongs to each."""
    return arrays and {name: a[chosen] if a.ndim else a for name, a in arrays.items()}


def batch_split(component: Any, inputs: Arrays, probes: Any, values: Arrays | None) -> Any:
    """Compute one sample after the other."""
    samples = [slice(i, i + 1) for i in range(batch_size(inputs))]
    parts = [component.run(rows(inputs, one), probes, rows(values, one)) for one in samples]
    return tuple(
        {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}
        for found in zip(*parts, strict=True)
    )


def permuted_batch(component: Any, inputs: Arrays, probes: Any, values: Arrays | None) -> Any:
    """Compute the samples in another order."""
    order = np.roll(np.arange(batch_size(inputs)), 1)
    outputs, seen = component.run(rows(inputs, order), probes, rows(values, order))
    back = np.argsort(order)
    return rows(outputs, back), rows(seen, back)


def compiled(component: Any, *arguments: Any) -> Any:
    """Compute what inductor's C++ makes of the network, as one graph."""
    from torch._inductor import config, metrics

    torch._dynamo.reset()
    metrics.reset()
    call = torch.compile(component.call, backend="inductor", fullgraph=True)
    quiet = mock.patch.object(logging.getLogger("torch.__trace"), "disabled", new=True)
    with quiet, config.patch(compile_threads=1):
        answer = dataclasses.replace(component, call=call).run(*arguments)
    assert metrics.generated_kernel_count > 0
    return answer


@dataclasses.dataclass(frozen=True)
class Variation:
    """Another way to compute a network.

    Attributes:
        name: Of the item.
        run: Runs a component: gets it and the three arguments of its `run`.
        networks: Those for which it is another way.
        batch: The least number of samples for which it is.
        probes: Whether it leaves the probes where they were.
    """

    name: str
    run: Callable[..., Any]
    networks: tuple[str, ...] = NETWORKS
    batch: int = 1
    probes: bool = True

    def applies(self, case: Case) -> bool:
        """Say whether a case can show it."""
        return case.component in self.networks and batch_size(case.inputs()) >= self.batch


VARIATIONS = (
    Variation("threads-1", within(partial(threads, 1))),
    Variation("threads-2", within(partial(threads, 2))),
    Variation("channels-last", within(channels_last), IMAGES),
    Variation("plain-attention", within(partial(attention, plain))),
    Variation("sliced-attention", within(partial(attention, sliced))),
    Variation("batch-split", batch_split, batch=2),
    Variation("permuted-batch", permuted_batch, batch=2),
)
COMPILE = Variation("compile", compiled, probes=False)


class Kept:
    """A built-in port; what it loaded last it does not load again."""

    def __init__(self, name):
        self.port = resolve(name)
        self.hello = self.port.hello
        self.last = (None, None)

    def load(self, component, variant, weights, *how):
        """Load a component, or return it."""
        key = (component, variant, how)
        if self.last[0] != key:
            self.last = (key, self.port.load(component, variant, weights, *how))
        return self.last[1]


class Varied:
    """A port that computes as another does, in another way."""

    def __init__(self, port, variation):
        self.port = port
        self.variation = variation

    def hello(self):
        """Offer what the port offers."""
        probes = self.variation.probes
        return dataclasses.replace(self.port.hello(), probes=probes, replace=probes)

    def load(self, *arguments):
        """Load the component of the port."""
        return VariedComponent(self.port.load(*arguments), self.variation)


class VariedComponent:
    """A component that runs in another way."""

    def __init__(self, component, variation):
        self.component = component
        self.variation = variation

    def run(self, inputs, probes=(), replace=None):
        """Evaluate once; see `conformance.port.Component`."""
        return self.variation.run(self.component, inputs, probes, replace)


PORTS = (("sd1_impl", "float32"), ("sd1_impl", "float64"), ("diffusers", "float32"))
VARIANTS = ("tiny", "tiny-lowvar", "tiny-dense", "tiny-sharp", "tiny-offset", "odd")
MORE = ("text_encoder/tiny/batch3", "unet/tiny/tsamples")  # its base is one text; t by sample
COMPILED = (
    *(("sd1_impl", network) for network in NETWORKS),
    *(("diffusers", network) for network in NETWORKS if network != "unet"),  # it takes minutes
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One item: a port computes a case in another way."""

    port: str
    variation: Variation
    case: Case
    execution: Execution

    def __str__(self):
        return f"{self.port}-{self.variation.name}-{self.execution.item_id(self.case)}"

    def __call__(self) -> Result:
        """Run and judge it."""
        runner = Runner(Varied(kept(self.port), self.variation), traces())
        return runner.run(self.case, self.execution)


kept = cache(Kept)
traces = cache(find_traces)


def all_runs() -> list[Run]:
    """Return the table: what needs the same network comes together."""
    cases = {case.id: case for case in all_cases()}
    names = [*(f"{network}/{variant}/base" for network in NETWORKS for variant in VARIANTS), *MORE]
    found = [
        Run(port, variation, cases[name], Execution(dtype, mode=mode))
        for name in names
        for port, dtype in PORTS
        for variation in VARIATIONS
        if variation.applies(cases[name])
        for mode in (TRACE, SPLICE)
    ]
    bases = {network: cases[f"{network}/tiny/base"] for network in NETWORKS}
    return found + [Run(port, COMPILE, bases[name], Execution()) for port, name in COMPILED]


RUNS = all_runs()


def parameter(run: Run) -> Any:
    """Return a run as a parameter: those of one network and variant stay on one worker."""
    own = run.variation.name if run.variation is COMPILE else run.case.variant.name
    marks = [pytest.mark.xdist_group(f"{run.case.component}/{own}")]
    if run.variation is COMPILE:
        marks.append(pytest.mark.skipif(CXX is None, reason="inductor needs a C++ compiler: g++"))
    return pytest.param(run, id=str(run), marks=marks)


@pytest.fixture(scope="module")
def ratios(tmp_path_factory, worker_id):
    """Take the worst ratio of each run, from all workers; print the worst of them at the end."""
    folder = tmp_path_factory.getbasetemp()
    path = (folder if worker_id == "master" else folder.parent) / "ratios.jsonl"
    with path.open("a", buffering=1) as file:
        yield lambda *facts: file.write(f"{json.dumps(facts)}\n")
    found = sorted((json.loads(line) for line in path.open()), reverse=True)
    worst = {}
    for ratio, variation, *where in found:
        worst.setdefault(variation, (ratio, *where))
    say(f"{len(found)} runs, limit {LIMIT:g}; worst of each variation:")
    for variation, (ratio, run, probe) in worst.items():
        say(f"  {ratio:.2f} {variation}: {probe} of {run}")
    say("the ten largest:")
    for ratio, _, run, probe in found[:10]:
        say(f"  {ratio:.2f} {probe} of {run}")


@pytest.mark.parametrize("run", [parameter(run) for run in RUNS])
def test_no_false_alarm(run, ratios, record_property):
    """An honest variation of a right port passes, or is warned of, and is never skipped."""
    result = run()
    assert result.verdict in {"pass", "warn"}, f"{result.verdict}: {result.message}"
    worst = result.worst
    record_property("ratio", worst.ratio)
    record_property("probe", worst.name)
    ratios(worst.ratio, run.variation.name, str(run), worst.name)
    assert worst.ratio <= LIMIT
    assert run.variation.probes == any(record.kind == "probe" for record in result.records)


def test_there_are_200_runs():
    """Every port, arithmetic, network, variant and mode is among at least 200 runs."""
    assert len({str(run) for run in RUNS}) == len(RUNS) >= 200
    varied = {(r.port, r.execution.dtype, r.variation.name) for r in RUNS}
    assert varied >= {(*port, variation.name) for port in PORTS for variation in VARIATIONS}
    judged = {(r.case.component, r.case.variant.name, r.execution.mode) for r in RUNS}
    assert len(judged) == len(NETWORKS) * len(VARIANTS) * 2


def half_softmax(query, key, value, **_):
    """Attend with probabilities rounded to float16."""
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    return weights.half().to(value.dtype) @ value


def never_back(component, inputs, probes, values):
    """Forget to put the samples back in order."""
    order = np.arange(batch_size(inputs))[::-1]
    return component.run(rows(inputs, order), probes, rows(values, order))


def unlike_values(component, inputs, probes, values):
    """Forget to put the values for `replace` in the samples' order."""
    order = np.arange(batch_size(inputs))[::-1]
    outputs, seen = component.run(rows(inputs, order), probes, values)
    return rows(outputs, order), rows(seen, order)


@pytest.mark.parametrize(
    ("dishonest", "mode"),
    [
        (within(partial(attention, half_softmax)), TRACE),
        (within(partial(attention, half_softmax)), SPLICE),
        (never_back, TRACE),
        (never_back, SPLICE),
        (unlike_values, SPLICE),
    ],
    ids=["half-softmax", "half-softmax-spliced", "not-back", "not-back-spliced", "other-values"],
)
@pytest.mark.xdist_group("vae_decoder/tiny")
def test_a_dishonest_variation_is_noticed(dishonest, mode):
    """The same harness calls what is not lawful wrong."""
    run = next(run for run in RUNS if run.case.component == "vae_decoder")
    wrong = dataclasses.replace(
        run, variation=Variation("wrong", dishonest), execution=Execution(mode=mode)
    )
    assert wrong().verdict == "fail"
