"""Ports that lack probes, or do not overwrite them, are not blamed in splice mode."""

from dataclasses import replace

import pytest

from conformance.case import find_case
from conformance.execution import Execution
from conformance.golden import SPLICE
from conformance.golden_files import load_golden
from conformance.port import resolve
from conformance.runner import Runner
from conformance.segments import spliced
from conformance.spec import block_names

pytest.importorskip("torch")
pytest.importorskip("diffusers")

SPLICED = Execution(mode=SPLICE)
CASES = (
    "text_encoder/tiny/base",
    "unet/tiny/base",
    "vae_decoder/tiny/base",
    "vae_encoder/tiny/base",
)


class Partial:
    """sd1_impl with some of its probes."""

    def __init__(self, keeps, *, replaces=True, spoil=lambda _: None):
        self.port, self.keeps = resolve("sd1_impl"), keeps
        self.replaces, self.spoil = replaces, spoil

    def hello(self):
        """Promise everything."""
        return replace(self.port.hello(), name="partial")

    def load(self, component, *rest):
        """Load sd1_impl's component."""
        self.loaded = self.port.load(component, *rest)
        self.spoil(self.loaded.module)
        return self

    def run(self, inputs, probes=(), replace=None):
        """Know some probes alone."""
        values = {n: v for n, v in (replace or {}).items() if self.keeps(n)}
        kept = [name for name in probes if self.keeps(name)]
        return self.loaded.run(inputs, kept, values if self.replaces else None)


BLOCKS = frozenset().union(*(block_names(find_case(c).component) for c in CASES))
SOME = {
    "all": lambda _: True,
    "blocks": lambda name: name in BLOCKS,
    "no-block": lambda name: name not in BLOCKS,
    "no-norm": lambda name: "norm" not in name,
    "no-projection": lambda name: not name.endswith(("to_q", "to_k", "to_v", "_proj")),
    "no-input": lambda name: not name.endswith(".input"),
    "no-convolution": lambda name: "conv" not in name,
    "every-other": lambda name: len(name) % 2 == 0,
}


@pytest.mark.parametrize("case_id", CASES)
@pytest.mark.parametrize("keeps", SOME.values(), ids=SOME)
def test_a_right_port_with_some_probes_passes(keeps, case_id):
    """What is between two of its probes is longer, and is judged as that."""
    result = Runner(Partial(keeps)).run(find_case(case_id), SPLICED)
    assert result.verdict in {"pass", "warn"}, result.message
    assert result.worst.ratio <= 2


def test_a_wrong_layer_is_named_by_the_probe_after_it():
    """With named blocks alone the fault is that of the block."""

    def eps(module):
        module.get_submodule("up_blocks.1.resnets.0.norm2").eps = 1e-6

    port = Partial(SOME["blocks"], spoil=eps)
    result = Runner(port).run(find_case("unet/tiny-lowvar/base"), SPLICED)
    wrong = [record.name for record in result.records if record.verdict == "fail"]
    assert wrong == ["up_blocks.1.resnets.0"]


@pytest.mark.parametrize("case_id", CASES)
def test_a_port_that_ignores_values_is_told(case_id):
    """It hands out probes but overwrites none: a skip that names the flag, not a fault."""
    result = Runner(Partial(SOME["all"], replaces=False)).run(find_case(case_id), SPLICED)
    assert result.verdict == "skip"
    assert "replace: false" in result.message


def test_a_port_without_probes_is_told():
    """It promised some."""
    result = Runner(Partial(lambda _: False)).run(find_case(CASES[0]), SPLICED)
    assert result.verdict == "skip"
    assert "probes: false" in result.message


def test_nothing_is_loosened_for_a_port_with_every_probe():
    """Noise is that of splice mode, unless a probe before is missing."""
    case = find_case("unet/tiny/base")
    recorded = load_golden(case)
    whole = spliced(case, recorded, recorded.probes)
    assert whole.noise is recorded.splice_noise
    without = [name for name in recorded.probes if name != "down_blocks.1.resnets.0.conv1"]
    partial = spliced(case, recorded, without)
    changed = [
        name
        for name, a, b in zip(
            recorded.probes, partial.noise["float32"], whole.noise["float32"], strict=True
        )
        if a != b
    ]
    assert changed
    assert all(name.startswith("down_blocks.1.resnets.0") for name in changed)
