from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from conformance.adapters import sd1_impl
from conformance.adapters.sd1_impl_networks import NETWORKS
from conformance.adapters.torch_module import TorchPort
from conformance.case import find_case
from conformance.execution import MEMORY, Execution
from conformance.memory import judge as judging
from conformance.memory.budgets import Budgets, budgets
from conformance.runner import Runner

CASE = "vae_decoder/tiny/latent8-batch2"
HOW = Execution("float32", "cpu", "sdpa", MEMORY)
KEY = f"{CASE}[float32-sdpa]"


def judged(port, spec="", execution=HOW):
    """Return the result of the case on a port."""
    return Runner(port, port_spec=spec).run(find_case(CASE), execution)


def wasteful(name="wasteful"):
    """Return sd1_impl's decoder, one of whose blocks keeps what it was given."""
    build, call = NETWORKS["vae_decoder"]

    def build_hoarder(variant):
        module = build(variant)
        block = module.decoder.up_blocks[1]
        block.kept = []
        block.register_forward_hook(
            lambda own, given, _: own.kept.append(given[0].repeat(64, 1, 1, 1))
        )
        return module

    return TorchPort(name, "1", {"vae_decoder": (build_hoarder, call)})


def test_a_port_that_holds_what_was_recorded_passes():
    """The line tells peak, place, weights, ceiling, and what tensors held."""
    result = judged(sd1_impl.port())
    assert (result.verdict, result.message) == ("pass", "")
    found = budgets().of(KEY, "sd1_impl")
    assert result.memory["peak"] == result.memory["tensors"] == found.peak
    assert (result.memory["at"], result.memory["where"]) == (found.at, found.where)
    assert result.memory["ceiling"] == budgets().of(KEY, "diffusers").peak


def test_a_recorded_port_that_keeps_more_fails_at_the_first_block_that_holds_it():
    """Splice mode's names; the operation and module at the peak in the hint."""
    result = judged(wasteful("sd1_impl"))
    assert result.verdict == "fail"
    first = result.first_divergence
    assert first["probe"] == "decoder.up_blocks.1"
    assert first["kind"] == "memory"
    assert "aten." in first["hint"]
    assert first["ratio"] > 1
    own = budgets().of(KEY, "sd1_impl").blocks
    kept = result.memory["budget"]["blocks"]  # of the blocks that differ, for the page
    assert kept == {name: own[name] for name in kept}
    assert "decoder.up_blocks.1" in kept
    assert "decoder.conv_in" not in kept


def test_any_port_that_holds_more_than_the_reference_fails():
    """Nothing of it is recorded: the reference sets the limit."""
    result = judged(wasteful())
    assert result.verdict == "fail"
    assert "where diffusers holds" in result.message


def test_a_version_that_is_not_recorded_is_compared_with_the_reference_alone(monkeypatch):
    """The ceiling is predicted there and then; the message names the command that records."""
    pytest.importorskip("diffusers")
    empty = Budgets()
    monkeypatch.setattr(judging, "budgets", lambda: empty)
    result = judged(sd1_impl.port())
    assert result.verdict == "pass"
    assert "not compared to the byte" in result.message
    assert result.memory["ceiling"] == budgets().of(KEY, "diffusers").peak
    assert judged(wasteful()).verdict == "fail"


def test_a_prediction_that_tensors_do_not_keep_fails(monkeypatch):
    """What is imagined has to be what is run."""
    from conformance.adapters import memory

    honest = memory.Predictor.predict

    def predict(self, case, execution):
        found = honest(self, case, execution)
        return replace(found, peak=found.peak - 4)

    own = budgets().of(KEY, "sd1_impl")
    known = {KEY: {"sd1_impl": replace(own, peak=own.peak - 4), "diffusers": own}}
    monkeypatch.setattr(memory.Predictor, "predict", predict)
    version = judging.torch_version()
    monkeypatch.setattr(judging, "budgets", lambda: Budgets({version: known}))
    result = judged(sd1_impl.port())
    assert result.verdict == "fail"
    assert "4 bytes apart" in result.message


class Elsewhere:
    """A port that is no TorchPort: nothing may be loaded into it."""

    def hello(self):
        """Offer all that sd1_impl does."""
        return sd1_impl.port().hello()

    def load(self, *_, **__):
        """Fail."""
        raise AssertionError


@pytest.mark.parametrize(
    ("spec", "says"),
    [("", "no TorchPort"), ("exec:port", "another process")],
    ids=["python", "process"],
)
def test_what_cannot_be_looked_into_is_skipped(spec, says):
    """With the reason."""
    result = judged(Elsewhere(), spec)
    assert result.verdict == "skip"
    assert says in result.message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_allocator_keeps_to_prediction_and_allowance():
    """Or says that no allowance is recorded for the device."""
    result = judged(sd1_impl.port(), execution=replace(HOW, device="cuda"))
    assert result.verdict == "pass" or "no allowance is recorded" in result.message
