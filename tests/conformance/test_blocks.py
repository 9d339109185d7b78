"""Splice mode names wrong layers one by one, and reports them block by block."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from conformance import spec
from conformance.blocks import block_names, block_of, of_block
from conformance.case import NETWORKS, find_case
from conformance.compare import Record
from conformance.execution import Execution
from conformance.levels import depth
from conformance.port import Hello
from conformance.report.words import case_name, rerun_command
from conformance.result import Result
from conformance.runner import Runner
from conformance.sampling import PIPELINES
from conformance.summary import earliest, summarise
from conformance.tolerance import LIMIT

SPLICE = Execution(mode="splice")


@pytest.fixture(scope="module")
def values():
    """Return what gives the oracle's values, each case's kept in memory."""
    pytest.importorskip("diffusers")
    from conformance.recording.live import LiveTraces

    live, kept = LiveTraces(), {}

    def traces(case, golden):
        if case.id not in kept:
            kept[case.id] = live(case, golden)
        return kept[case.id]

    return traces


@pytest.fixture
def splice(values):
    """Return a function that runs a case on sd1_impl, spoiled, its layers one by one."""
    from conformance.mutants.mutant import Mutant
    from conformance.mutants.port import MutantPort

    def call(case_id, *spoilers, dtype="float32"):
        def spoil(module):
            for spoiler in spoilers:
                spoiler(module)

        mutant = Mutant(id="wrong", component="unet", wrong="", cases=("base",), module=spoil)
        runner = Runner(MutantPort(mutant), values)
        runner.asks_for_age = False
        return runner.run(find_case(case_id), replace(SPLICE, dtype=dtype))

    return call


def wrong_ones(result):
    """Return the names of the failing records."""
    return [record.name for record in result.records if record.verdict == "fail"]


def eps(path, value):
    """Return a spoiler: one norm gets another eps."""

    def spoil(module):
        layer = module.get_submodule(path)
        assert layer.eps != value
        layer.eps = value

    return spoil


UNET_NORM = "down_blocks.2.resnets.1.norm2"
TEXT_NORM = "text_model.encoder.layers.1.layer_norm2"
LAYERS = {
    "unet": (UNET_NORM, 1e-6),
    "text_encoder": (TEXT_NORM, 1e-6),
    "vae_encoder": ("encoder.mid_block.attentions.0.group_norm", 1e-5),
    "vae_decoder": ("decoder.up_blocks.1.resnets.2.norm1", 1e-5),
}


@pytest.mark.parametrize(
    ("component", "dtype"),
    [
        *((name, "float32") for name in LAYERS),
        *((name, "float64") for name in LAYERS if name != "unet"),
    ],
)
def test_one_wrong_layer_is_the_only_one_named(splice, component, dtype):
    """A wrong eps of one norm fails at that norm, as a fault, and nowhere else."""
    path, value = LAYERS[component]
    result = splice(f"{component}/tiny-lowvar/base", eps(path, value), dtype=dtype)
    assert (result.verdict, wrong_ones(result)) == ("fail", [path])
    first = result.first_divergence
    assert (first["probe"], first["kind"], first["limit"]) == (path, "fault", LIMIT)
    assert first["case"] == f"{component}/tiny-lowvar/base[{dtype}-cpu-sdpa-splice]"
    assert first["ratio"] > 100
    assert result.message.startswith(f"first wrong at {path} (the last good one is ")
    assert depth([result.as_json()]) == "splice"
    failing = [b for b in block_names(result.case) if of_block(result, b).verdict == "fail"]
    assert failing == [path.rpartition(".")[0]]


@pytest.mark.parametrize("component", LAYERS)
def test_a_right_port_has_only_right_layers(splice, component):
    """Spliced, the model of this project is right at every probe and output."""
    result = splice(f"{component}/tiny-lowvar/base")
    assert (result.verdict, result.first_divergence) == ("pass", None)
    assert {record.kind for record in result.records} == {"probe", "output"}


def test_a_float32_island_is_no_fault(splice):
    """In float64 a timestep embedding in float32 is a warning, and no layer after it inherits."""

    def island(module):
        module.time_proj.register_forward_hook(lambda _, __, out: out.float().double())

    result = splice("unet/tiny/quiet", island, dtype="float64")
    assert [r.name for r in result.records if r.verdict != "pass"] == ["time_proj"]
    assert (result.verdict, result.records[0].verdict) == ("warn", "warn")
    assert result.records[0].note.startswith("float32 island")


def before(path, change):
    """Return a spoiler: what enters a layer is changed on the way there."""

    def spoil(module):
        layer = module.get_submodule(path)
        layer.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))

    return spoil


def after(path, change):
    """Return a spoiler: what entered a layer is changed in place once the layer has run."""

    def spoil(module):
        def hook(_, args, __):
            change(args[0])

        module.get_submodule(path).register_forward_hook(hook)

    return spoil


def patched(path, forward):
    """Return a spoiler: a layer gets another forward pass."""

    def spoil(module):
        layer = module.get_submodule(path)
        layer.forward = partial(forward, layer)

    return spoil


def transformer(layer, tokens, context):
    """Add the self-attention at 99 percent."""
    tokens = tokens + 0.99 * layer.attn1(layer.norm1(tokens))
    tokens = tokens + layer.attn2(layer.norm2(tokens), context)
    return tokens + layer.ff(layer.norm3(tokens))


def resnet(layer, hidden, temb, *, time=1.0, shortcut=1.0, in_place=False):
    """Run a residual block whose terms are weighted, or whose sum is made in its input."""
    from torch.nn.functional import silu

    residual = layer.conv1(silu(layer.norm1(hidden)))
    residual = residual + time * layer.time_emb_proj(silu(temb))[:, :, None, None]
    residual = layer.conv2(silu(layer.norm2(residual)))
    return hidden.add_(residual) if in_place else shortcut * hidden + residual


def latent_scale(module):
    """Another latent scale than 0.18215."""
    module.config = replace(module.config, scaling_factor=0.13025)


BLOCK = "up_blocks.1.attentions.0.transformer_blocks.0"
GLUE = {
    "unet": {
        # the time embedding is not added
        "down_blocks.2.resnets.1.norm2.input": patched(
            "down_blocks.2.resnets.1", partial(resnet, time=0)
        ),
        # a residual sum is scaled: its block's own probe follows it
        "down_blocks.3.resnets.0": patched(
            "down_blocks.3.resnets.0", partial(resnet, shortcut=0.99)
        ),
        # of 256 channels the skip's 128 come first
        "up_blocks.1.resnets.0.input": before("up_blocks.1.resnets.0", lambda x: x.roll(128, 1)),
        # attention core and residual sum of a transformer
        f"{BLOCK}.attn1.to_out.0.input": before(f"{BLOCK}.attn1.to_out.0", lambda x: x * 1.01),
        f"{BLOCK}.norm2.input": patched(BLOCK, transformer),
        # a skip that was right when it was made is spoiled before it is read
        "up_blocks.2.resnets.0.input": after(
            "down_blocks.1.downsamplers.0", lambda x: x.mul_(1.01)
        ),
        # a residual sum is made in the skip that it reads
        "up_blocks.2.resnets.1.input": patched(
            "down_blocks.1.resnets.1", partial(resnet, in_place=True)
        ),
    },
    "text_encoder": {
        "text_model.embeddings": patched(
            "text_model.embeddings", lambda e, ids: e.token_embedding(ids)
        ),
    },
    "vae_decoder": {"post_quant_conv.input": latent_scale},
    "vae_encoder": {"latents": latent_scale},
}


@pytest.mark.parametrize("component", GLUE)
def test_glue_is_named_where_it_is_read(splice, component):
    """What is wrong between layers shows at the next probe alone: faults do not hide each other."""
    result = splice(f"{component}/tiny/base", *GLUE[component].values())
    assert (result.verdict, wrong_ones(result)) == ("fail", list(GLUE[component]))
    first = result.first_divergence
    assert (first["probe"], first["kind"]) == (next(iter(GLUE[component])), "fault")


def record(name, ratio=1.0, kind="probe"):
    """Build the record of a ratio."""
    verdict = "fail" if not ratio <= LIMIT else "warn" if ratio >= LIMIT / 2 else "pass"
    return Record(name, kind, [1], ratio, 1.0, ratio, verdict, approximate=True)


def spliced(case_id, records, verdict="pass", message=""):
    """Build a result of splice mode."""
    return Result(find_case(case_id), SPLICE, verdict, records, message)


CASES = [f"{name}/tiny/base" for name in (*NETWORKS, *PIPELINES)]


@pytest.mark.parametrize("case_id", CASES)
def test_every_record_is_in_one_block(case_id):
    """The blocks share out every record and every output, in order, and none is left without."""
    case = find_case(case_id)
    network = case.is_network
    names = spec.probe_names(case.component, case.variant.size) if network else case.terms
    records = [record(name) for name in names] + [record("latents#0", kind="output")]
    result = spliced(case.id, records)
    parts = [of_block(result, block) for block in block_names(case)]
    assert sorted(map(id, records)) == sorted(id(r) for part in parts for r in part.records)
    assert all(part.records for part in parts)
    assert {part.verdict for part in parts} == {"pass"}
    items = Counter(part.item_id for part in parts)
    assert max(items.values()) == 1
    assert f"{case.id}[float32-cpu-sdpa-splice]::outputs" in items
    assert len(items) == (1 + len(spec.block_names(case.component) & set(names)) if network else 1)


INNERMOST = {
    "time_embedding.linear_1": "time_embedding",
    "down_blocks.0.resnets.1.norm2.input": "down_blocks.0.resnets.1",
    "down_blocks.0.downsamplers.0.conv": "down_blocks.0.downsamplers.0",
    "down_blocks.0": "down_blocks.0",
    "mid_block.resnets.0.conv1": "mid_block.resnets.0",
    "up_blocks.1.resnets.0.input": "up_blocks.1.resnets.0",
    f"{BLOCK}.attn1.to_out.0.input": "up_blocks.1.attentions.0",
    "conv_in": "conv_in",
    "conv_out": "outputs",
    "conv_in.0.weight": "conv_in",
}


@pytest.mark.parametrize(("name", "block"), INNERMOST.items(), ids=INNERMOST)
def test_the_innermost_block(name, block):
    """A layer, and what enters it, belong to the innermost named block around them."""
    assert block_of(find_case("unet/tiny/base"), record(name)) == block


def test_an_output_is_no_block():
    """An output belongs to the outputs, though it be named like a block."""
    case = find_case("unet/tiny/base")
    assert block_of(case, record("conv_in", kind="output")) == "outputs"


def test_each_block_has_its_own_verdict():
    """A block is judged by its own records, is named in its id, and tells its own divergence."""
    ratios = {"time_embedding.linear_1": 3, "time_embedding": 1, "conv_in": 1}
    ratios |= {"down_blocks.0.resnets.0.norm1": 1}
    ratios |= {"down_blocks.0.resnets.0.conv1": 48, "down_blocks.0.resnets.0": 9, "conv_out": 7}
    records = [record(name, ratio) for name, ratio in ratios.items()]
    records += [record("sample", float("nan"), "output")]
    result = spliced("unet/tiny/base", records, "fail", "first wrong at ...")
    result.seconds = 1.5
    parts = {block: of_block(result, block) for block in block_names(result.case)}
    verdicts = {block: part.verdict for block, part in parts.items() if part.verdict != "skip"}
    assert verdicts == {
        "time_embedding": "warn",
        "conv_in": "pass",
        "down_blocks.0.resnets.0": "fail",
        "outputs": "fail",
    }
    line = parts["down_blocks.0.resnets.0"].as_json()
    item = "unet/tiny/base[float32-cpu-sdpa-splice]::down_blocks.0.resnets.0"
    assert (line["case"], line["mode"], line["ratio"]) == (item, "splice", 48)
    assert [p["name"] for p in line["probes"]] == list(ratios)[3:6]
    first = line["first_divergence"]
    assert (first["case"], first["probe"]) == (item, "down_blocks.0.resnets.0.conv1")
    assert (first["after"], first["kind"]) == ("down_blocks.0.resnets.0.norm1", "fault")
    assert line["message"].startswith("first wrong at down_blocks.0.resnets.0.conv1 (the last good")
    assert parts["outputs"].first_divergence["probe"] == "conv_out"
    assert (parts["conv_in"].message, parts["conv_in"].first_divergence) == ("", None)
    assert parts["mid_block"].message == "the port does not hand out mid_block"
    assert (result.verdict, result.block, len(result.records)) == ("fail", "", 8)


@pytest.mark.parametrize("verdict", ["skip", "error"])
def test_what_was_not_judged_is_the_same_in_every_block(verdict):
    """A case that was skipped or broke is so in each of its blocks, for the same reason."""
    result = spliced("vae_decoder/tiny/base", [], verdict, "the reason")
    for block in block_names(result.case):
        part = of_block(result, block)
        assert (part.verdict, part.message, part.block) == (verdict, "the reason", block)
        assert part.as_json()["probes"] == []


def test_an_aged_golden_accuses_no_block():
    """A case that is an error although it was judged is no failure of any block."""
    records = [record("conv_in", 48), record("time_proj")]
    result = spliced("unet/tiny/base", records, "error", "the golden has aged")
    parts = [of_block(result, block) for block in block_names(result.case)]
    assert {(p.verdict, p.message) for p in parts} == {("error", "the golden has aged")}
    assert all(part.first_divergence is None for part in parts)


def failing(case_id, probe, mode="splice", block=""):
    """Build the line of a case that fails at one probe."""
    case = find_case(case_id)
    result = Result(case, Execution(mode=mode), "fail", [record(probe, 48)], block=block)
    facts = {"case": result.item_id, "probe": probe, "after": None, "ratio": 48, "limit": LIMIT}
    result.first_divergence = facts | {"kind": "fault", "hint": ""}
    return result.as_json()


EARLIEST = {
    "splice-before-trace": [
        ("unet/tiny/base", "conv_norm_out"),
        ("unet/tiny/base", "conv_in", "trace"),
    ],
    "earlier-probe": [
        ("unet/tiny/base", "conv_in"),
        ("unet/tiny/base", "time_proj", "trace"),
        ("unet/tiny/t0", "mid_block"),
    ],
    "earlier-component": [
        ("text_encoder/tiny/base", TEXT_NORM, "trace"),
        ("unet/tiny/base", "conv_in"),
    ],
    "trace-alone": [("unet/tiny/base", "conv_in", "trace"), ("unet/tiny/t0", "mid_block", "trace")],
    "pipeline-last": [
        ("unet/tiny/base", "conv_in", "trace"),
        ("pipeline/txt2img/tiny/base", "vae"),
    ],
}


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("found", EARLIEST.values(), ids=EARLIEST)
def test_splice_mode_is_believed_first(found, backwards):
    """Of one component the first fault of splice mode is named; components go before each other."""
    lines = [failing(*facts) for facts in found]
    assert earliest(lines[::-1] if backwards else lines) == lines[0]["first_divergence"]


def test_the_summary_names_the_block():
    """The first divergence of a run of blocks carries the block's id, and can be run again."""
    item = "down_blocks.0.resnets.0"
    lines = [failing("unet/tiny/base", f"{item}.norm1", block=item)]
    first = summarise(lines, {}, Hello("fake", "1", ("unet",)), "")["first_divergence"]
    assert first["case"] == f"unet/tiny/base[float32-cpu-sdpa-splice]::{item}"
    assert find_case(first["case"]).id == case_name(first["case"]) == "unet/tiny/base"


RERUN = {
    "unet/tiny/base[float32-cpu-sdpa-splice]::down_blocks.0.resnets.0": "",
    "unet/tiny/base[float64-cpu-sdpa-splice]::outputs": " --dtype float64",
    "unet/tiny/base[bfloat16-cuda:0-sdpa-splice]::conv_in": " --dtype bfloat16 --device cuda:0",
    "unet/sd1/base[float32-cpu-sdpa-splice]::up_blocks.1": " --variant sd1",
    "unet/tiny/base[float16-cuda-sdpa-trace]": " --dtype float16 --device cuda",
}


@pytest.mark.parametrize(("item", "options"), RERUN.items(), ids=RERUN)
def test_the_command_that_reruns_a_block(item, options):
    """A block is run again with its case: nothing of its name reaches the options."""
    name = item.partition("[")[0]
    mode = item.partition("]")[0].rpartition("-")[2]
    command = f'sd1-conformance run sd1_impl -k "{name}"{options} --mode {mode}'
    assert rerun_command("sd1_impl", item) == command
