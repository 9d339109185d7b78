"""Training: its names, its goldens, and ports that offer it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from conformance import spec
from conformance.case import find_case
from conformance.execution import Execution
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.port import resolve
from conformance.recording.lint import vacuities
from conformance.runner import Runner
from conformance.sampling import read_config
from conformance.training import TRAININGS, scale_name

TRACE = Execution()
QUICK = "training/vae/tiny/base"
PAGE = Path(__file__).parents[2] / "docs/training.md"


def test_zero_gradients_are_judged_beside_their_query():
    """Biases of keys, and nothing else: matrices of keys, and keys of the UNet, have gradients."""
    clip = "grad.text_model.encoder.layers.1.self_attn"
    assert scale_name(f"{clip}.k_proj.bias") == f"{clip}.q_proj.bias"
    vae = "grad.encoder.mid_block.attentions.0"
    assert scale_name(f"{vae}.to_k.bias") == f"{vae}.to_q.bias"
    for name in (f"{clip}.k_proj.weight", f"{clip}.v_proj.bias", "model_output", "to_k.bias"):
        assert scale_name(name) == name


@pytest.mark.parametrize("component", TRAININGS)
def test_order_is_that_of_execution(component):
    """Terms, loss, then gradients from the last layer to the first."""
    golden = load_golden(find_case(f"{component}/tiny/base"))
    names = sorted([*golden.probes, "loss"], key=lambda name: spec.place(component, name))
    terms = names.index("loss")
    assert names[:terms] == golden.asked
    last, first = {
        "training": ("conv_out.bias", "time_embedding.linear_1.weight"),
        "training/text_encoder": (
            "text_model.final_layer_norm.bias",
            "text_model.embeddings.position_embedding.weight",
        ),
        "training/vae": ("decoder.conv_out.bias", "encoder.conv_in.weight"),
    }[component]
    assert names[terms + 1] == f"grad.{last}"
    assert names[-1] == f"grad.{first}"
    layers = ("decoder.conv_in.bias", "post_quant_conv.bias", "quant_conv.bias")
    if component == "training/vae":
        found = [names.index(f"grad.{layer}") for layer in layers]
        assert found == sorted(found)


def test_a_golden_keeps_no_name_of_a_gradient():
    """They follow from the case; what is read back is what was written."""
    golden = load_golden(find_case(QUICK))
    data = golden.to_bytes()
    again = Golden.from_bytes(data, "here")
    assert b"grad." not in data
    assert (again.probes, again.shapes) == (golden.probes, golden.shapes)
    assert again.output_shapes == golden.output_shapes
    assert list(again.output_shapes)[:2] == ["loss", "grad.encoder.conv_in.weight"]
    assert again.outputs["loss"].shape == ()
    names = spec.checkpoint_shapes("vae", "tiny")
    assert {f"grad.{name}": shape for name, shape in names.items()} == again.sketched


def test_a_loss_that_is_not_computed_would_not_pass():
    """Zero and the opposite sign are tried; a noise as large as the loss lets zero pass."""
    golden = load_golden(find_case(QUICK))
    assert list(vacuities(golden)) == []
    blunt = {a: {"loss": np.ones(3)} for a in golden.output_noise}
    kinds = " ".join(vacuities(replace(golden, output_noise=blunt)))
    assert "zero output loss" in kinds
    assert "sign-flipped output loss" in kinds


def test_inputs_are_data():
    """Timesteps differ within the batch; images are within -1..1; the KL's weight is given."""
    inputs = find_case("training/tiny/base").inputs()
    assert len(set(inputs["timesteps"].tolist())) == len(inputs["latents"]) == 2
    assert read_config(inputs["config"])["prediction_type"] == "epsilon"
    inputs = find_case("training/text_encoder/tiny/base").inputs()
    assert "encoder_hidden_states" not in inputs
    assert len(set(inputs["input_ids"][0].tolist())) == 2  # one token many times
    inputs = find_case(QUICK).inputs()
    assert np.abs(inputs["image"]).max() <= 1
    assert read_config(inputs["config"]) == {"kl_weight": 2.0**-8}


torch = pytest.importorskip("torch")


@cache
def right():
    """Return what sd1_impl answers in one case."""
    case = find_case(QUICK)
    component = resolve("sd1_impl").load(
        case.component, case.variant, case.weights(), "float32", "cpu"
    )
    return component.run(case.inputs(), load_golden(case).asked)


class Wrong:
    """sd1_impl with outputs that are changed on the way; its component is itself."""

    def __init__(self, change):
        self.change = change

    def hello(self):
        """Say what sd1_impl says."""
        return resolve("sd1_impl").hello()

    def load(self, *_):
        """Load nothing."""
        return self

    def run(self, _, probes=(), __=None):
        """Answer, changed."""
        outputs, seen = right()
        outputs = {name: array.copy() for name, array in outputs.items()}
        self.change(outputs)
        return outputs, {name: seen[name] for name in probes}


def judged(change):
    """Return what a port with changed outputs fails at."""
    runner = Runner(Wrong(change))
    runner.asks_for_age = False
    result = runner.run(find_case(QUICK), TRACE)
    return result, [record.name for record in result.records if record.verdict == "fail"]


KEY = "grad.decoder.mid_block.attentions.0.to_k.bias"


@pytest.mark.parametrize(("share", "wrong"), [(0.0, []), (1e-6, []), (1e-3, [KEY])])
def test_a_zero_gradient_is_judged_absolutely(share, wrong):
    """Exactly zero is right, rounding is, a thousandth of the query's gradient is not."""

    def change(outputs):
        query = outputs[KEY.replace("to_k", "to_q")]
        outputs[KEY] = (share * query).astype(query.dtype)

    assert judged(change)[1] == wrong


def test_one_wrong_element_is_named():
    """A single gradient of 147,456 that lost its sign."""
    name = "grad.encoder.mid_block.resnets.1.conv2.weight"

    def change(outputs):
        gradient = outputs[name]
        gradient.flat[np.abs(gradient).argmax()] *= -1

    result, wrong = judged(change)
    assert wrong == [name]
    assert result.first_divergence["probe"] == name
    assert result.first_divergence["after"].startswith("grad.")


def test_a_missing_gradient_is_an_error():
    """Nothing can be said of what is not there."""
    result, _ = judged(lambda outputs: outputs.pop(KEY))
    assert result.verdict == "error"
    assert f"output {KEY} is missing" in result.message


def test_splice_mode_asks_for_a_trace():
    """There is one mode and one backend, whatever is asked for."""
    asked = Execution(mode="splice", backend="plain").for_case(find_case(QUICK))
    assert asked == Execution(mode="trace", backend="sdpa")


def test_half_precision_is_skipped():
    """Gradients of half types need a scaled loss, which is a port's own affair."""
    result = Runner(resolve("sd1_impl")).run(find_case(QUICK), Execution(dtype="bfloat16"))
    assert result.verdict == "skip"
    assert "only in" in result.message


@pytest.fixture
def page(monkeypatch):
    """Return what docs/training.md defines."""
    from conformance.adapters import sd1_impl_networks

    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setitem(sys.modules, "my_model", sd1_impl_networks)
    names: dict = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)  # noqa: S102 - what the page says
    return names


@pytest.fixture
def page_port(page):
    """Return the first port of docs/training.md."""
    return page["factory"]()


@pytest.mark.parametrize(
    ("case", "dtype", "factory"),
    [
        ("training/tiny/batch1", "float64", "factory"),
        ("training/tiny/v_prediction", "float32", "factory"),
        (QUICK, "float32", "vae_factory"),
    ],
)
def test_the_ports_of_the_page_conform(page, case, dtype, factory):
    """The few lines that the documentation shows are all that it takes."""
    result = Runner(page[factory]()).run(find_case(case), Execution(dtype=dtype))
    assert result.verdict == "pass", result.message
    assert not result.missing


def test_a_batch_in_pieces_is_seen_whole(page_port):
    """The timestep embedding of a port that accumulates gradients, in float64 replaced by rows."""
    whole = page_port.others["training"]
    case = find_case("training/tiny/base")

    def by_sample(loss, networks, tensors, _):
        def quiet(*_):
            pass

        rows = (
            {n: t[i : i + 1] if n != "config" else t for n, t in tensors.items()} for i in (0, 1)
        )
        return sum(loss(networks, row, quiet) for row in rows) / 2

    def load(*asked):
        component = whole(*asked)
        component.objective = partial(by_sample, component.objective)
        return component

    port = replace(page_port, others={"training": load})
    result = Runner(port).run(case, Execution(dtype="float64"))
    assert result.verdict == "pass", result.message
    assert "time_proj" in {record.name for record in result.records}


BAD_LOSSES = {
    "none": (lambda _: None, "returned None"),
    "float": (lambda loss: loss.item(), "returned float"),
    "vector": (lambda loss: loss.repeat(3), "returned a tensor of shape (3,)"),
    "detached": (lambda loss: loss.detach(), "returned a detached tensor"),
}


def told(port):
    """Return what a run of the quickest case says of a port that breaks the contract."""
    result = Runner(port).run(find_case(QUICK), TRACE)
    assert result.verdict == "error"
    return result.message


@pytest.mark.parametrize(("change", "found"), BAD_LOSSES.values(), ids=BAD_LOSSES)
def test_a_loss_without_gradients_is_named(page, change, found):
    """What a loss returned, and what is wanted, stand in one line."""
    right_loss = page["vae_loss"]
    page["vae_loss"] = lambda *asked: change(right_loss(*asked))
    text = f"the loss of training/vae {found}: a scalar tensor with a graph is wanted"
    assert told(page["vae_factory"]()) == text


def test_what_is_observed_is_a_term(page):
    """A name that is none is told with those there are; so is what is no tensor."""
    right_loss = page["vae_loss"]
    for name, value, found in (
        ("latent", None, "observed 'latent', which is none of its terms: choose from mean, logvar"),
        ("mean", 0.5, "observed mean as float: a tensor is wanted"),
    ):

        def loss(networks, tensors, observe, name=name, value=value):
            observe(name, value)
            return right_loss(networks, tensors, observe)

        page["vae_loss"] = loss
        assert told(page["vae_factory"]()).startswith(f"the loss of training/vae {found}")


@pytest.mark.parametrize(
    ("build", "trained", "found"),
    [
        (["unet"], "unet", "training/vae has the folder vae, not unet"),
        (["vae"], "decoder", "training/vae trains vae, not 'decoder'"),
    ],
)
def test_wrong_folders_are_named(page, build, trained, found):
    """Those that the component has are told."""
    load = page["loader"](dict.fromkeys(build, page["build_vae"]), trained, None)
    port = replace(page["vae_factory"](), others={"training/vae": load})
    assert told(port).startswith(found)


def test_training_crosses_the_border():
    """Over the protocol, gradients are tensors like any others."""
    from conformance.adapters.process import ExecPort

    serve = Path(spec.__file__).parent / "adapters/serve.py"
    port = ExecPort(f"{sys.executable} {serve} conformance.adapters.sd1_impl:port")
    try:
        result = Runner(port).run(find_case("training/text_encoder/tiny/base"), TRACE)
        assert result.verdict == "pass", result.message
    finally:
        port.close()


def test_a_parameter_outside_the_graph_has_a_gradient_of_zeros(page_port):
    """As an optimiser sees it; the suite then says that it is wrong."""
    case = find_case("training/tiny/batch1")
    component = page_port.others["training"](case.variant, case.weights(), "float32", "cpu")
    component.module["unet"].conv_out.bias.requires_grad_(requires_grad=True)
    component.module["unet"].conv_out.forward = lambda x: x[:, :4]
    outputs, _ = component.run(case.inputs())
    assert not outputs["grad.conv_out.weight"].any()
    assert outputs["grad.conv_norm_out.weight"].any()


def test_the_oracle_is_guarded_on_the_way_back():
    """A gradient in float32 is no truth, even where the forward pass is float64."""
    pytest.importorskip("diffusers")
    from conformance import oracle
    from conformance.errors import GoldenError

    class Island(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, grad):
            return grad.float().double()

    case = find_case(QUICK)
    component = oracle.reference(case.component, case.variant, case.weights(), torch.float64)
    plain = component.objective
    component.objective = lambda *asked: Island.apply(plain(*asked))
    with pytest.raises(GoldenError, match="oracle is not float64"):
        oracle.evaluate(component, case, case.terms)


def test_truth_is_recorded():
    """The oracle of today gives the recorded loss, terms and gradients."""
    pytest.importorskip("diffusers")
    from conformance.recording.record import Reference
    from conformance.recording.verify import age_of

    case = find_case("training/text_encoder/tiny/base")
    truth = Reference(case.component, case.variant).truth(case)
    assert age_of(load_golden(case), truth) is None
