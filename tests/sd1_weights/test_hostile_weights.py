"""Whole files that hold the wrong thing: missing, left over, misshapen, no numbers."""

import numpy as np
import pytest

from conformance.cli import main
from sd1_weights.errors import CheckpointError
from sd1_weights.names import prefix
from sd1_weights.schedule import schedule
from sd1_weights.stored import bfloat16

pytestmark = pytest.mark.usefixtures("no_hang")

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
KEYS = {
    "unet": ("conv_out.bias", "out.2.bias"),
    "vae": ("decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
    "text_encoder": ("text_model.final_layer_norm.bias",) * 2,
}
"""A weight of each network: its canonical name and CompVis'."""

BIAS = KEYS["text_encoder"][0]


def place(path, network):
    """Return the file of a network, what a weight is called there and what its keys begin with."""
    canonical, compvis = KEYS[network]
    if path.is_dir():
        return path / FILES[network], canonical, ""
    return path, prefix(network) + compvis, prefix(network)


FAULTS = {
    "missing": (lambda tensors, key, _start, _new: tensors.pop(key), "1 missing ({key})"),
    "extra": (
        lambda tensors, _key, start, new: tensors.update({f"{start}extra.weight": new([1.0])}),
        "1 unexpected ({start}extra.weight)",
    ),
    "shape": (
        lambda tensors, key, _start, new: tensors.update({key: new(np.zeros(3))}),
        "{key} is F32 of shape (3,), expected shape (",
    ),
    "integers": (
        lambda tensors, key, _start, new: tensors.update(
            {key: new(np.zeros(tensors[key].shape), "I8")}
        ),
        "{key} is I8 of shape (",
    ),
    "truth-values": (
        lambda tensors, key, _start, new: tensors.update(
            {key: new(np.zeros(tensors[key].shape), "BOOL")}
        ),
        "{key} is BOOL of shape (",
    ),
}


PLACES = [
    *((name, kind) for name in ("a.safetensors", "a.ckpt") for kind in ("missing", "extra")),
    *(("folder", kind) for kind in FAULTS),
]


@pytest.mark.parametrize(("name", "kind"), PLACES)
@pytest.mark.parametrize("network", FILES)
def test_wrong_weights(refused, copy, rewritten, stored, name, network, kind):
    """Of each network, in each layout: the file and the key are named."""
    change, fault = FAULTS[kind]
    path = copy(name)
    file, key, start = place(path, network)
    rewritten(file, lambda tensors: change(tensors, key, start, stored))
    words = fault.format(key=key, start=start)
    refused(path, str(file), words, readable=True)


@pytest.mark.parametrize("network", FILES)
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_a_network_is_missing(capsys, copy, rewritten, tmp_path, name, network):
    """Such as the VAE, which is often kept apart: nothing is taken from the other two."""
    path = copy(name)
    start = prefix(network)

    def strip(tensors):
        for key in [key for key in tensors if key.startswith(start)]:
            del tensors[key]

    rewritten(path, strip)
    out = tmp_path / "out.safetensors"
    assert main(["weights", "convert", str(path), "--layout", "compvis", "--out", str(out)]) == 2
    assert f"{path} is of layout compvis and has no {network}, only" in capsys.readouterr().err
    assert not out.exists()
    assert main(["weights", "inspect", str(path)]) == 1
    assert f"{network:12s} missing\n" in capsys.readouterr().out


NO_NUMBERS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_weights_that_are_no_numbers(refused, copy, rewritten, stored, dtype, value):
    """The key and the index are named, in every dtype; `run` refuses float64 before."""
    path = copy("folder")
    file = path / FILES["text_encoder"]
    values = np.linspace(-2, 2, 64)
    values[[7, 40]] = value
    bits = bfloat16(values) if dtype == "BF16" else values
    rewritten(file, lambda tensors: tensors.update({BIAS: stored(bits, dtype)}))
    fault = "holds 2 values that are NaN or infinite, the first at (7,)"
    without = {"inspect", "run"} if dtype == "F64" else {"inspect"}
    refused(path, f"{file}: {BIAS} {fault}", without=without)


def test_values_that_a_dtype_cannot_hold(capsys, copy, rewritten, stored, tmp_path):
    """A large number does not become infinite on the way into float16, and nothing is left."""
    path = copy("folder")
    file = path / FILES["text_encoder"]
    rewritten(file, lambda tensors: tensors.update({BIAS: stored(np.full(64, 1e5))}))
    out = tmp_path / "out" / "half"
    command = ["weights", "convert", str(path), "--layout", "diffusers", "--dtype", "float16"]
    assert main([*command, "--out", str(out)]) == 2
    fault = f"{file}: {BIAS} has values up to 100000, which F16 cannot hold\n"
    assert capsys.readouterr().err == f"sd1-conformance: {fault}"
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(("value", "dtype", "of"), [(1e5, "F32", "float16"), (1e300, "F64", None)])
def test_values_that_become_infinite_when_loaded(copy, rewritten, stored, value, dtype, of):
    """As on the way into a file: finite in the file, not in the dtype that is asked for."""
    load_pipeline = pytest.importorskip("sd1_impl").load_pipeline
    torch = pytest.importorskip("torch")
    path = copy("folder")
    file = path / FILES["text_encoder"]
    rewritten(file, lambda tensors: tensors.update({BIAS: stored(np.full(64, value), dtype)}))
    with pytest.raises(CheckpointError, match=f"{BIAS} has values up to 1.* cannot hold"):
        load_pipeline(path, dtype=getattr(torch, of or "float32"))


OTHER = schedule()["alphas_cumprod"] ** 1.01
TABLES = {
    "another": ("alphas_cumprod", OTHER, "F32", "alphas_cumprod[", "another noise schedule"),
    "nan": ("betas", np.full(1000, np.nan), "F32", "betas[0] is nan", "another noise schedule"),
    "infinite": ("betas", np.full(1000, 1e300), "F64", "betas[0] is inf", "another noise"),
    "half-as-many": ("betas", np.zeros(500), "F32", "betas is F32 of shape (500,), expected", ""),
    "integers": ("betas", np.zeros(1000), "I64", "betas is I64 of shape (1000,), expected", ""),
}


@pytest.mark.parametrize(("key", "table", "dtype", "fault", "why"), TABLES.values(), ids=TABLES)
def test_another_noise_schedule(refused, copy, rewritten, stored, key, table, dtype, fault, why):
    """Weights of another model: its sampler is not SD v1's."""
    path = copy("a.safetensors")
    rewritten(path, lambda tensors: tensors.update({key: stored(table, dtype)}))
    refused(path, f"{path}: {fault}", why)


POSITIONS = {
    "from-one": np.arange(1, 78),
    "reversed": np.arange(77)[::-1],
    "few": np.arange(5),
    "none": np.arange(0),
    "fractions": np.arange(77) + 0.5,
}


@pytest.mark.parametrize("ids", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("name", ["a.safetensors", "folder"])
def test_position_ids_of_another_order(refused, copy, rewritten, stored, name, ids):
    """The table of positions is read from 0 to 76, so they have to be those."""
    path = copy(name)
    file, _, start = place(path, "text_encoder")
    key = f"{start}text_model.embeddings.position_ids"
    dtype = "F32" if ids.dtype.kind == "f" else "I64"
    rewritten(file, lambda tensors: tensors.update({key: stored(ids[None], dtype)}))
    refused(path, f"{file}: {key} are not the numbers 0 to 76")
