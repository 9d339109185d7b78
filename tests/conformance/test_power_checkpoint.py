"""Proof of power: wrong readers of files, by hand; and files that change no bit of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conformance.case import NETWORKS, find_case
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.tolerance import LIMIT, badness
from conformance.variants import parse_variant

torch = pytest.importorskip("torch")

from conformance.adapters import sd1_impl, sd1_impl_files
from conformance.export import stored
from conformance.mutants import checkpoint, checkpoint_files, nulls_checkpoint
from conformance.mutants.answer import answer, load
from conformance.mutants.catalogue import CATALOGUE, find_mutants
from conformance.mutants.gate import quiet_runner
from conformance.mutants.mutant import Mutant, Patch
from conformance.port import resolve
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import read_checkpoint
from sd1_weights.torch_file import read_torch

ATTENTION = "mid_block.attentions.0"

PLACES = {
    "ckpt-ema-vs-nonema": "time_embedding.linear_1",
    "ckpt-flag-ignored": "time_embedding.linear_1",
    "ckpt-zero-dim-or-dup": "time_embedding.linear_1",
    "ckpt-lenient-load": "down_blocks.1.resnets.0.conv_shortcut",
    "ckpt-vae-attn-keys": f"decoder.{ATTENTION}.to_q",
    "ckpt-vae-attn-conv-to-linear": f"encoder.{ATTENTION}.to_q",
    "ckpt-shared-or-mmap": "text_model.encoder.layers.0.self_attn.k_proj",
    "ckpt-qkv-swap": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k",
    "ckpt-conv-layout": "conv_in",
    "ckpt-config-defaults-override": "final_alpha_cumprod",
}
"""Every row of the list of known bugs that is about checkpoints, and where it shows first."""

BY_FILE = [mutant for mutant in checkpoint.MUTANTS if mutant.port]
KINDS = {
    "compvis": sd1_impl_files.compvis,
    "ckpt": sd1_impl_files.ckpt,
    "diffusers": sd1_impl_files.diffusers,
}


@pytest.mark.parametrize("name", PLACES)
def test_a_wrong_reader_is_named_at_the_first_layer_that_it_spoils(name: str) -> None:
    """It dies by far in float64 too, at the first layer whose weights it misread."""
    (mutant,) = find_mutants([name])
    case = find_case(mutant.case_ids[0])
    result = quiet_runner(mutant).run(case, Execution(dtype="float64").for_case(case))
    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == PLACES[name]
    assert badness(result.first_divergence["ratio"]) >= 2 * LIMIT


def test_every_row_about_checkpoints_is_a_mutant() -> None:
    """None is left out, and none is run without its place above."""
    known = {m.id for m in CATALOGUE if m.id.startswith("ckpt-")}
    assert known == {*PLACES}
    assert checkpoint.NOT_RUN == ()


@pytest.mark.parametrize("mutant", BY_FILE, ids=lambda mutant: mutant.id)
def test_a_file_is_written_before_it_is_misread(mutant: Mutant, monkeypatch) -> None:
    """The patch changes no byte of the file: what the writer makes is the same with it."""
    written = []

    def keep(*arguments: object, **options: object) -> object:
        path = Path(arguments[1])
        files = [path] if path.is_file() else sorted(path.iterdir())
        written.append([file.read_bytes() for file in files])
        return plain(*arguments, **options)

    plain = sd1_impl_files.load_network
    monkeypatch.setattr(sd1_impl_files, "load_network", keep)
    case = find_case(mutant.case_ids[0])
    load(mutant.port(), case, "float32")
    with mutant.living():
        load(mutant.port(), case, "float32")
    assert written[0] == written[1]


@pytest.mark.parametrize("mutant", nulls_checkpoint.MUTANTS, ids=lambda mutant: mutant.id)
def test_a_file_that_is_read_rightly_changes_no_bit(mutant: Mutant) -> None:
    """Every probe and output is sd1_impl's own."""
    case = find_case(mutant.case_ids[0])
    golden = load_golden(case)
    handed, read = (
        answer(load(port, case, "float32"), case, golden, None)
        for port in (sd1_impl.port(), mutant.port())
    )
    for own, other in ((handed.probes, read.probes), (handed.outputs, read.outputs)):
        assert {*own} == {*other}
        assert [name for name in own if not np.array_equal(own[name], other[name])] == []


@pytest.mark.parametrize("component", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_travel_through_files_arrive_bit_by_bit(kind: str, component: str) -> None:
    """A port that reads files holds what sd1_impl is handed; of the VAE the other half besides."""
    case = find_case(f"{component}/tiny/base")
    handed, read = (
        load(port, case, "float64").module.state_dict() for port in (sd1_impl.port(), KINDS[kind]())
    )
    assert {*handed} <= {*read}
    assert [name for name in handed if not torch.equal(handed[name], read[name])] == []


def test_every_file_that_is_misread_has_a_null_mutant() -> None:
    """A file that no reader could read rightly would prove nothing."""
    lawful = {mutant.port for mutant in nulls_checkpoint.MUTANTS}
    assert {mutant.port for mutant in BY_FILE} <= lawful


@pytest.mark.parametrize("kind", KINDS)
def test_ports_that_read_files_are_named_on_the_command_line(kind: str) -> None:
    """They are PORT arguments that offer the networks and nothing else."""
    hello = resolve(f"conformance.adapters.sd1_impl_files:{kind}").hello()
    assert hello.name == f"sd1_impl by {kind}"
    assert set(hello.components) == set(NETWORKS)


def test_both_sets_of_a_file_differ_in_every_tensor(tmp_path: Path) -> None:
    """So that a weight of the wrong set cannot be taken for the right one."""
    variant = parse_variant("tiny")
    weights = variant.weights("unet")
    write = checkpoint_files.plain_of_two().others["unet"].args[1]
    path = write("unet", variant, stored(weights, weights.shapes), tmp_path)
    plain, averaged = (read_checkpoint(path, ema=e).network("unet").tensors for e in (False, True))
    for name in weights:
        assert np.array_equal(plain[name].bits(), weights[name])
        assert not np.array_equal(averaged[name].bits(), weights[name])


def test_parts_of_one_tensor_share_its_storage(tmp_path: Path) -> None:
    """Torch stores the fused tensor once, and k and v as offsets into it."""
    variant = parse_variant("tiny")
    weights = variant.weights("text_encoder")
    write = checkpoint_files.shared_storages().others["text_encoder"].args[1]
    path = write("text_encoder", variant, stored(weights, weights.shapes), tmp_path)
    start = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn."
    readings = [read_torch(path).tensors[f"{start}{part}_proj.weight"].read for part in "qkv"]
    places = [reading.tensor for reading in readings]
    size = weights["text_model.encoder.layers.0.self_attn.q_proj.weight"].size
    assert len({place.storage.key for place in places}) == 1
    assert [place.offset for place in places] == [0, size, 2 * size]


def test_strict_reading_refuses_what_lenient_mutants_accept() -> None:
    """Without leniency the missing rename is an error that names the weights."""
    case = find_case("vae_decoder/tiny/base")
    patch = Patch()
    patch.setattr(checkpoint.names, "current_name", lambda _, name: name)
    try:
        with pytest.raises(CheckpointError, match=r"missing \(.*to_q.*unexpected \(.*query"):
            load(checkpoint_files.old_names(), case, "float32")
    finally:
        patch.undo()


def test_only_a_null_mutant_may_be_a_port_alone() -> None:
    """A wrong port needs a wrong choice beside the files that it reads."""
    facts = {"id": "own-test", "component": "unet", "wrong": "x", "cases": ("tiny/base",)}
    with pytest.raises(ValueError, match="needs a module or a patch"):
        Mutant(**facts, port=sd1_impl_files.compvis)
