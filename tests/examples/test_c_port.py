"""The C port: its decoder conforms, a wrong choice in it is named, and nothing makes it crash."""

import json
import shlex
import shutil
import struct
import subprocess
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance.case import find_case
from conformance.execution import Execution
from conformance.golden import SPLICE, TRACE
from conformance.golden_files import load_golden
from conformance.port import resolve
from conformance.runner import Runner
from conformance.variants import parse_variant

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler: cc is not on the path")

SOURCE = Path(__file__).parents[2] / "examples/c"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")

ORACLE = pytest.mark.skipif(find_spec("diffusers") is None, reason="splice mode needs diffusers")
MODES = (TRACE, pytest.param(SPLICE, marks=ORACLE))

WRONG = {
    "eps": (
        ("#define GROUP_NORM_EPS 1e-6f", "#define GROUP_NORM_EPS 1e-5f"),
        ("vae_decoder/tiny-lowvar/base", "decoder.mid_block.resnets.0.norm1"),
    ),
    "scaling": (
        ("latents.values[i] /= SCALING_FACTOR", "latents.values[i] *= SCALING_FACTOR"),
        ("vae_decoder/tiny/base", "post_quant_conv.input"),
    ),
    "silu": (
        ("array.values[i] / (1.0f + expf(-array.values[i]))", "fmaxf(array.values[i], 0.0f)"),
        ("vae_decoder/tiny/base", "decoder.mid_block.resnets.0.conv1"),
    ),
    "attention": (
        ("sum / sqrtf((float)channels)", "sum"),
        ("vae_decoder/tiny/base", "decoder.mid_block.attentions.0.to_out.0.input"),
    ),
    "upsample": (
        ("+ y / 2) * in.shape[W] + x / 2]", "+ y % in.shape[H]) * in.shape[W] + x % in.shape[W]]"),
        ("vae_decoder/tiny/base", "decoder.up_blocks.0.upsamplers.0.conv"),
    ),
}
"""What is replaced in the source, and by what; a case that sees it, and the first wrong layer."""


def build(folder: Path, *flags: str, decoder: Path = SOURCE / "vae_decoder.c") -> Path:
    """Compile the sources, another decoder among them if it is given; return the program."""
    program = folder / "port"
    sources = [decoder, *(p for p in SOURCE.glob("*.c") if p.name != "vae_decoder.c")]
    command = [COMPILER, *STRICT, "-O2", *flags, "-I", SOURCE, "-o", program, *sources, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The port, built as its README says."""
    return build(tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="module")
def checked_program(tmp_path_factory):
    """The port with checks of every access to memory, where the compiler has them."""
    folder = tmp_path_factory.mktemp("sanitized")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    trial = [COMPILER, *SANITIZERS, "-o", folder / "empty", folder / "empty.c"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("this C compiler has no address sanitizer")
    return build(folder, *SANITIZERS)


def judge(program: Path, case_id: str, mode: str):
    """Run a case on a program and judge it."""
    port = resolve(f"exec:{shlex.quote(str(program))}")
    runner = Runner(port)
    runner.asks_for_age = False
    try:
        return runner.run(find_case(case_id), Execution(mode=mode))
    finally:
        port.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["tiny", "tiny-lowvar"])
def test_conforms(program, variant, mode):
    """Naive sequential float32 sums pass, well within the ordinary limit; every probe is there."""
    case_id = f"vae_decoder/{variant}/base"
    result = judge(program, case_id, mode)
    assert (result.verdict, result.message) == ("pass", "")
    probes = load_golden(find_case(case_id)).probes
    assert [r.name for r in result.records if r.kind == "probe"] == list(probes)
    assert result.worst.ratio < 2


@pytest.mark.parametrize("name", WRONG)
def test_wrong_choice_is_named(tmp_path, name):
    """One wrong choice in the source fails at the layer that it is in."""
    (right, wrong), (case_id, probe) = WRONG[name]
    source = (SOURCE / "vae_decoder.c").read_text(encoding="utf-8")
    assert source.count(right) == 1
    changed = tmp_path / "changed.c"
    changed.write_text(source.replace(right, wrong), encoding="utf-8")
    result = judge(build(tmp_path, decoder=changed), case_id, TRACE)
    assert result.verdict == "fail"
    assert (result.first_divergence["probe"], result.first_divergence["kind"]) == (probe, "fault")


class Child:
    """A running port, spoken to line by line."""

    def __init__(self, program: Path, scratch: Path) -> None:
        self.scratch = scratch
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=scratch
        )
        self.ask(op="hello", protocol=1, scratch=str(scratch))

    def line(self, line: bytes) -> dict:
        """Send a line; return the reply."""
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def ask(self, **request: object) -> dict:
        """Send a request with id 7; return the reply."""
        reply = self.line(json.dumps({"id": 7, **request}).encode())
        assert reply["id"] == 7
        return reply

    def load(self, component: str = "vae_decoder", **changed: object) -> dict:
        """Load a component."""
        request = {
            "op": "load",
            "component": component,
            "variant": {"name": "tiny", "size": "tiny", "regime": "unit"},
            "architecture": {"vae": parse_variant("tiny").architecture("vae_decoder")},
            "weights": str(self.scratch / "weights"),
            "layout": "diffusers",
            "arithmetic": "float32",
            "device": "cpu",
        }
        return self.ask(**request | changed)

    def run(self, tensors: Path | None, probes: tuple = (), replace: Path | None = None) -> dict:
        """Run what is loaded."""
        path = None if tensors is None else str(tensors)
        inputs = {"tensors": path, "strings": {"text": ["é"]}, "config": None}
        replace = None if replace is None else str(replace)
        return self.ask(op="run", inputs=inputs, probes=list(probes), replace=replace)


@contextmanager
def started(program: Path, scratch: Path):
    """A child, which must still be there to say bye, and leave with code 0."""
    child = Child(program, scratch)
    try:
        yield child
        assert child.ask(op="bye") == {"id": 7, "ok": {}}
        assert child.process.wait(60) == 0  # not 0 if a sanitizer found a leak
    finally:
        child.process.kill()
        child.process.communicate()


@pytest.fixture
def child(checked_program, tmp_path):
    """A child with checks of its memory, and the weights of `tiny` beside it."""
    parse_variant("tiny").weights("vae_decoder").export(tmp_path / "weights")
    with started(checked_program, tmp_path) as child:
        yield child


LINES = {
    "empty": b"",
    "no object": b"[1, 2]",
    "cut": b'{"id": 7, "op": "unl',
    "two values": b'{"id": 7, "op": "unload"} {}',
    "comma at the end": b'{"id": 7, "op": "unload",}',
    "leading zero": b'{"id": 07, "op": "unload"}',
    "hexadecimal": b'{"id": 0x7, "op": "unload"}',
    "bare point": b'{"id": 7., "op": "unload"}',
    "id is text": b'{"id": "7", "op": "unload"}',
    "id is no integer": b'{"id": 7.5, "op": "unload"}',
    "control character": b'{"id": 7, "op": "un\tload"}',
    "no UTF-8": b'{"id": 7, "op": "\xff"}',
    "half of a surrogate pair": b'{"id": 7, "op": "\\ud83d"}',
    "bad escape": b'{"id": 7, "op": "\\x41"}',
    "nested deeply": b"[" * 100_000,
    "endless": b"x" * (5 << 20),
}


def test_malformed_lines(child):
    """A line that is no request is answered with an error whose id is null."""
    replies = {name: child.line(line) for name, line in LINES.items()}
    assert {name for name, reply in replies.items() if reply["id"] is not None} == set()
    assert all(reply["error"] for reply in replies.values())
    assert child.line(b'{"id":7,"op":"\\u0075nload", "x": [1e-2, {}, "\\ud83d\\ude00"]}') == {
        "id": 7,
        "ok": {},
    }


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ({"component": "unet"}, "error", "unet"),
        ({"component": "scheduler/unipc"}, "error", "scheduler/unipc"),
        ({"component": "scheduler/ddim", "arithmetic": "float16"}, "unsupported", "float64"),
        ({"weights": "/no/such/folder"}, "error", "/no/such/folder"),
        ({"arithmetic": "float64"}, "unsupported", "float32"),
        ({"layout": "compvis"}, "unsupported", "diffusers"),
        ({"architecture": {}}, "error", "block_out_channels"),
    ],
    ids=["component", "scheduler", "its arithmetic", "folder", "arithmetic", "layout", "sizes"],
)
def test_load_refused(child, change, key, named):
    """A load that cannot be done is refused with what is wrong; the next one works."""
    assert named in child.load(**change)[key]
    assert child.load() == {"id": 7, "ok": {}}


def test_wrong_weights_are_named(child):
    """A weight that is missing, left over or of another shape is named, with its file."""
    path = child.scratch / "weights/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = "decoder.conv_in.weight"
    extra = "decoder.mid_block.extra.weight"
    for changed in (
        {n: a for n, a in weights.items() if n != name},
        {**weights, name: weights[name][:, :3].copy()},
        {**weights, name: weights[name].astype(np.float16)},
        {**weights, extra: weights[name]},
    ):
        save_file(changed, path)
        message = child.load()["error"]
        assert (extra if extra in changed else name) in message
        assert path.name in message


def test_wrong_inputs_are_named(child):
    """Inputs and replaced values of a wrong shape, dtype or name are refused; the next run goes."""
    latents = np.ones((1, 4, 2, 2), np.float32)
    path, replace = child.scratch / "in.safetensors", child.scratch / "replace.safetensors"
    assert "load" in child.run(path)["error"]
    child.load()
    for wrong in (latents[0], latents[:, :3].copy(), latents.astype(np.float64), latents[:0]):
        save_file({"latents": wrong}, path)
        assert "latents" in child.run(path)["error"]
    assert "latents" in child.run(None)["error"]
    save_file({"latents": latents}, path)
    save_file({"decoder.conv_in": np.zeros((1, 128, 2, 3), np.float32)}, replace)
    assert "decoder.conv_in" in child.run(path, (), replace)["error"]
    assert "no-such-file" in child.run(path, (), child.scratch / "no-such-file")["error"]
    answer = child.run(path, ("decoder.conv_in", "no such probe"))["ok"]
    assert load_file(child.scratch / answer["outputs"])["image"].shape == (1, 3, 16, 16)
    assert list(load_file(child.scratch / answer["probes"])) == ["decoder.conv_in"]
    assert child.ask(op="unload") == {"id": 7, "ok": {}}


def header(**entries: dict) -> bytes:
    """Return the head of a safetensors file."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FILES = {
    "empty": b"",
    "no header": b"\x10",
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "header is no JSON": struct.pack("<Q", 2) + b"{]",
    "header is no object": struct.pack("<Q", 2) + b"[]",
    "no offsets": header(a={"dtype": "F32", "shape": [2]}) + bytes(8),
    "negative offset": header(a={**GOOD, "data_offsets": [-8, 0]}) + bytes(8),
    "beyond the end": header(a={**GOOD, "data_offsets": [8, 16]}) + bytes(8),
    "backwards": header(a={**GOOD, "data_offsets": [8, 0]}) + bytes(8),
    "shape does not fit": header(a={**GOOD, "shape": [3]}) + bytes(8),
    "shape overflows": header(a={**GOOD, "shape": [2**33, 2**31 + 1]}) + bytes(8),
    "bytes left over": header(a=GOOD) + bytes(9),
    "cut": header(a=GOOD) + bytes(7),
}


def test_malformed_files(child):
    """A file that is not safetensors is refused by name, before anything outside it is read."""
    child.load("echo")
    path = child.scratch / "broken.safetensors"
    for name, data in FILES.items():
        path.write_bytes(data)
        assert path.name in child.run(path).get("error", ""), name
    assert str(child.scratch) in child.run(child.scratch)["error"]


def test_echo(child):
    """Tensors come back as they went, whatever their dtype and shape; so do odd names."""
    raw = bytes(range(14))
    tensors = {
        'é"\\\n': {"dtype": "BF16", "shape": [1, 2, 1], "data_offsets": [0, 4]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [4, 12]},
        "empty": {"dtype": "F64", "shape": [3, 0], "data_offsets": [12, 12]},
        "of the future": {"dtype": "F4", "shape": [4], "data_offsets": [12, 14]},
    }
    path = child.scratch / "in.safetensors"
    path.write_bytes(header(__metadata__={"a": "b"}, **tensors) + raw)
    child.load("echo")
    answer = child.run(path)["ok"]
    echoed = (child.scratch / answer["outputs"]).read_bytes()
    (length,) = struct.unpack_from("<Q", echoed)
    assert json.loads(echoed[8 : 8 + length]) == tensors
    assert (echoed[8 + length :], length % 8) == (raw, 0)


def test_end_of_input(program, tmp_path):
    """The end of standard input means bye; a line cut by it is still answered."""
    cut = subprocess.run(
        [program], input=b'{"id": 1', capture_output=True, check=True, cwd=tmp_path
    )
    assert json.loads(cut.stdout)["id"] is None
    assert not subprocess.run([program], input=b"", capture_output=True, check=True).stdout
