"""Corrupted files: refused in one line, or read as what they were; 200 of them, SD1_FUZZ for more.

No two weights of the files here have the same size, so that no corruption of a header, a zip
directory or a pickle makes a whole file of other contents: whatever is read without complaint has
to be right.
"""

import io
import json
import os
import resource
import shutil
import signal
import zipfile
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from conformance.cli import main
from conformance.export import write_checkpoint
from conformance.variants import parse_variant
from sd1_weights import names
from sd1_weights.config_files import read_config
from sd1_weights.configs import published_config
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import read_checkpoint
from sd1_weights.safetensors_file import write_safetensors
from sd1_weights.schedule import schedule
from sd1_weights.sizes import sizes
from sd1_weights.stored import Stored
from sd1_weights.torch_file import write_torch

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),  # torch's, on the way
]

EXAMPLES = int(os.environ.get("SD1_FUZZ", "200"))
SHARES = {"a.safetensors": 0.36, "a.ckpt": 0.36, "folder": 0.25, "pipeline": 0.03}
SECONDS, MEBIBYTES = 20, 256
LONGEST = 2000
"""Characters of a message."""

WEIGHTS = {
    "unet": {
        "conv_in.weight": (2, 1, 3, 3),
        "time_embedding.linear_1.bias": (3,),
        "down_blocks.0.attentions.0.proj_in.weight": (2, 2, 1, 1),
        "mid_block.resnets.0.norm1.weight": (5,),
    },
    "vae": {
        "encoder.conv_in.bias": (6,),
        "decoder.mid_block.attentions.0.to_q.weight": (1, 7),
        "post_quant_conv.weight": (2, 4, 1, 1),
    },
    "text_encoder": {
        "text_model.embeddings.token_embedding.weight": (3, 3),
        "text_model.final_layer_norm.bias": (10,),
    },
}
"""A handful of each network's weights, by canonical name."""


@contextmanager
def bounded(mebibytes=MEBIBYTES):
    """Allow so many seconds, and so much more memory than now."""

    def stop(*_):
        raise TimeoutError(f"it took more than {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    most = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def run(share, cases, check):
    """Corrupt files, a share of `EXAMPLES`; demand that most are refused."""
    count = max(round(EXAMPLES * SHARES[share]), 1)
    outcomes = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        derandomize="SD1_FUZZ" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def fuzz(case):
        refusal = ""
        try:
            check(*case)
        except CheckpointError as error:
            refusal = str(error)
        assert refusal.isprintable()
        assert len(refusal) < LONGEST
        outcomes["refused" if refusal else "harmless"] += 1

    fuzz()
    print(f"{share}: {outcomes.total()} corrupted files, {dict(outcomes)}")  # noqa: T201 - for -rP
    assert outcomes.total() >= count
    assert outcomes["refused"] > outcomes["harmless"]


def written(write, rows):
    """Return the bytes of a file."""
    file = io.BytesIO()
    write(file, rows)
    return file.getvalue()


def rows_of(network, name_of):
    """Return a network's handful of weights on their way into a file, each element another."""
    values = iter(np.arange(1, 1000, dtype="<f4") / 8)
    for name, shape in WEIGHTS[network].items():
        array = np.fromiter(values, "<f4", int(np.prod(shape))).reshape(shape)
        yield Stored(name_of(name), "F32", shape, partial(np.asarray, array))


def single_file_rows():
    """Return what a CompVis file holds, in small."""
    rows = []
    for network in WEIGHTS:
        start = names.prefix(network)
        rows += rows_of(network, lambda n, s=start, of=network: s + names.compvis_key(of, n))
    tables = {n: schedule()[n].astype("<f4") for n in ("betas", "alphas_cumprod")}
    tables["model_ema.decay"] = np.float32(0.9999).reshape(())
    ids = names.prefix("text_encoder") + names.unweighted("text_encoder")[0]
    tables[ids] = np.arange(77)[None]
    kinds = {"f": "F32", "i": "I64"}
    return rows + [
        Stored(key, kinds[array.dtype.kind], array.shape, partial(np.asarray, array))
        for key, array in tables.items()
    ]


def folder_files():
    """Return the files of a small diffusers folder: old names in the VAE, CLIP in torch's."""
    files = {}
    for network, file in {
        "unet": "diffusion_pytorch_model.safetensors",
        "vae": "diffusion_pytorch_model.safetensors",
        "text_encoder": "pytorch_model.bin",
    }.items():
        rows = rows_of(network, lambda name: name.replace(".to_q.", ".query."))
        write = write_torch if file.endswith(".bin") else partial(write_safetensors, metadata={})
        files[f"{network}/{file}"] = written(write, rows)
        config = published_config(network, sizes(network)["tiny"])
        files[f"{network}/config.json"] = json.dumps(config).encode()
    return files


def places_in(data):
    """Return where tensors' bytes are in safetensors, counted from the end; nothing of others."""
    if data[8:9] != b"{":
        return {}
    end = 8 + int.from_bytes(data[:8], "little")
    fields = json.loads(data[8:end])
    offsets = {key: of["data_offsets"] for key, of in fields.items() if key != "__metadata__"}
    return {key: [place - (len(data) - end) for place in of] for key, of in offsets.items()}


class Base:
    """Whole files of a layout in a folder, one of which is corrupted at a time."""

    def __init__(self, folder, path, read, applied):
        self.folder, self.path, self.read, self.applied = folder, path, read, applied
        files = [file for file in folder.rglob("*") if file.is_file()]
        self.data = {str(file.relative_to(folder)): file.read_bytes() for file in files}
        self.bits = read(path)
        places = {str(folder / file): places_in(data) for file, data in self.data.items()}
        self.places = {
            (network, name): (tensor.file, places[tensor.file].get(tensor.key))
            for network, part in read_checkpoint(path).networks.items()
            for name, tensor in part.tensors.items()
        }

    def check(self, file, kind, changes, mebibytes=MEBIBYTES):
        """Corrupt a file and read all; it is refused or right, and the original is back."""
        path, aside = self.folder / file, self.folder / "aside"
        data = self.applied(self.data[file], kind, changes)
        assume(data != self.data[file])
        path.rename(aside)  # not overwritten: it may be mapped
        path.write_bytes(data)
        try:
            with bounded(mebibytes):
                if changes[0].value % 8 == 0:
                    inspected(self.path)
                found = self.read(self.path)
            assert found.keys() == self.bits.keys()
            for tensor, bits in found.items():
                self.compare(tensor, bits, path, data)
        finally:
            aside.replace(path)

    def compare(self, tensor, bits, path, data):
        """Demand a tensor's own bits, or the corrupted file's at its place in safetensors."""
        file, place = self.places[tensor]
        own = self.bits[tensor]
        assert (bits.dtype, bits.shape) == (own.dtype, own.shape)
        if file == str(path) and place is not None:
            start, end = (len(data) + offset for offset in place)
            assert bits.tobytes() == data[start:end]
        elif bits.tobytes() != own.tobytes():
            assert file == str(path)
            assert is_another(path, bits)


def is_another(path, bits):
    """Say whether an archive is a whole one of other contents: unchecked, or as torch reads it."""
    with zipfile.ZipFile(path) as archive:
        if any(not entry.CRC for entry in archive.infolist()):
            return True
    if not find_spec("torch"):
        return True
    torch = import_module("torch")
    state = torch.load(path, weights_only=True)
    tensors = state.get("state_dict", state).values()
    return any(np.array_equal(t.numpy().reshape(-1), bits.reshape(-1)) for t in tensors)


def inspected(path):
    """Look at files on the command line: a report or one line, no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["weights", "inspect", str(path)])
    assert code in {0, 1, 2}
    assert err.getvalue().count("\n") == (code == 2)
    assert out.getvalue().replace("\n", "").isprintable()


def read_small(path):
    """Read the handful of weights and the configs."""
    checkpoint = read_checkpoint(path)
    found = {}
    for network, wanted in WEIGHTS.items():
        part = checkpoint.network(network)
        if part.config is not None:
            for value in read_config(network, part.config).values():
                numbers = value if isinstance(value, tuple) else [value]
                assert all(isinstance(n, bool) or 0 < n <= 2**16 for n in numbers)
        for name, tensor in part.fitted(wanted).items():
            tensor.check_finite()
            assert tensor.dtype == "F32"
            found[network, name] = tensor.bits()
    return found


def read_pipeline(path):
    """Load everything, and demand of the configs what the shapes of weights say."""
    pipe = pytest.importorskip("sd1_impl").load_pipeline(path)
    found = {}
    for network in WEIGHTS:
        module = getattr(pipe, network)
        known = sizes(network)["tiny"].items()
        config = asdict(module.config)
        told = {key: value for key, value in known if key not in {"num_heads", "norm_num_groups"}}
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}.items() >= (
            told.items()
        )
        for name, tensor in module.state_dict().items():
            found[network, name] = tensor.numpy()
    return found


@pytest.mark.parametrize("file", ["a.safetensors", "a.ckpt"])
def test_single_files(tmp_path, corruption, applied, file):
    """A CompVis file: bytes anywhere, names and numbers of the header, opcodes of the pickle."""
    write = write_torch if file.endswith(".ckpt") else partial(write_safetensors, metadata={})
    (tmp_path / file).write_bytes(written(write, single_file_rows()))
    base = Base(tmp_path, tmp_path / file, read_small, applied)
    kinds = ("bytes", "pickle" if file.endswith(".ckpt") else "header")
    run(file, corruption([(file, kinds)]), base.check)


def test_folders(tmp_path, corruption, applied):
    """A diffusers folder: its configs, its safetensors, and a text encoder saved by torch."""
    for name, data in folder_files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    base = Base(tmp_path, tmp_path, read_small, applied)
    kinds = {".json": ("config", "text"), ".bin": ("bytes", "pickle")}
    files = [(name, kinds.get(Path(name).suffix, ("bytes", "header"))) for name in base.data]
    run("folder", corruption(files), base.check)


def test_pipelines(tmp_path, corruption, applied):
    """A whole folder of the tiny size, loaded as a user does: its configs and two headers."""
    pytest.importorskip("torch")
    write_checkpoint(parse_variant("tiny"), "diffusers", "float32", tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    base = Base(tmp_path, tmp_path, read_pipeline, applied)
    files = [(name, ("config", "text")) for name in base.data if name.endswith("config.json")]
    files += [(name, ("bytes", "header")) for name in base.data if "encoder/model." in name]
    run("pipeline", corruption(files), partial(base.check, mebibytes=1024))
