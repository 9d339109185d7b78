"""Which items have evidence: the oracle's values at hand, asked for, or not worth asking for."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from conformance.blocks import of_block
from conformance.case import find_case
from conformance.compare import Record
from conformance.divergence import first_divergence
from conformance.errors import UnsupportedError
from conformance.evidence.choice import EACH
from conformance.evidence.collect import FEW, Answer, Evidence
from conformance.execution import Execution
from conformance.golden import SPLICE
from conformance.golden_files import load_golden
from conformance.judge import judge_outputs
from conformance.port import resolve
from conformance.result import Result
from conformance.runner import Runner
from conformance.traces import Values, find_traces

CASE = find_case("unet/tiny/base")
SHAPE = (2, 32, 16, 16)
TRUTH = np.random.default_rng(0).standard_normal(SHAPE)
GOT = TRUTH.astype(np.float32)
GOT[..., -1] *= 2


def failing(probe="conv_in", mode="trace", case=CASE, shape=SHAPE, **changes) -> Result:
    """Build a result that fails at a probe."""
    record = Record(probe, "probe", list(shape), 1.0, 1e-6, 1e6, "fail", approximate=True)
    result = Result(case, Execution(mode=mode), "fail", [record])
    result.first_divergence = first_divergence(result)
    return replace(result, **changes)


def answer(**changes) -> Answer:
    """Build what a port answered: the last column of one probe is wrong."""
    facts = {"golden": load_golden(CASE), "outputs": {}, "probes": {"conv_in": GOT}}
    return Answer(**(facts | changes))


class Oracle:
    """Gives the values of `conv_in`, and counts how often it is asked."""

    def __init__(self, values=None):
        self.values = values or Values({"conv_in": TRUTH}, {})
        self.asked = 0

    def __call__(self, *_):
        """Count."""
        self.asked += 1
        return self.values


def test_values_at_hand():
    """In splice mode the oracle's values are there: it is not asked again."""
    oracle = Oracle()
    found = Evidence(oracle).of(failing(mode=SPLICE), answer(values=oracle.values))
    assert found["tensor"]["case"] == CASE.id + "[float32-cpu-sdpa-splice]"
    assert found["tensor"]["probe"] == "conv_in"
    assert found["tensor"]["caption"] == "last column only: padding"
    assert oracle.asked == 0


def test_the_oracle_is_asked():
    """In trace mode it is asked for the failures that are shown; the others are counted."""
    oracle = Oracle()
    evidence = Evidence(oracle)
    found = [evidence.of(failing(), answer()) for _ in range(EACH + 2)]
    assert oracle.asked == EACH
    assert [sorted(one) for one in found] == [["tensor"]] * EACH + [["left_out"]] * 2


def test_the_oracle_is_asked_for_a_few_pictures():
    """Pictures of failing traces have the oracle's image while it is not asked too often."""
    case = find_case("pipeline/txt2img/tiny/ddpm")  # of which the golden keeps no pixels
    golden = load_golden(case)
    image = np.full(golden.output_shapes["image"], 0.5, np.float32)
    pixels = np.full(golden.output_shapes["image_uint8"], 128, np.uint8)
    answered = Answer(golden, {"image": image, "image_uint8": pixels}, {}, explained=True)
    oracle = Oracle(Values({}, {"image": image + 0.1}))
    evidence = Evidence(oracle)
    result = failing("latents#0", case=case)
    found = [evidence.of(replace(result), answered) for _ in range(FEW + 2)]
    assert oracle.asked == 1, "the image of a case is remembered"
    assert all("pictures" in one for one in found)
    evidence._images.clear()
    for _ in range(FEW + 2):
        evidence.of(result, answered)
        evidence._images.clear()
    assert oracle.asked == FEW


def test_not_asked_where_splice_mode_has_found_it():
    """A trace of a case whose fault splice mode has shown needs no tensor of its own."""
    oracle = Oracle()
    assert Evidence(oracle).of(failing(), answer(explained=True)) == {}
    assert oracle.asked == 0


def test_not_asked_at_full_size():
    """The 860M model is not evaluated for a picture."""
    oracle = Oracle()
    full = failing(case=find_case("unet/sd1/base"))
    assert Evidence(oracle).of(full, answer()) == {"left_out": 1}
    assert oracle.asked == 0


def test_not_more_than_are_shown():
    """Of a component some tensors are made, however many items fail."""
    oracle = Oracle()
    evidence = Evidence(oracle)
    shown = answer(values=oracle.values)
    found = [evidence.of(failing(mode=SPLICE), shown) for _ in range(EACH + 5)]
    assert sum("tensor" in one for one in found) == EACH
    assert sum(one.get("left_out", 0) for one in found) == 5


def test_outputs_that_the_golden_keeps(judge, fake):
    """Without an oracle, an output that the golden keeps whole is still shown."""

    def refuse(*_):
        raise UnsupportedError("no oracle here")

    golden = load_golden(CASE)
    wrong = {"sample": golden.outputs["sample"].astype(np.float32)}
    wrong["sample"][1] *= 1.5
    result = judge(fake(lambda *_: ({"sample": wrong["sample"].copy()}, {})), CASE)
    found = Evidence(refuse).of(result, Answer(golden, wrong, {}))
    assert found["tensor"]["caption"] == "batch item 1 only, times 1.5: a scale"
    assert Evidence(refuse).of(failing(), answer()) == {"left_out": 1}, "a probe has a sketch only"
    line = result.as_json()
    assert line["evidence"]["tensor"] == found["tensor"]
    assert line["probes"][0]["pcc"] == pytest.approx(found["tensor"]["pcc"])


def test_a_tensor_that_is_too_large(monkeypatch):
    """A tensor that could fill the memory is left out."""
    monkeypatch.setattr("conformance.evidence.collect.MOST_VALUES", GOT.size - 1)
    shown = answer(values=Oracle().values)
    assert Evidence(Oracle()).of(failing(mode=SPLICE), shown) == {"left_out": 1}


def test_nothing_raised_gets_out(capsys):
    """An oracle that breaks costs a picture, and says so."""

    def broken(*_):
        raise RuntimeError("out of\nmemory")

    assert Evidence(broken).of(failing(), answer()) == {"left_out": 1}
    assert "no picture of the error: out of memory\n" in capsys.readouterr().err


def test_what_has_no_evidence():
    """A wrong shape, a probe that was not handed out, token ids and what passes have none."""
    evidence = Evidence(Oracle())
    ids = find_case("tokenizer/-/plain")
    assert evidence.of(failing(shape=(2, 32, 16, 15)), answer()) == {}
    assert evidence.of(failing("conv_out"), answer()) == {}
    assert evidence.of(failing("input_ids", case=ids), answer(probes={"input_ids": GOT})) == {}
    assert evidence.of(failing(verdict="error"), answer()) == {}
    values = Values({"conv_in": TRUTH.astype(np.int64)}, {})
    assert evidence.of(failing(mode=SPLICE), answer(values=values)) == {}


def test_a_step_of_a_scheduler():
    """A wrong step is cut out of the output that holds all of them."""
    case = find_case("scheduler/ddim/-/base")
    golden = load_golden(case)
    shape = golden.shapes[golden.probes.index("samples#3")]
    truth = np.random.default_rng(0).standard_normal(shape)
    samples = np.zeros((50, *shape), np.float32)
    samples[3] = 1.001 * truth
    oracle = Oracle(Values({"samples#3": truth}, {}))
    result = failing("samples#3", case=case, shape=shape)
    found = Evidence(oracle).of(result, Answer(golden, {"samples": samples}, {}))
    assert found["tensor"]["caption"] == "everything alike, 0.1 % too large: a scale"


def test_a_table_is_measured_entry_by_entry():
    """Of a table each entry has its own noise: the one that is wrong stands out."""
    case = find_case("scheduler/ddim/-/base")
    golden = load_golden(case)
    table = golden.tables["alphas_cumprod"].copy()
    table[500] *= 1.0001
    result = failing("alphas_cumprod", case=case, shape=table.shape)
    found = Evidence(Oracle()).of(result, Answer(golden, {}, {"alphas_cumprod": table}))
    assert found["tensor"]["caption"] == "timestep 500 only"
    assert found["tensor"]["map"] is None


def test_a_port_wrong_on_purpose_has_none(fake):
    """A runner that is told not to ask for the golden's age keeps no evidence either."""
    wrong = np.zeros((2, 4, 16, 16), np.float32)
    runner = Runner(fake(lambda *_: ({"sample": wrong.copy()}, {})))
    runner.asks_for_age = False
    result = runner.run(CASE, Execution())
    assert result.verdict == "fail"
    assert "evidence" not in result.as_json()


PICTURES = "pipeline/txt2img/tiny/base"


def picture_answer(case, offset=0.0, values=None) -> tuple[Result, Answer]:
    """Build a pipeline's answer whose picture is a little too bright, judged."""
    golden = load_golden(case)
    pixels = golden.outputs["image_uint8"]
    image = np.moveaxis(pixels / 255.0, -1, 1)
    outputs = {"image": (image + offset).astype(np.float32), "image_uint8": pixels}
    verdict = "fail" if offset else "pass"
    records = [Record("image", "output", [1], 1.0, 1.0, 9.0, verdict, approximate=True)]
    records[0].shape = list(image.shape)
    result = Result(case, Execution(), verdict, records)
    if offset:
        result.first_divergence = first_divergence(result)
    return result, Answer(golden, outputs, {}, values)


def test_pictures_of_what_passes():
    """Of passing pipelines the base shows pictures, others do not, nor do spliced ones."""
    result, given = picture_answer(find_case(PICTURES))
    found = Evidence(Oracle()).of(result, given)
    assert [picture["index"] for picture in found["pictures"]] == list(
        range(len(given.outputs["image"]))
    )
    assert found["pictures"][0]["factor"] == 1.0, "there is no difference to amplify"
    assert base64.b64decode(found["pictures"][0]["oracle"]).startswith(b"\x89PNG")
    other, given = picture_answer(find_case("pipeline/txt2img/tiny/ddim"))
    assert Evidence(Oracle()).of(other, given) == {}
    spliced = replace(result, execution=Execution(mode=SPLICE))
    assert Evidence(Oracle()).of(spliced, given) == {}


def test_the_difference_is_that_of_the_images():
    """Where the oracle's image is known, from splice mode or asked for, the floats are compared."""
    case = find_case(PICTURES)
    result, given = picture_answer(case, offset=1 / 1024)
    truth = np.moveaxis(given.golden.outputs["image_uint8"] / 255.0, -1, 1)
    values = Values({}, {"image": truth})
    for evidence, how in (
        (Evidence(Oracle(values)), given),
        (Evidence(Oracle()), replace(given, values=values)),
    ):
        picture = evidence.of(result, how)["pictures"][0]
        assert picture["factor"] == pytest.approx(1024, rel=1e-3)
        assert picture["psnr"] in {"inf", None}


def test_a_block_shows_its_own_tensor():
    """Under pytest a block's item shows the first wrong tensor of that block."""
    pytest.importorskip("diffusers")

    class Wrong:
        """Two resnets have a channel that is too large."""

        def __init__(self):
            self.right = resolve("sd1_impl")

        def hello(self):
            """Offer what sd1_impl offers."""
            return self.right.hello()

        def load(self, *arguments):
            """Spoil two biases of a small block."""
            component = self.right.load(*arguments)
            for layer in (component.module.conv1, component.module.conv2):
                layer.weight.data[3] *= 1.01
                layer.bias.data[3] *= 1.01
            return component

    case = find_case("block/down_blocks.0.resnets.0/tiny/base")
    runner = Runner(Wrong(), find_traces())
    result = runner.run(case, Execution(mode=SPLICE))
    whole = result.as_json()["evidence"]["tensor"]
    assert whole["probe"] == "conv1"
    assert whole["caption"] == "channel 3 only, 1 % too large: a scale"
    assert whole["ratio"] == pytest.approx(result.first_divergence["ratio"], rel=1e-3)
    rest = of_block(result, "outputs").as_json()
    assert rest["evidence"]["tensor"]["probe"] == rest["first_divergence"]["probe"]


def test_pixels_are_compared_with_the_ports_own_image():
    """A wrong rounding shows where pixels are not the roundings of the port's image."""
    case = find_case(PICTURES)
    golden = load_golden(case)
    _, given = picture_answer(case)
    pixels = golden.outputs["image_uint8"].copy()
    pixels[..., 2] += pixels[..., 2] < 255
    outputs = given.outputs | {"image_uint8": pixels}
    records = [
        r
        for r in judge_outputs(golden, {**dummy(golden), **outputs}, "float32")
        if r.name == "image_uint8"
    ]
    result = Result(case, Execution(), "fail", records)
    result.first_divergence = first_divergence(result)
    found = Evidence(Oracle()).of(result, Answer(golden, outputs, {}))
    assert found["left_out"] == 1, "this oracle has no image, so there is no picture"
    tensor = found["tensor"]
    assert tensor["axes"] == ["batch", "row", "column", "channel"]
    assert tensor["caption"].startswith("channel 2 only")


def dummy(golden):
    """Return something of the right shape for outputs that a test does not look at."""
    return {name: np.zeros(shape, np.float32) for name, shape in golden.output_shapes.items()}
