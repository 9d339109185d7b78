"""Components `block/...`: one block of the UNet alone, the same as the UNet has there."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from conformance import spec
from conformance.blocks import block_names, block_of
from conformance.case import COMPONENTS, Case, find_case
from conformance.compare import Record
from conformance.execution import Execution
from conformance.golden import SPLICE, TRACE
from conformance.golden_files import load_golden
from conformance.port import resolve
from conformance.recipe import digest
from conformance.runner import Runner
from conformance.scenarios.blocks import BlockScenario
from conformance.segments import spliced
from conformance.spec import BLOCKS, Block
from conformance.variants import parse_variant, variant_names
from sd1_weights.configs import published_config

if TYPE_CHECKING:
    from pathlib import Path

TIME, RESNET = "block/time_embedding", "block/down_blocks.0.resnets.0"
TINY = parse_variant("tiny")
PROBES = {
    TIME: ("linear_1", "linear_2"),
    RESNET: ("norm1", "conv1", "time_emb_proj", "norm2.input", "norm2", "conv2"),
}
SHAPES = {TIME: [(2, 32)], RESNET: [(2, 32, 16, 16), (2, 128)]}

each_block = pytest.mark.parametrize("component", BLOCKS)


def case_of(component: str) -> Case:
    """Return a block's one case."""
    return find_case(f"{component}/tiny/base")


def test_blocks_come_before_the_network_that_is_made_of_them() -> None:
    """The earliest divergence of a port is then that of its smallest part."""
    assert set(BLOCKS) == {TIME, RESNET}
    assert all(COMPONENTS.index(name) < COMPONENTS.index("unet") for name in BLOCKS)


@each_block
def test_weights_are_the_unets(component: str) -> None:
    """A block has the very numbers that the UNet of its variant has there, by shorter names."""
    path, whole, own = BLOCKS[component].path, TINY.weights("unet"), TINY.weights(component)
    assert {f"{path}.{name}" for name in own} == {n for n in whole if n.startswith(f"{path}.")}
    assert all(np.array_equal(own[name], whole[f"{path}.{name}"]) for name in own)
    assert own.parameter_count() == {TIME: 20736, RESNET: 22752}[component]


@each_block
def test_variant(component: str) -> None:
    """A block is small only, and is told the sizes of the UNet that it is a part of."""
    assert variant_names(component) == ["tiny"]
    assert TINY.architecture(component) == TINY.architecture("unet")


@each_block
def test_inputs(component: str) -> None:
    """Inputs are the module's arguments in order, drawn from recipes of their own."""
    case = case_of(component)
    inputs, recipes = case.inputs(), case.scenario.recipes(TINY)
    assert [(n, a.shape) for n, a in inputs.items()] == [
        (str(i), shape) for i, shape in enumerate(SHAPES[component])
    ]
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.float32)}
    assert recipes["0"].name == f"inputs/{component}/base/0"
    assert len({digest(array) for array in inputs.values()}) == len(inputs)


@each_block
def test_golden(component: str) -> None:
    """A golden holds every probe inside of the block and its output whole, in both modes."""
    golden = load_golden(case_of(component))
    assert tuple(golden.probes) == PROBES[component]
    assert {n: a.shape for n, a in golden.outputs.items()} == {
        "out": (2, 128) if component == TIME else (2, 32, 16, 16)
    }
    arithmetics = {"float64", "float32", "bfloat16", "float16"}
    assert set(golden.noise) == set(golden.splice_noise) == arithmetics
    assert not golden.kills


@each_block
def test_items_of_splice_mode(component: str) -> None:
    """No named block is inside of these blocks: all is one item."""
    case = case_of(component)
    assert block_names(case) == ["outputs"]
    records = [
        Record(name, "probe", [], 0, 1, 0, "pass", approximate=False) for name in PROBES[component]
    ]
    assert {block_of(case, record) for record in records} == {"outputs"}
    places = [spec.place(component, name) for name in (*PROBES[component], "out")]
    assert places == sorted(set(places))


@pytest.mark.parametrize("size", ["tiny", "odd", "sd1"])
def test_probes_of_other_blocks(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What enters a block is no probe of it; a shortcut is one where the size has it."""
    component = "block/up_blocks.1.resnets.0"
    monkeypatch.setitem(spec.BLOCKS, component, Block("up_blocks.1.resnets.0", (), ""))
    monkeypatch.setitem(spec.CHECKPOINT_FOLDERS, component, "unet")
    assert spec.probe_names(component, size) == (*PROBES[RESNET], "conv_shortcut")
    whole = spec.probe_names("unet", size)
    assert "up_blocks.1.resnets.0.input" in whole
    assert "down_blocks.0.resnets.0.conv_shortcut" not in whole


@each_block
def test_export(component: str, tmp_path: Path) -> None:
    """A block is written as a diffusers folder: the UNet's config, and its own weights."""
    weights = TINY.weights(component)
    weights.export(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config == published_config("unet", TINY.architecture("unet"))
    arrays = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert list(arrays) == list(weights)
    assert all(np.array_equal(arrays[name], weights[name]) for name in weights)


def test_a_port_without_some_probes_has_the_noise_of_what_is_between() -> None:
    """Splice mode judges what follows a missing probe by the noise of the trace."""
    case = case_of(RESNET)
    golden = load_golden(case)
    row, trace, own = PROBES[RESNET].index("conv2"), golden.noise, golden.splice_noise
    assert trace["float32"][row] > own["float32"][row]
    for handed_out, wanted in ((PROBES[RESNET], own), (("conv2",), trace)):
        judged = spliced(case, golden, handed_out).noise["float32"]
        assert judged[row] == wanted["float32"][row]


class TestOracle:
    """What needs the oracle."""

    @pytest.fixture(autouse=True)
    def _oracle(self) -> None:
        pytest.importorskip("diffusers")

    @each_block
    def test_a_block_is_what_the_unet_has_there(self, component: str) -> None:
        """Given what enters it in the UNet, a block computes what it does in the UNet."""
        from conformance import oracle
        from conformance.recording import record

        path = BLOCKS[component].path
        unet, case = record.Reference("unet", TINY), find_case("unet/tiny/base")
        entering: list = []
        module = unet.build("float64").module.get_submodule(path)
        hook = module.register_forward_pre_hook(lambda _, args: entering.extend(args))
        inside = unet.truth(case).probes
        hook.remove()
        alone = oracle.reference(component, TINY, TINY.weights(component), entering[0].dtype)
        given = {str(i): tensor for i, tensor in enumerate(entering)}
        seen: dict = {}
        outputs = alone.traced(given, PROBES[component], seen.__setitem__)
        assert outputs["out"].equal(inside[path])
        assert list(seen) == list(PROBES[component])
        assert all(seen[name].equal(inside[f"{path}.{name}"]) for name in seen)

    @pytest.mark.parametrize("port", ["sd1_impl", "diffusers"])
    @pytest.mark.parametrize("mode", [TRACE, SPLICE])
    @each_block
    def test_ports_agree(self, port: str, mode: str, component: str) -> None:
        """Both ports of the suite offer the blocks, with every probe, in both modes."""
        result = Runner(resolve(port)).run(case_of(component), Execution(mode=mode))
        assert result.verdict == "pass", result.message
        assert [record.name for record in result.records] == [*PROBES[component], "out"]

    def test_one_row_more_is_one_block_more(self, monkeypatch) -> None:
        """Another block, with text and attention: oracle, ways to evaluate it, and port agree."""
        from conformance.adapters import diffusers_networks, sd1_impl_networks
        from conformance.recording import calibration, noise, record

        block = Block("mid_block.attentions.0", ("map", "text"), "nothing in particular")
        component = f"block/{block.path}"
        monkeypatch.setitem(spec.BLOCKS, component, block)
        monkeypatch.setitem(spec.CHECKPOINT_FOLDERS, component, "unet")
        for networks, build, call in (
            (diffusers_networks, diffusers_networks.build_block, diffusers_networks.call_block),
            (sd1_impl_networks, sd1_impl_networks._build_block, sd1_impl_networks._call_block),
        ):
            row = (partial(build, block.path), call)
            monkeypatch.setitem(networks.NETWORKS, component, row)
        scenario = BlockScenario("base", block.hunts, sizes=("tiny",), component=component)
        case = Case(component, TINY, scenario)
        assert [a.shape for a in case.inputs().values()] == [(2, 128, 16, 16), (2, 77, 64)]

        reference = record.Reference(component, TINY)
        truth = reference.truth(case)
        assert len(truth.probes) == len(spec.probe_names(component, "tiny")) > 20
        in_float32 = reference.build("float32")
        chosen = calibration.calibrations(in_float32, case, "float32")
        assert {"channels last", "plain attention", "batch split"} <= {e.name for e in chosen}
        runs = [noise.measure(in_float32, case, truth, evaluation) for evaluation in chosen]
        errors = [float(run.outputs["out"][0]) for run in runs]
        assert all(0 < error < 1e-6 for error in errors)
        assert len(set(errors)) > 3

        port = resolve("sd1_impl")
        loaded = port.load(component, TINY, case.weights(), "float64", "cpu")
        outputs, probes = loaded.run(case.inputs(), tuple(truth.probes))
        assert list(probes) == list(truth.probes)
        assert np.allclose(outputs["out"], truth.outputs["out"].numpy(), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("probe", [None, "norm2.input", "conv2"])
    def test_repro(self, probe: str | None, tmp_path: Path) -> None:
        """A block is written as a whole, or one layer of it; a script says which module it is."""
        from conformance.repro import write_repro

        write_repro(case_of(RESNET), probe, tmp_path)
        script = (tmp_path / "repro.py").read_text("utf-8")
        told = "the whole block (ResnetBlock2D)" if probe is None else f"{probe} ("
        assert f"{RESNET}/tiny/base, {told}" in script
        module = "Conv2d(32, 32" if probe == "conv2" else "ResnetBlock2D; norms: GroupNorm(8, 32"
        assert f"the reference: {module}" in script
        expected = load_file(tmp_path / "expected.safetensors")
        assert {n: a.shape for n, a in expected.items()} == {probe or "out": (2, 32, 16, 16)}
        names = {"0"} if probe == "conv2" else {"0", "1"}
        assert set(load_file(tmp_path / "inputs.safetensors")) == names

    def test_repro_of_a_sum_has_the_noise_of_all_that_leads_to_it(self, tmp_path: Path) -> None:
        """What is computed from the block's inputs is not judged by the last addition's noise."""
        from conformance.repro import write_repro

        golden = load_golden(case_of(RESNET))
        noise = golden.noise["float32"][golden.probes.index("norm2.input")]
        write_repro(case_of(RESNET), "norm2.input", tmp_path)
        assert f"noise, limit = {noise:.3e}, 4" in (tmp_path / "repro.py").read_text("utf-8")


@each_block
def test_a_wrong_output_fails(component: str, judge) -> None:
    """The numbers of a block count: those of the batch's other sample are wrong."""
    stored = load_golden(case_of(component)).outputs["out"].astype(np.float32)
    for out, verdict in ((stored, "pass"), (stored[::-1], "fail")):
        result = judge(lambda *_, out=out: ({"out": out}, {}), case_of(component))
        assert result.verdict == verdict, result.message
